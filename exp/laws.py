"""The target's law according to the settings; a calibration is fitted once and stored beside the checkpoint."""
from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_provider.data_factory import evenly_spaced, ordered_loader
from data_provider.scaling import OwnScale, too_far
from data_provider.series import Series
from exp.exp_basic import Exp_Basic
from exp.settings import DataSettings
from exp.speculation import SpecSettings
from models.checkpoint import read_tensors, save_tensors
from models.timer_xl import TimerBackbone
from utils.calibration import LEAST_PATCHES, MOST_ELEMENTS, WIDTHS, Calibration, fit_law, next_patch_residuals
from utils.errors import UserError, shorten
from utils.files import digest, refuse_unwritable
from utils.target_law import TargetLaw

FORM = 3  # version of the file format
MOST_RESIDUALS = 2**26  # of a pool: 0.5 GiB in double precision, of which a fit has a few copies
log = logging.getLogger(__name__)


def target_law(experiment: Exp_Basic, model: TimerBackbone, checkpoint: str | Path) -> TargetLaw:
    """White noise of `sigma`, or what `sigma_mode` calibrated finds for it; times `temp`."""
    spec = experiment.settings.spec.filled()
    law = calibrated(experiment, model, checkpoint).law_of(spec.width) if spec.sigma_mode == "calibrated" \
        else TargetLaw.fixed(float(spec.sigma or 0))
    return law.scaled(spec.temp)


def calibration_part(experiment: Exp_Basic) -> tuple[Any, Any, int]:
    """(data set, loader, number of series) to calibrate on: windows of the test context, of every series as many.

    Series of a pool that have too few of them are left out, with a note. Raises UserError if no series has enough.
    """
    dataset, loader = experiment.validation_part()
    patch_len, settings = experiment.patch_len, experiment.settings
    least = LEAST_PATCHES * patch_len
    series = (dataset.counts >= least).nonzero()[:, 0]
    if not len(series):
        name = dataset.files[0].label if len(dataset.files) == 1 else settings.data.label
        raise UserError(f"{name}: the validation part has {int(dataset.counts.max())} windows, too few to calibrate "
                        f"on: {least} are needed; use a fixed sigma, or a longer file")
    elements = patch_len * dataset.variables
    if settings.spec.covariance == "full" and elements > MOST_ELEMENTS:
        raise UserError(f"`covariance` full: a patch has {elements} elements ({patch_len} steps of {dataset.variables} "
                        f"variables), more than {MOST_ELEMENTS}: use diag, or `kind` UnivariateDatasetBenchmark")
    left_out = dataset.n_series - len(series)
    if left_out:
        experiment.note(f"the law is fitted without {left_out} of {dataset.n_series} series, whose validation parts "
                        f"have fewer than {least} windows each")
    if len(dataset.files) > 1:
        series, windows = _fitting(dataset.counts[series], elements, least, series)
        newest = (dataset.first_items + dataset.counts)[series] - windows
        items = (newest[:, None] + torch.arange(windows)).flatten().tolist()
        loader = ordered_loader(dataset, settings.data.batch_size, items, settings.data.num_workers)
    return dataset, loader, len(series)


