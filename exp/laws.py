"""The law of a target as the flags ask for it; a calibration is fitted once and found again beside the checkpoint."""
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from data_provider.data_factory import data_provider
from utils.calibration import (
    LEAST_PATCHES,
    MOST_ELEMENTS,
    Calibration,
    file_beside,
    fit,
    identity,
    load,
    next_patch_residuals,
    save,
)
from utils.errors import UserError
from utils.files import refuse_unwritable
from utils.target_law import TargetLaw


def law_of_flags(args, model, checkpoint: str | Path, device: torch.device, say) -> TargetLaw:
    """White noise of --spec_sigma, or what --spec_sigma_mode calibrated finds for it; times --spec_temp."""
    law = calibrated(args, model, checkpoint, device, say).law if args.spec_sigma_mode == "calibrated" \
        else TargetLaw.fixed(args.spec_sigma)
    return replace(law, factor=law.factor * args.spec_temp)


def validation_part(args):
    """(data set, loader) to calibrate on: windows of the test context. Raises UserError where it cannot do."""
    dataset, loader = data_provider(args, "val", context=args.test_seq_len)
    patch_len, variables = args.input_token_len, len(dataset.names) // dataset.series
    if dataset.windows < LEAST_PATCHES * patch_len:
        raise UserError(f"{args.data_path}: the validation part has {dataset.windows} windows, too few to calibrate "
                        f"on: {LEAST_PATCHES * patch_len} are needed; use a fixed sigma, or a longer file")
    if args.spec_covariance == "full" and patch_len * variables > MOST_ELEMENTS:
        raise UserError(f"--spec_covariance full: a patch has {patch_len * variables} elements ({patch_len} steps of "
                        f"{variables} variables), more than {MOST_ELEMENTS}: use diag, or --data "
                        "UnivariateDatasetBenchmark")
    return dataset, loader


def law_of_history(args, model, series: torch.Tensor, where: str, device: torch.device) -> Calibration:
    """The law of a target on a series [T, C], standardised, that has no validation part: from its newest windows.

    Those are the last fifth, which a model that was trained on this very series has not seen if its splits were the
    usual ones. where: what errors call the series. Raises UserError where there are too few windows.
    """
    context, patch_len = args.test_seq_len, model.patch_len
    windows = series.unfold(0, context + patch_len, 1) if len(series) >= context + patch_len else series[:0]
    least = LEAST_PATCHES * patch_len
    windows = windows[-max(least, len(windows) // 5):]
    if len(windows) < least:
        raise UserError(f"{where}: {len(series)} rows leave {len(windows)} windows to calibrate a law on, {least} are "
                        f"needed ({context + patch_len + least - 1} rows): give --spec_sigma, or no --num_samples")
    univariate = args.data == "UnivariateDatasetBenchmark"
    windows = windows.transpose(0, 1).flatten(0, 1)[:, None] if univariate else windows
    batches = [(part[..., :context].mT, part[..., context:].mT) for part in windows.split(args.batch_size)]
    bar = tqdm(batches, desc="calibration", unit="batch", disable=args.quiet)
    return fit(next_patch_residuals(model, bar, device), series.shape[1] if univariate else 1,
               args.spec_covariance == "full")


def calibrated(args, model, checkpoint: str | Path, device: torch.device, say) -> Calibration:
    """The calibration of `checkpoint` for these data and this context: loaded, or fitted and kept; `say` tells."""
    context, covariance, checkpoint = args.test_seq_len, args.spec_covariance, Path(checkpoint)
    dataset, loader = validation_part(args)
    path = file_beside(checkpoint, args.data_path, context, covariance)
    made_for = identity(checkpoint, dataset, context, covariance, model.rolling)
    if path.exists():
        calibration = load(path, made_for, model.patch_len, len(dataset.names) // dataset.series)
        say(f"calibration of {path}: {calibration.describe()}")
        return calibration
    refuse_unwritable(path.parent, "--checkpoints/--distill_target_ckpt")
    residuals = next_patch_residuals(model, loader, device)
    if not torch.isfinite(residuals).all():
        raise UserError(f"{checkpoint}: a forecast of the validation part overflowed, there is nothing to calibrate "
                        "on: train the model again")
    calibration = fit(residuals, dataset.series, covariance == "full")
    save(path, calibration, made_for)
    say(f"calibrated on {calibration.held_out['windows']:.0f} validation windows, kept in {path}: "
        f"{calibration.describe()}")
    return calibration
