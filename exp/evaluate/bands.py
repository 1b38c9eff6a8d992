"""How the bands of sampled paths hold at every lead: on forecasts of validation windows over the whole horizon.

The spread of the paths can be made to grow with the lead as their errors do there. What was found is kept beside the
checkpoint, with all it depends on.
"""
from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_provider.data_factory import evenly_spaced
from exp.evaluate.evaluation import counted_from, scored
from exp.evaluate.methods import SampledMethod
from exp.evaluate.paths import windows_at_once
from exp.exp_basic import Exp_Basic
from exp.laws import file_beside, identity
from models.checkpoint import read_tensors, save_tensors
from models.timer_xl import TimerBackbone
from utils.calibration import GROWTHS
from utils.errors import UserError, shorten
from utils.files import refuse_unwritable
from utils.growth import fit_growth, widened
from utils.scores import BANDS, PathMetrics
from utils.speculative_decoder import patches_in
from utils.target_law import TargetLaw

FORM = 1  # version of the file format
ROLLED, PATHS, SEED = 64, 40, 2_000_000_033  # windows about, paths of each, and the seed of their noise
LEAST_OF_SERIES, MOST_ROLLED = 8, 512  # windows of each of several series, and of all of them
MOST_NUMBERS = 2**26  # in all of these paths: 0.25 GiB
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bands:
    """growth [n]: the factor of every patch; found: what validation windows say of paths with it and without.

    found[name] for the names of GROWTHS: coverage_50_pct ... by patch, on the windows that the growth was fitted to;
    crps: on windows that it was not fitted to, None where there are too few; windows: how many there are.
    """

    growth: torch.Tensor
    found: dict[str, Any]

    def chosen(self, asked: str | None) -> str:
        """A name of GROWTHS: `asked`, None: rollouts; auto: what has the lower CRPS, none where that is not known."""
        if asked != "auto":
            return asked or "rollouts"
        scores = {name: self.found[name]["crps"] for name in GROWTHS}
        return "none" if None in scores.values() else min(scores, key=lambda name: float(scores[name]))

    def result(self, asked: str | None) -> dict[str, Any]:
        """For metrics.json."""
        name = self.chosen(asked)
        growth = self.growth if name == "rollouts" else torch.ones_like(self.growth)
        return self.found[name] | {"growth": name, "factors": [round(value, 6) for value in growth.tolist()],
                                   "windows": self.found["windows"],
                                   "crps_of": {each: self.found[each]["crps"] for each in GROWTHS}}

    def describe(self, asked: str | None) -> str:
        result = self.result(asked)
        held = "; ".join(f"{band} %: " + " ".join(f"{share:.1f}" for share in result[f"coverage_{band}_pct"])
                         for band in BANDS)
        factors = "not widened" if result["growth"] == "none" else \
            f"widened by {' '.join(f'{factor:.2f}' for factor in result['factors'])}"
        none, grown = (result["crps_of"][name] for name in GROWTHS)
        score = "too few windows for a held-out CRPS" if none is None else \
            f"CRPS of newer windows {none:.4f} as sampled, {grown:.4f} widened by factors of the older ones"
        return (f"over {self.found['windows']} validation windows the bands of paths hold, patch by patch, {held} "
                f"({factors}; {score})")


def rolled_part(experiment: Exp_Basic) -> Any:
    """The validation windows with a whole horizon; None, with a note, if there are none.

    Raises UserError where a growth is asked for and there are none.
    """
    try:
        return experiment.dataset("val", experiment.settings.data.test_context, rolled=True)
    except UserError as error:
        if experiment.settings.spec.growth == "rollouts":
            raise UserError(f"{error}; or give `growth` none") from None
        experiment.note("the validation part has no window with a whole horizon: how the bands hold at later leads is "
                        "not known, and they do not grow")
        return None


def bands_of(experiment: Exp_Basic, model: TimerBackbone, checkpoint: Path, law: TargetLaw) -> Bands | None:
    """The bands of this law on validation windows: loaded, or measured and stored; None if there are none."""
    data, spec, bf16 = experiment.settings.data, experiment.settings.spec, experiment.settings.run.bf16
    dataset = rolled_part(experiment)
    if dataset is None:
        return None
    width = "mixture" if law.widths is not None else "one"
    path = file_beside(checkpoint, data.label, data.test_context, f"{spec.covariance}_{width}_{data.horizon}", bf16)
    of_law = identity(checkpoint, dataset, data.test_context, spec.covariance, model.way, bf16)
    made_for = of_law | {"form": FORM, "form of the law": of_law["form"], "width": width, "horizon": data.horizon,
                         "temperature": spec.temp}
    if path.exists():
        bands = load(path, made_for, patches_in(data.horizon, model.patch_len))
    else:
        refuse_unwritable(path.parent, "--checkpoints/--distill_target_ckpt")
        bands = measure(experiment, dataset, model, law)
        save_tensors(path, {"identity": made_for, "growth": bands.growth, "found": bands.found})
    log.info("bands of %s: %s", path, bands.describe(spec.growth))
    return bands


