"""The law of a target from its own errors: a Gaussian fitted to next-patch residuals on validation windows.

Residuals are in window-normalised units: (truth - mean) / stdev of the context.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .errors import NotFinite
from .finite import refuse_not_finite
from .interface import Model
from .scores import BANDS
from .target_law import LEAST_SIGMA, TargetLaw

STRETCHES = 8  # parts of the validation split; each is scored with a law fitted on the others
# minimum validation length in patches; below it, holding out half plus its overlap leaves nothing to fit
LEAST_PATCHES = 3
# cap on variance inflation; a larger out-of-sample ratio means regime change, not estimation error
MOST_WIDENING = 2.0
MOST_ELEMENTS = 8192  # cap on elements per patch for a full covariance: 0.5 GiB in float64


@dataclass(frozen=True)
class Calibration:
    """law: relative; held_out: out-of-sample coverage of the bands, with laws fitted the same way on other windows."""

    law: TargetLaw
    held_out: dict[str, float]

    def describe(self) -> str:
        bands = ", ".join(f"{self.held_out[f'coverage_{band}_pct']:.1f} %" for band in BANDS)
        return (f"on held-out windows, the 50, 80 and 95 % bands cover {bands} of the next patch; later patches are "
                "not measured here, and usually covered less")


@torch.inference_mode()
def next_patch_residuals(model: Model, batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
                         device: torch.device) -> torch.Tensor:
    """Residuals (truth - mean) of the patch after each window: [W, P, C], window-normalised, on the CPU.

    batches: pairs of contexts x [B, L, C] and y [B, ..., C], whose last patch follows the context. Raises NotFinite if
    a mean is not finite.
    """
    parts: list[torch.Tensor] = []
    for x, y in batches:
        prediction = model.extend(model.start(x.to(device), room=0)).first(1)
        try:
            refuse_not_finite(model, "model", x, prediction.mean, [])
        except NotFinite as error:
            error.place = f"window {error.window + sum(map(len, parts))} (counted from 0) of its calibration"
            raise
        gap = y[:, -model.patch_len:].to(device) - prediction.mean[:, 0]
        parts.append((gap / prediction.unit[:, 0]).float().cpu())
    return torch.cat(parts)


def stretches(windows: int, patch_len: int) -> list[tuple[int, int]]:
    """(start, end) of consecutive stretches of windows, each at least two patches long; halves if there are fewer."""
    count = max(2, min(STRETCHES, windows // (2 * patch_len)))
    edges = torch.linspace(0, windows, count + 1).long().tolist()
    return list(zip(edges[:-1], edges[1:]))


def apart(steps: torch.Tensor, stretch: tuple[int, int], patch_len: int) -> torch.Tensor:
    """Mask of windows whose next patch shares no step with the next patch of any window in the stretch."""
    return (steps <= stretch[0] - patch_len) | (steps >= stretch[1] - 1 + patch_len)


def variance_of(squares: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """Variance [P, C], estimated on the windows in the mask `fitted`; squares: squared residuals [W, P, C], by time.

    The mean square around zero (a bias of the model counts as spread), inflated by the held-out / fitted ratio: errors
    cluster in time, so an in-sample variance is too small out of sample.
    """
    steps, patch_len = torch.arange(len(squares)), squares.shape[1]
    ratios = []
    for stretch in stretches(len(squares), patch_len):
        judged = fitted & (steps >= stretch[0]) & (steps < stretch[1])
        others = fitted & apart(steps, stretch, patch_len)
        if judged.any() and others.any():
            ratios.append((squares[judged] / _mean_square(squares[others])).mean(dim=(1, 2)))
    widening = float(torch.cat(ratios).mean()) if ratios else 1.0
    return _mean_square(squares[fitted]) * min(max(widening, 1.0), MOST_WIDENING)


def _mean_square(squares: torch.Tensor) -> torch.Tensor:
    return squares.mean(dim=0).clamp(min=LEAST_SIGMA**2)


def held_out_coverage(residuals: torch.Tensor, squares: torch.Tensor) -> dict[str, float]:
    """Coverage of the bands on residuals [n_series, W, P, C]; each stretch is scored with a law of windows apart."""
    steps, patch_len, inside, count = torch.arange(len(squares)), squares.shape[1], dict.fromkeys(BANDS, 0), 0
    for stretch in stretches(len(squares), patch_len):
        others = apart(steps, stretch, patch_len)
        if others.any():
            z = (residuals[:, slice(*stretch)] / variance_of(squares, others).sqrt()).abs()
            inside = {band: inside[band] + int((z <= width).sum()) for band, width in BANDS.items()}
            count += z.numel()
    return {f"coverage_{band}_pct": 100 * inside[band] / count for band in BANDS}


def fit_law(residuals: torch.Tensor, n_series: int, full: bool) -> Calibration:
    """The law of residuals [n_series * W, P, C], series by series in order of time, and how it holds out of sample.

    One sigma per lead position and variable, see `variance_of`. full: also the correlations of all elements of a
    patch, shrunk by the rule of Ledoit and Wolf (2004); the sigmas stay. Raises ValueError for fewer windows per series
    than LEAST_PATCHES patches have steps.
    """
    residuals = residuals.double().unflatten(0, (n_series, -1))
    windows, patch_len = residuals.shape[1:3]
    if windows < LEAST_PATCHES * patch_len:
        raise ValueError(f"{windows} windows per series are too few for a law: {LEAST_PATCHES * patch_len} are needed")
    squares = residuals.square().mean(dim=0)
    sigma = variance_of(squares, torch.ones(len(squares), dtype=torch.bool)).sqrt()
    report = held_out_coverage(residuals, squares) | {"windows": float(residuals[..., 0, 0].numel())}
    if not full:
        return Calibration(TargetLaw(sigma.float(), relative=True), report)
    whitened = (residuals / squares.mean(dim=0).clamp(min=LEAST_SIGMA**2).sqrt()).flatten(0, 1).flatten(1)
    covariance, report["shrinkage"] = ledoit_wolf(whitened)
    factor = sigma.flatten()[:, None] * torch.linalg.cholesky(covariance)
    return Calibration(TargetLaw(factor.float(), full=True, relative=True), report)


def ledoit_wolf(samples: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Covariance of centred samples [n, p], shrunk towards its mean variance, and the shrinkage (0 to 1).

    Ledoit and Wolf (2004), "A well-conditioned estimator for large-dimensional covariance matrices": the shrinkage
    beta / delta minimises the expected squared error; delta is the distance of the sample covariance from mu I, beta
    the part of it that is noise.
    """
    n, p = samples.shape
    covariance = samples.T @ samples / n
    mu = covariance.diagonal().mean()
    squared = covariance.square().sum()
    beta = (samples.square().sum(dim=1).square().sum() / n - squared) / (n * p)
    delta = (squared - p * mu**2) / p
    shrinkage = float((torch.minimum(beta, delta) / delta).nan_to_num(0.0).clamp(min=0))
    return (1 - shrinkage) * covariance + shrinkage * mu * torch.eye(p, dtype=samples.dtype), shrinkage