def _fitting(counts: torch.Tensor, elements: int, least: int, series: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Of the series with `counts` windows each: as many as residuals fit into memory, and how many windows of each."""
    windows = max(least, min(int(counts.min()), MOST_RESIDUALS // (len(series) * elements)))
    most = max(1, MOST_RESIDUALS // (windows * elements))
    return series[evenly_spaced(min(most, len(series)), len(series))], windows


def law_of_history(model: TimerBackbone, series: Series, data: DataSettings, spec: SpecSettings, where: str,
                   device: torch.device, quiet: bool) -> Calibration:
    """Calibrates on the newest fifth of a series without a validation split; every window is scaled by its context.

    Under the usual 70/10/20 split a model that was trained on this very series has not seen these windows. A constant
    context has no deviation that an error could be relative to: it does not count. where: name of the series in errors.
    Raises UserError if there are too few windows, or too few that count.
    """
    span, least = data.test_context + model.patch_len, LEAST_PATCHES * model.patch_len
    count = max(len(series.values) - span + 1, 0)
    windows = min(count, max(least, count // 5))
    if windows < least:
        raise UserError(f"{where}: {len(series.values)} rows leave {windows} windows to calibrate a law on, but "
                        f"{least} are needed ({span + least - 1} rows): give `sigma`, or leave out `num_samples`")
    newest = np.lib.stride_tricks.sliding_window_view(series.values, span, axis=0)[-windows:]
    total = -(-windows * (len(series.names) if data.univariate else 1) // data.batch_size)
    bar = tqdm(_scaled_windows(newest, model, data), desc="calibration", unit="batch", disable=quiet, total=total)
    residuals, enough = _of_varying(next_patch_residuals(model, bar, device).unflatten(0, (-1, windows)), least)
    if data.univariate and enough.any():  # one law for all: that of the series that have one
        residuals, enough = residuals[enough[:, 0]], torch.ones_like(enough)
    constant = OwnScale.of(series.values[-scale_length(model, data.test_context):]).constant
    for name, known in zip(np.array(series.names, dtype=object)[~constant], enough.flatten().numpy()[~constant]):
        if not known:
            raise UserError(f"{where}: {shorten(name)} is constant in the context of so many windows that fewer than "
                            f"{least} are left to calibrate a law on: give `sigma`, or leave out `num_samples`")
    return fit_law(residuals.flatten(0, 1), len(residuals), spec.covariance == "full")


def law_of_windows(model: TimerBackbone, windows: np.ndarray, data: DataSettings, spec: SpecSettings, where: str,
                   device: torch.device) -> Calibration:
    """Calibrates on windows [W, context + P] of many series, those of a series next to each other; else as above.

    The law is one for all of them: held-out windows are mostly those of other series.
    """
    data = replace(data, test_context=windows.shape[1] - model.patch_len)
    residuals = next_patch_residuals(model, _scaled_windows(windows[:, None], model, data), device)
    residuals = residuals[residuals.isfinite().all(dim=1)[:, 0]]
    least = LEAST_PATCHES * model.patch_len
    if len(residuals) < least:
        raise UserError(f"{where}: the first series leave {len(residuals)} windows to calibrate a law on, but {least} "
                        "are needed: give `sigma`, or leave out `num_samples`")
    return fit_law(residuals, 1, spec.covariance == "full")


def scale_length(model: TimerBackbone, context: int) -> int:
    """Number of newest rows of a context that set its scale: the window that the next patch is normalised by."""
    return min(context, (model.span or context) * model.patch_len)


def _scaled_windows(windows: np.ndarray, model: TimerBackbone,
                    data: DataSettings) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """windows [W, C, context + P] -> batches of contexts x [b, context, C or 1] and truths y [b, P, C or 1].

    For a univariate model series by series. y is NaN after a context without a usable scale.
    """
    (count, variables, _), context = windows.shape, data.test_context
    numbers = np.arange(count * (variables if data.univariate else 1))
    for first in range(0, len(numbers), data.batch_size):
        at = numbers[first:first + data.batch_size]
        part = windows[at % count, at // count][:, None] if data.univariate else windows[at]
        part = part.swapaxes(1, 2)
        scale = OwnScale.of(part[:, context - scale_length(model, context):context])
        values = scale.apply(part)
        useless = (torch.from_numpy(scale.constant) | too_far(values))[:, None]
        yield values[:, :context].masked_fill(useless, 0), values[:, context:].masked_fill(useless, float("nan"))


def _of_varying(residuals: torch.Tensor, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """residuals [S, W, P, C] of S series -> the same without NaN, and where `least` windows or more had none [S, C].

    The others of the same series and variable take the place of windows with NaN, evenly and in order; 0 if there are
    fewer than `least`.
    """
    residuals, known = residuals.clone(), residuals.isfinite().all(dim=2)
    enough = known.sum(dim=1) >= least
    for s, c in (~known.all(dim=1)).nonzero().tolist():
        others = known[s, :, c].nonzero()[:, 0]
        places = torch.linspace(0, len(others) - 1, residuals.shape[1]).round().long()
        residuals[s, ..., c] = residuals[s, others[places]][..., c] if enough[s, c] else 0.0
    return residuals, enough


def calibrated(experiment: Exp_Basic, model: TimerBackbone, checkpoint: str | Path) -> Calibration:
    """The calibration of `checkpoint` for these data and this context: loaded, or fitted and stored."""
    data, spec = experiment.settings.data, experiment.settings.spec
    covariance, bf16 = spec.covariance, experiment.settings.run.bf16
    dataset, loader, series = calibration_part(experiment)
    path = file_beside(Path(checkpoint), data.label, data.test_context, covariance, bf16)
    made_for = identity(Path(checkpoint), dataset, data.test_context, covariance, model.way, bf16)
    if path.exists():
        calibration = load(path, made_for, model.patch_len, dataset.variables)
        log.info("calibration of %s: %s", path, calibration.describe(spec.width))
        return calibration
    refuse_unwritable(path.parent, "--checkpoints/--distill_target_ckpt")
    residuals = next_patch_residuals(model, loader, experiment.device)
    calibration = fit_law(residuals, series, covariance == "full")
    for width in WIDTHS:  # bands of the law that this one takes the place of
        name = file_beside(Path(checkpoint), data.label, data.test_context, f"{covariance}_{width}_").stem
        for bands in path.parent.glob(f"{glob.escape(name)}*.pth"):
            if bands.stem.endswith("_bf16") == bf16:
                bands.unlink()
    save(path, calibration, made_for)
    log.info("calibrated on %.0f validation windows, stored in %s: %s", calibration.held_out["windows"], path,
             calibration.describe(spec.width))
    return calibration


def file_beside(checkpoint: Path, label: str, context: int, covariance: str, bf16: bool = False) -> Path:
    """Path of a checkpoint's calibration: one file per data set, context, covariance and precision of the weights."""
    checkpoint, own = Path(checkpoint), "_bf16" if bf16 else ""
    return checkpoint.with_name(f"{checkpoint.stem}_calibration_{label}_{context}_{covariance}{own}.pth")


def identity(checkpoint: Path, dataset, context: int, covariance: str, rolling: str,
             bf16: bool = False) -> dict[str, str | int]:
    """Everything a calibration depends on; a stored one is valid only if all values match."""
    return {"form": FORM, "weights": digest(checkpoint), "data": dataset.fingerprint(),
            "windows": type(dataset).__name__, "context": context, "patch": dataset.cut.patch_len,
            "covariance": covariance, "rolling": rolling} | ({"weights in bf16": True} if bf16 else {})


def forget(checkpoint: Path) -> None:
    """Removes calibrations, and certificates of parareal, of older weights at this path."""
    for kind in ("calibration", "certificate"):
        for path in Path(checkpoint).parent.glob(f"{Path(checkpoint).stem}_{kind}_*.pth"):
            path.unlink()


def save(path: Path, calibration: Calibration, made_for: dict) -> None:
    law = calibration.law
    save_tensors(path, {"identity": made_for, "held_out": calibration.held_out, "factor": law.factor,
                        "widths": law.widths})


def load(path: Path, made_for: dict, patch_len: int, variables: int) -> Calibration:
    """The calibration in `path`. Raises UserError if it is damaged, or was made for anything but `made_for`."""
    again = "delete it to fit it again"
    full = made_for["covariance"] == "full"
    shape = (patch_len * variables,) * 2 if full else (patch_len, variables)
    try:
        content = read_tensors(path)
        found = content["identity"]
        differing = [name for name in made_for if found.get(name) != made_for[name]]
        calibration = None if "form" in differing else _calibration(content, full)
        usable = calibration is not None and _is_factor(content["factor"], shape, full) \
            and _are_widths(content["widths"], variables)
    except Exception as error:  # a damaged file can fail anywhere
        raise UserError(f"{path} is damaged, or not a calibration of this program: {again}") from error
    if "form" in differing:
        raise UserError(f"{path} was calibrated by another version of this program: {again}")
    if differing:
        name = differing[0]
        then, now = shorten(found.get(name)), shorten(made_for[name])
        raise UserError(f"{path} was calibrated for other {name} ({then}, here {now}): {again}")
    if calibration is None or not usable:
        raise UserError(f"{path} is damaged (its factor is not {list(shape)} with finite standard deviations, or its "
                        f"widths are not those of {variables} variables): {again}")
    return calibration


def _calibration(content: dict, full: bool) -> Calibration:
    numbers = {name: float(value) for name, value in content["held_out"].items()}
    law = TargetLaw(content["factor"], full, relative=True, widths=content["widths"])
    calibration = Calibration(law, numbers)
    for width in WIDTHS:
        calibration.describe(width)
    return calibration


def _are_widths(widths, variables: int) -> bool:
    if not isinstance(widths, torch.Tensor) or widths.dtype != torch.float32 or widths.layout != torch.strided:
        return False
    return widths.dim() == 2 and widths.shape[1] == variables and len(widths) > 0 and \
        bool((widths.isfinite() & (widths > 0)).all())


def _is_factor(factor, shape: tuple[int, int], full: bool) -> bool:
    if not isinstance(factor, torch.Tensor) or factor.dtype != torch.float32 or factor.layout != torch.strided:
        return False
    if factor.shape != shape or not torch.isfinite(factor).all():
        return False
    deviations = factor.diagonal() if full else factor
    return bool((deviations > 0).all()) and not (full and factor.triu(1).any())
