"""--do_predict output: long-format csv, one picture per variable, and provenance as JSON."""
from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_provider.reading import read_series
from data_provider.series import Series
from exp.flags import flat, in_flags
from exp.predict.forecaster import Forecast, Forecaster
from exp.report.plots import prediction_figure
from exp.settings import SERIES_DRAWN, Settings
from utils.files import replace_when_done, write_json

NO_LAW = ("the forecast is a mean without quantiles (add --num_samples for them): the draft's sigma is not the "
          "uncertainty of the forecast")
log = logging.getLogger(__name__)


def predict(forecaster: Forecaster, path: Path, folder: Path) -> Forecast:
    """Forecasts the file `path`; writes forecast.csv, forecast.json and forecast_*.png to `folder`."""
    settings = forecaster.settings
    horizon, samples = settings.data.horizon, settings.report.num_samples
    series = read_series(path)
    forecast = forecaster.forecast(series, horizon, str(path))
    if not forecast.levels:
        forecast.notes.append(NO_LAW)
    forecast.notes = [in_flags(note) for note in forecast.notes]
    for note in forecast.notes:
        log.info("note: %s", note)
    with replace_when_done(folder / "forecast.csv") as beside:
        forecast.frame().to_csv(beside, index=False, float_format="%.10g")
    used = flat(settings)
    write_json(folder / "forecast.json", {
        "data_path": str(path), "rows": len(series.values), "frequency": forecast.calendar.frequency,
        "horizon": horizon, "context": settings.data.test_context, "checkpoint": str(forecaster.checkpoint),
        "draft": settings.run.draft_checkpoint, "cost": forecast.cost, "notes": forecast.notes,
        "seed": settings.run.seed, "num_samples": samples, "clip_min": settings.report.clip_min,
        "settings": {name: value for name, value in used.items() if name.startswith("spec_")
                     and (settings.run.use_speculative or samples is not None)}})
    future = forecast.calendar.future
    log.info("forecast: %s: %d series, %d steps (%s), %s to %s", folder / "forecast.csv", len(forecast.names), horizon,
             forecast.calendar.frequency, future[0], future[-1])
    if forecast.cost and forecast.cost.get("attempted"):
        log.info("accepted %d of %d judged proposals, target passes: %g", forecast.cost["accepted"],
                 forecast.cost["attempted"], forecast.cost["target_passes"])
    elif forecast.cost and "gap_by_patch" in forecast.cost:
        log.info("target passes: %g, draft passes: %g", forecast.cost["target_passes"], forecast.cost["draft_passes"])
    draw(folder, forecast, series, forecaster.model.patch_len, settings)
    return forecast


def draw(folder: Path, forecast: Forecast, series: Series, patch_len: int, settings: Settings) -> None:
    """forecast_<number>_<name>.png of the first `pictures` series; replaces the pictures of an older run."""
    for picture in folder.glob("forecast_*.png"):
        picture.unlink()
    shown, calendar = max(len(forecast.calendar.future), 2 * patch_len), forecast.calendar
    count = SERIES_DRAWN if settings.report.pictures is None else settings.report.pictures
    drawn, first = forecast.names[:count], len(series.names) - len(forecast.names)  # with covariates: the last variable
    log.info("pictures: %d of %d series%s: %s", len(drawn), len(forecast.names),
             " (--pictures N for more)" if len(drawn) < len(forecast.names) else "", folder)
    for c, name in enumerate(tqdm(drawn, desc="pictures", unit="picture", disable=settings.run.quiet)):
        history = series.values[-shown:, first + c]
        prediction_figure(
            folder / picture_name(c, name), name, calendar.history[-shown:], history,
            calendar.future, forecast.values[0, :, c], bands_of(forecast.levels, forecast.values[1:, :, c]),
            None if forecast.origin is None else forecast.origin[c], patch_len,
            f"{len(calendar.future)} steps ({calendar.frequency}) after {calendar.history[-1]}")


def picture_name(number: int, name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name[:80]).strip("_")[:40]  # the number tells equal ones apart
    return f"forecast_{number:03d}{plain and '_' + plain}.png"


def bands_of(levels: Sequence[float], quantiles: np.ndarray) -> list[tuple]:
    """(label, low, high) of quantiles [Q, H], widest first, from levels that are symmetric around the median."""
    at = dict(zip(levels, quantiles))
    pairs = [(low, high) for low in sorted(at) for high in at if low < 0.5 and abs(low + high - 1) < 1e-9]
    return [(f"{100 * (high - low):g} % of the paths", at[low], at[high]) for low, high in pairs]
