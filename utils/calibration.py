"""The law of a target from its own errors: a Gaussian fitted to next-patch residuals on validation windows.

Residuals are in window-normalised units: (truth - mean) / stdev of the context. The fit is kept beside the checkpoint,
with all that it depends on.
"""
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.covariance import LedoitWolf

from utils.checkpoint import save_tensors
from utils.errors import UserError, shorten
from utils.target_law import TargetLaw

BANDS = {50: 0.674490, 80: 1.281552, 95: 1.959964}  # per cent -> half width in standard deviations of a Gaussian
STRETCHES = 8  # of the validation part, each judged by a law fitted on the others
LEAST_PATCHES = 3  # windows to calibrate on, in patches: of fewer, half and what overlaps it leave nothing to fit on
MOST_WIDENING = 2.0  # of the variance, for what its fit has not seen: more is no error of a fit
FORM = 2  # of the file
LEAST_SIGMA = 1e-4  # a law without width has no density
MOST_ELEMENTS = 8192  # of a full covariance: 0.5 GiB in double precision


@dataclass(frozen=True)
class Calibration:
    """law: relative; held_out: how well the bands of laws fitted in the same way hold on windows apart from the fit."""

    law: TargetLaw
    held_out: dict[str, float]

    def describe(self) -> str:
        bands = ", ".join(f"{self.held_out[f'coverage_{band}_pct']:.1f} %" for band in BANDS)
        return f"bands of 50, 80, 95 % hold {bands} of the next patches of windows held out in turn"


@torch.inference_mode()
def next_patch_residuals(model, loader, device: torch.device) -> torch.Tensor:
    """What the model misses of the patch after each window of a validation loader: [W, P, C], window-normalised."""
    parts = []
    for x, y in loader:
        prediction = model.extend(model.start(x.to(device), room=0)).first(1)
        gap = y[:, -model.patch_len:].to(device) - prediction.mean[:, 0]
        parts.append((gap / prediction.unit[:, 0]).float().cpu())
    return torch.cat(parts)


