"""The constants by which parareal's windows stop, fitted once on validation windows and kept beside the checkpoint."""
from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from exp.exp_basic import Exp_Basic
from models.checkpoint import read_tensors, save_tensors
from models.registry import checkpoint_in
from utils.errors import UserError, shorten
from utils.fidelity import fit_constants
from utils.files import digest, refuse_unwritable

FORM = 1  # version of the file format
QUANTILE = 0.95  # of deviation / gap; another one is another set of constants
log = logging.getLogger(__name__)
# windows of a data set -> deviations from the target and RMS gaps after every pass but the last, both [n - 1, W]
Measure = Callable[[Any, list[int]], tuple[torch.Tensor, torch.Tensor]]


def certificate_constants(experiment: Exp_Basic, checkpoint: Path, pair: tuple[Any, Any], windows: list[int], dataset,
                          unit: str, measure: Measure) -> list[float]:
    """One constant a pass for these models, data, context and horizon: loaded, or fitted on `windows` and stored.

    pair: target and draft; unit: that of deviations, 'window' or 'series'. Raises UserError where the file is damaged,
    or of other models or data.
    """
    data, run = experiment.settings.data, experiment.settings.run
    draft = digest(checkpoint_in(str(run.draft_checkpoint)))
    own = f"{unit}_{draft[:8]}" + ("_bf16" if run.bf16 else "")
    path = file_beside(checkpoint, data.label, data.test_context, data.horizon, own)
    made_for = {"form": FORM, "weights": digest(checkpoint), "draft": draft, "data": dataset.fingerprint(),
                "kind": type(dataset).__name__, "context": data.test_context, "horizon": data.horizon,
                "patch": dataset.cut.patch_len, "windows": len(windows), "unit": unit, "quantile": QUANTILE,
                "amp": run.amp_dtype if run.amp else "", "bf16": run.bf16,
                "rolling": " and ".join(str(model.way) for model in pair)}
    passes = -(-data.horizon // dataset.cut.patch_len) - 1
    if path.exists():
        return load(path, made_for, passes)
    refuse_unwritable(path.parent, "--checkpoints/--distill_target_ckpt")
    constants = fit_constants(*measure(dataset, windows), QUANTILE)
    save_tensors(path, {"identity": made_for, "constants": constants})
    log.info("certificates fitted on %d validation windows, stored in %s: in %g %% of them the deviation is at most %s "
             "times the gap, by pass", len(windows), path, 100 * QUANTILE, ", ".join(f"{c:.2f}" for c in constants))
    return constants


def file_beside(checkpoint: Path, label: str, context: int, horizon: int, own: str) -> Path:
    """own: unit, draft and precision, so that another draft of the same target gets a file of its own."""
    checkpoint = Path(checkpoint)
    return checkpoint.with_name(f"{checkpoint.stem}_certificate_{label}_{context}_{horizon}_{own}.pth")


def load(path: Path, made_for: dict[str, Any], passes: int) -> list[float]:
    """The constants in `path`. Raises UserError if it is damaged, or was made for anything but `made_for`."""
    again = "delete it to fit it again"
    try:
        content = read_tensors(path)
        found, constants = content["identity"], [float(value) for value in content["constants"]]
        differing = [name for name in made_for if found.get(name) != made_for[name]]
        usable = len(constants) == passes and all(0 <= value < float("inf") for value in constants)
    except Exception as error:  # a damaged file can fail anywhere
        raise UserError(f"{path} is damaged, or no certificate of this program: {again}") from error
    if differing:
        name = differing[0]
        raise UserError(f"{path} was fitted for other {name} ({shorten(found.get(name))}, here "
                        f"{shorten(made_for[name])}): {again}")
    if not usable:
        raise UserError(f"{path} is damaged (it has not {passes} finite constants): {again}")
    return constants
