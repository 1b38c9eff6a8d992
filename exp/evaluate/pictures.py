"""Reports beyond the metrics: forecast pictures, attention, the time breakdown."""
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from exp.evaluate.methods import Method
from exp.report.plots import attention_figure, forecast_figure
from exp.settings import WINDOWS_DRAWN, Settings
from utils.files import replace_when_done

SPLIT_WORDS = {"val": "validation", "test": "test"}
MOST_LETTERS = 80  # of a series' name in a title
log = logging.getLogger(__name__)


def breakdown(seconds: float, target, draft=None) -> dict[str, dict]:
    """Seconds and share of the traced passes; 'rest' is proposing, judging and bookkeeping."""
    parts = {"model" if draft is None else "target": target, "draft": draft}
    table = {name: {"seconds": part.seconds, "passes": part.passes} for name, part in parts.items() if part is not None}
    table["rest"] = {"seconds": seconds - sum(part["seconds"] for part in table.values())}
    for part in table.values():
        part["share_pct"] = 100 * part["seconds"] / seconds
    return table


def draw_forecasts(folder: Path, method: Method, alone: Method, dataset, settings: Settings,
                   device: torch.device) -> None:
    """Evenly spaced test windows, the first and the last variable of each; replaces the pictures of an older run."""
    for picture in folder.glob("forecast_*.png"):
        picture.unlink()
    count = WINDOWS_DRAWN if settings.report.pictures is None else settings.report.pictures
    windows = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist()
    log.info("pictures: %d of %d windows%s: %s", len(windows), len(dataset),
             " (--pictures N for more)" if len(windows) < len(dataset) else "", folder)
    for window in tqdm(windows, desc="pictures", unit="picture", disable=settings.run.quiet):
        _draw_forecast(folder, method, alone, dataset, window, settings, device)


def _draw_forecast(folder: Path, method: Method, alone: Method, dataset, window: int, settings: Settings,
                   device: torch.device) -> None:
    x, y = dataset.__getitems__([window])
    x = x.to(device)
    variables = sorted({0, x.shape[2] - 1})
    series = int(dataset.series_of(torch.tensor(window)))
    labels = [dataset.labels[series * dataset.variables + c] for c in variables]

    def panel(series):
        return None if series is None else series[0][:, variables].cpu().numpy()
    of = "" if dataset.n_series == 1 else f" of {': '.join(labels[0])[-MOST_LETTERS:]}"
    decoded, label, extra = method.decode(x), "forecast", {}
    if decoded.gap is not None:
        label = f"speculative ({settings.spec.rule})"
        extra = {"target_alone": panel(alone.forecast(x)), "gap": decoded.gap[0].cpu().numpy()}
    elif decoded.origin is not None:
        label = f"speculative ({settings.spec.rule})"
        extra = {"target_alone": panel(alone.forecast(x)), "draft_mean": panel(decoded.draft_mean),
                 "draft_sigma": panel(decoded.draft_sigma), "origin": decoded.origin[0].cpu().numpy()}
    forecast_figure(folder / f"forecast_{window:05d}.png", panel(x), panel(y), panel(decoded.forecast),
                    [name for _, name in labels], settings.model.config.patch_len, label,
                    title=f"{SPLIT_WORDS[dataset.cut.split]} window {window - int(dataset.first_items[series])}{of}, "
                          f"horizon {settings.data.horizon}", **extra)


@torch.inference_mode()
def draw_attention(folder: Path, model, dataset, device: torch.device) -> None:
    """attention.npz (one array [heads, C*N, C*N] per layer) and attention.png of the first test window."""
    x = dataset.__getitems__([0])[0].to(device)
    weights = [layer[0].float().cpu().numpy() for layer in model.attention(x)]
    with replace_when_done(folder / "attention.npz") as beside, open(beside, "wb") as handle:
        np.savez(handle, **{f"layer{i}": values for i, values in enumerate(weights)})
    attention_figure(folder / "attention.png", weights)