def stretches(windows: int, patch_len: int) -> list[tuple[int, int]]:
    """First and last + 1 of consecutive stretches of the windows: halves, or two patches long and longer."""
    count = max(2, min(STRETCHES, windows // (2 * patch_len)))
    edges = torch.linspace(0, windows, count + 1).long().tolist()
    return list(zip(edges[:-1], edges[1:]))


def apart(steps: torch.Tensor, stretch: tuple[int, int], patch_len: int) -> torch.Tensor:
    """Which windows share no step of their next patch with any of a stretch."""
    return (steps <= stretch[0] - patch_len) | (steps >= stretch[1] - 1 + patch_len)


def variance_of(squares: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """The variance [P, C] of windows like those in the mask `fitted`; squares: of residuals [W, P, C], by time.

    Their mean square around zero (a bias of the model counts as spread), times how much larger the squares of a stretch
    are than the mean square of the others: errors come in spells, so a fit is too narrow for what it has not seen.
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
    """How the bands hold on residuals [series, W, P, C], each stretch judged by the law of windows apart from it."""
    steps, patch_len, inside, count = torch.arange(len(squares)), squares.shape[1], dict.fromkeys(BANDS, 0), 0
    for stretch in stretches(len(squares), patch_len):
        others = apart(steps, stretch, patch_len)
        if others.any():
            z = (residuals[:, slice(*stretch)] / variance_of(squares, others).sqrt()).abs()
            inside = {band: inside[band] + int((z <= width).sum()) for band, width in BANDS.items()}
            count += z.numel()
    return {f"coverage_{band}_pct": 100 * inside[band] / count for band in BANDS}


def fit(residuals: torch.Tensor, series: int, full: bool) -> Calibration:
    """The law of residuals [series * W, P, C], series by series in order of time, and how it holds by cross-validation.

    sigma: one a lead position (and variable), see `variance_of`.
    full: correlations of all elements of a patch as well, shrunk by Ledoit and Wolf's rule; sigma stays.
    """
    residuals = residuals.double().unflatten(0, (series, -1))
    squares = residuals.square().mean(dim=0)
    sigma = variance_of(squares, torch.ones(len(squares), dtype=torch.bool)).sqrt()
    report = held_out_coverage(residuals, squares) | {"windows": float(residuals[..., 0, 0].numel())}
    if not full:
        return Calibration(TargetLaw(sigma.float(), relative=True), report)
    whitened = (residuals / squares.mean(dim=0).clamp(min=LEAST_SIGMA**2).sqrt()).flatten(0, 1).flatten(1).numpy()
    shrunk = LedoitWolf(assume_centered=True).fit(whitened)
    factor = sigma.flatten()[:, None] * torch.from_numpy(np.linalg.cholesky(shrunk.covariance_))
    report["shrinkage"] = float(shrunk.shrinkage_)
    return Calibration(TargetLaw(factor.float(), full=True, relative=True), report)


def file_beside(checkpoint: Path, data_path: str, context: int, covariance: str) -> Path:
    """Where the calibration of a checkpoint is kept: a file of its own for each data set, context and covariance."""
    checkpoint = Path(checkpoint)
    return checkpoint.with_name(f"{checkpoint.stem}_calibration_{Path(data_path).stem}_{context}_{covariance}.pth")


def identity(checkpoint: Path, dataset, context: int, covariance: str, rolling: str) -> dict[str, str | int]:
    """What a calibration depends on; another value of any of these makes it foreign."""
    values = dataset.values.contiguous().numpy().tobytes()
    return {"form": FORM, "weights": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
            "data": hashlib.sha256(values).hexdigest(), "windows": type(dataset).__name__, "context": context,
            "patch": dataset.patch_len, "covariance": covariance, "rolling": rolling}


def forget(checkpoint: Path) -> None:
    """Removes what was calibrated for older weights of this name."""
    for path in Path(checkpoint).parent.glob(f"{Path(checkpoint).stem}_calibration_*.pth"):
        path.unlink()


def save(path: Path, calibration: Calibration, made_for: dict) -> None:
    save_tensors(path, {"identity": made_for, "held_out": calibration.held_out, "factor": calibration.law.factor})


def load(path: Path, made_for: dict, patch_len: int, variables: int) -> Calibration:
    """The calibration in `path`. Raises UserError if it is damaged, or was made for anything but `made_for`."""
    again = "delete it, and it is fitted anew"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles; the error below says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
        found, held_out, factor = content["identity"], content["held_out"], content["factor"]
        differing = [name for name in made_for if found.get(name) != made_for[name]]
        numbers = {name: float(held_out[name]) for name in held_out}
        shape = (patch_len * variables,) * 2 if made_for["covariance"] == "full" else (patch_len, variables)
        usable = _is_factor(factor, shape, made_for["covariance"] == "full")
        calibration = Calibration(TargetLaw(factor, made_for["covariance"] == "full", relative=True), numbers)
        calibration.describe()
    except Exception as error:  # a damaged file fails in as many ways as it has parts
        raise UserError(f"{path} is damaged, or no calibration of this program: {again}") from error
    if differing:
        name = differing[0]
        if name == "form":
            raise UserError(f"{path} was calibrated by another version of this program: {again}")
        then, now = shorten(found[name]), shorten(made_for[name])
        raise UserError(f"{path} was calibrated for other {name} ({then}, here {now}): {again}")
    if not usable:
        raise UserError(f"{path} is damaged (its factor is no {list(shape)} of finite standard deviations): {again}")
    return calibration


def _is_factor(factor, shape: tuple[int, int], full: bool) -> bool:
    if not isinstance(factor, torch.Tensor) or factor.dtype != torch.float32 or factor.layout != torch.strided:
        return False
    if factor.shape != shape or not torch.isfinite(factor).all():
        return False
    deviations = factor.diagonal() if full else factor
    return bool((deviations > 0).all()) and not (full and factor.triu(1).any())


class RollingScale:
    """Factors on the spread of sampled paths, from how far the truth lay outside it in the windows just before.

    A window's squared error in units of its own spread, z^2 = (truth - mean)^2 / var, is known for its patch j once
    that patch has passed, (j + 1) * P steps after the window. A patch and variable has
    factor^2 = (prior + sum of z^2) / (prior + count) over the windows of the last `span` steps for which z^2 is known:
    before there are any it is 1, the calibration as it is. Nothing later than the window is looked at.
    """

    def __init__(self, patch_len: int, span: int, windows: int, prior: float):
        """windows: how many a series has; rows are numbered series by series. prior: in windows."""
        self.patch_len, self.span, self.windows, self.prior = patch_len, span, windows, prior
        self.rows, self.squares = torch.zeros(0, dtype=torch.long), None

    def factors(self, paths: torch.Tensor, truth: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Batches come in ascending order: paths [B, S, H, C], truth [B, H, C], rows [B] -> [B, H, C]."""
        horizon = truth.shape[1]
        spread = paths.var(dim=1).clamp(min=LEAST_SIGMA**2) * (1 + 1 / paths.shape[1])
        squares = ((truth - paths.mean(dim=1)).square() / spread).cpu()
        squares = torch.stack([part.mean(dim=1) for part in squares.split(self.patch_len, dim=1)], dim=1).double()
        self.squares = squares if self.squares is None else torch.cat([self.squares, squares])
        self.rows = torch.cat([self.rows, rows])
        total = torch.cat([torch.zeros_like(self.squares[:1]), self.squares.cumsum(dim=0)])
        first_of_series = rows // self.windows * self.windows
        patch = torch.arange(squares.shape[1])
        passed = rows[:, None] - torch.minimum((patch + 1) * self.patch_len, torch.tensor(horizon))
        first = torch.maximum(passed - self.span + 1, first_of_series[:, None])
        low = torch.searchsorted(self.rows, first)
        high = torch.maximum(torch.searchsorted(self.rows, passed, right=True), low)
        known, count = total[high, patch] - total[low, patch], (high - low)[..., None]
        factor = ((self.prior + known) / (self.prior + count)).sqrt()
        return factor.repeat_interleave(self.patch_len, dim=1)[:, :horizon].to(truth)