def measure(experiment: Exp_Basic, dataset, model: TimerBackbone, law: TargetLaw) -> Bands:
    """Samples paths of validation windows, fits their growth and looks at the coverage; CRPS by windows apart."""
    items = spread(dataset, experiment.settings.data.horizon)
    paths, truth = sampled(experiment, dataset, items, model, law)
    return judged(paths, truth, model.patch_len, halves(dataset, items, experiment.settings.data.horizon))


def sampled(experiment: Exp_Basic, dataset, items: torch.Tensor, model: TimerBackbone,
            law: TargetLaw) -> tuple[torch.Tensor, torch.Tensor]:
    """PATHS paths [W, S, H, C] of the target alone for windows of a data set, and the truths [W, H, C], on the CPU."""
    settings, horizon = experiment.settings.with_("report", num_samples=PATHS), experiment.settings.data.horizon
    method = SampledMethod(model, horizon, law, SEED, PATHS)
    paths, truths = [], []
    with tqdm(total=len(items), desc="bands", unit="window", disable=settings.run.quiet) as bar:
        for part in items.split(windows_at_once(settings, dataset)):
            x, y = dataset.__getitems__(part.tolist())
            with counted_from(bar.n):
                found = method.decode(x.to(experiment.device)).paths
            assert found is not None
            paths.append(scored(found, settings.model.config.covariate).cpu())
            truths.append(scored(y, settings.model.config.covariate))
            bar.update(len(part))
    return torch.cat(paths), torch.cat(truths)


def scores_of(paths: torch.Tensor, truth: torch.Tensor, patch_len: int,
              growth: torch.Tensor | None = None) -> dict[str, Any]:
    """Scores of paths [W, S, H, C], widened by a growth if it is given."""
    metrics = PathMetrics(patch_len)
    for p, y in zip(paths.split(8), truth.split(8)):
        metrics.update(p if growth is None else widened(p, growth, patch_len), y)
    return metrics.result()


def spread(dataset, horizon: int) -> torch.Tensor:
    """Windows spread over the part, and over the series if there are several."""
    most = min(MOST_ROLLED, max(1, MOST_NUMBERS // (PATHS * horizon * dataset.variables)))
    windows = min(most, max(LEAST_OF_SERIES, ROLLED // dataset.n_series))
    series = evenly_spaced(min(dataset.n_series, most // windows), dataset.n_series)
    return torch.cat([first + evenly_spaced(min(windows, count), count) for first, count in
                      zip(dataset.first_items[series].tolist(), dataset.counts[series].tolist())])


def halves(dataset, items: torch.Tensor, horizon: int) -> list[torch.Tensor]:
    """Masks of windows whose truths lie in the older and in the newer half of the part, of every series by itself."""
    series = dataset.series_of(items)
    start, steps = items - dataset.first_items[series], dataset.counts[series] + horizon - 1
    return [start + horizon <= steps // 2, start >= steps // 2]


def judged(paths: torch.Tensor, truth: torch.Tensor, patch_len: int, parts: list[torch.Tensor]) -> Bands:
    """paths [W, S, H, C], truth [W, H, C]; parts: masks of the older and of the newer windows."""
    older, newer = parts
    growth = fit_growth(paths, truth, patch_len)
    found: dict[str, Any] = {"windows": len(truth)}
    held_out = fit_growth(paths[older], truth[older], patch_len) if older.any() and newer.any() else None
    for name in GROWTHS:
        own, of_others = (growth, held_out) if name == "rollouts" else (None, None)
        by_patch = scores_of(paths, truth, patch_len, own)["by_patch"]
        found[name] = {f"coverage_{band}_pct": by_patch[f"coverage_{band}_pct"] for band in BANDS}
        found[name]["crps"] = None if held_out is None else \
            scores_of(paths[newer], truth[newer], patch_len, of_others)["crps"]
    return Bands(growth, found)


def load(path: Path, made_for: dict[str, Any], patches: int) -> Bands:
    """The bands in `path`. Raises UserError if the file is damaged, or was made for anything but `made_for`."""
    again = "delete it to measure it again"
    try:
        content = read_tensors(path)
        found, bands = content["identity"], Bands(content["growth"], content["found"])
        differing = [name for name in made_for if found.get(name) != made_for[name]]
        usable = differing or (bands.growth.shape == (patches,) and bool((bands.growth >= 1).all())
                               and bool(bands.growth.isfinite().all()) and _complete(bands, patches))
    except Exception as error:  # a damaged file can fail anywhere
        raise UserError(f"{path} is damaged, or not of this program: {again}") from error
    if differing:
        name = differing[0]
        then, now = shorten(found.get(name)), shorten(made_for[name])
        raise UserError(f"{path} was measured for other {name} ({then}, here {now}): {again}")
    if not usable:
        raise UserError(f"{path} is damaged: {again}")
    return bands


def _complete(bands: Bands, patches: int) -> bool:
    for name in GROWTHS:
        bands.describe(name)
        bands.chosen(None)
        if any(len(bands.found[name][f"coverage_{band}_pct"]) != patches for band in BANDS):
            return False
    return True
