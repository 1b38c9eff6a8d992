"""The law of a target from its own errors: a Gaussian, or a mixture of Gaussians that differ in width.

It is fitted to next-patch residuals on validation windows, in window-normalised units: (truth - mean) / stdev of the
context.
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
MOST_WIDTHS = 1024  # windows whose widths are kept
MOST_JUDGED, MOST_JUDGED_SERIES = 1024, 128  # windows, and series, that the scale of the widths is judged on
SCALES = torch.arange(0.2, 1.61, 0.02, dtype=torch.float64)  # factors on the widths that are tried
LEAST_WIDTH = 1e-6  # of a window, relative: where a few windows are very wide, most are far narrower than the rms
NEWEST = 4  # the newest of so many parts of the windows chooses between one width and a mixture
WIDTHS, GROWTHS = ("one", "mixture"), ("none", "rollouts")


@dataclass(frozen=True)
class Calibration:
    """law: relative, with `widths`; held_out: how it, and its Gaussian of one width, hold out of sample.

    held_out has, with "one_" and "mixture_" before them, coverage_50_pct ...: of windows that the law was not fitted
    on, each stretch judged by a law of the others; crps: of the newest windows, by a law of the older ones.
    """

    law: TargetLaw
    held_out: dict[str, float]

    @property
    def best(self) -> str:
        """The entry of WIDTHS with the lower CRPS on the newest windows."""
        return min(WIDTHS, key=lambda width: self.held_out[f"{width}_crps"])

    def law_of(self, width: str | None = None) -> TargetLaw:
        """With one width or the mixture; None: the better one."""
        return self.law if (width or self.best) == "mixture" else self.law.plain()

    def describe(self, width: str | None = None) -> str:
        chosen = width or self.best
        bands = ", ".join(f"{self.held_out[f'{chosen}_coverage_{band}_pct']:.1f} %" for band in BANDS)
        why = "as asked" if width else "by CRPS on the newest windows"
        scores = ", ".join(f"{self.held_out[f'{name}_crps']:.4f} {_in_words(name)}" for name in WIDTHS)
        return (f"{_in_words(chosen)}, {why} ({scores}); on held-out windows, the 50, 80 and 95 % bands cover {bands} "
                "of the NEXT patch")


def _in_words(width: str) -> str:
    return "a mixture of widths" if width == "mixture" else "one width"


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


def widths_of(residuals: torch.Tensor, squares: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """Widths [M, C] of windows in the mask `fitted`, in units of the rms of all.

    residuals [n_series, W, P, C], by time; squares [W, P, C]: their mean squares over the series. A width is the rms of
    a window, times the factor that brings the bands of the other windows closest to their shares of each stretch: least
    squares over the bands. An rms alone would not do where a window's errors are a few spikes. A row has all variables
    of one window: they are wide or narrow together.
    """
    steps, patch_len = torch.arange(len(squares)), squares.shape[1]
    some = residuals[::-(-len(residuals) // MOST_JUDGED_SERIES)]
    few = fitted & (steps % -(-some.shape[:2].numel() // MOST_JUDGED) == 0)
    held, count = torch.zeros(len(BANDS), len(SCALES), dtype=torch.float64), 0
    for stretch in stretches(len(squares), patch_len):
        judged = few & (steps >= stretch[0]) & (steps < stretch[1])
        others = fitted & apart(steps, stretch, patch_len)
        if judged.any() and others.any():
            z = (some[:, judged] / _mean_square(squares[others]).sqrt()).abs()
            widths = _relative(residuals, squares, others)
            for number, band in enumerate(BANDS):
                needed = torch.bucketize((z / half_width(widths, band / 100)).flatten(), SCALES)
                held[number] += torch.bincount(needed, minlength=len(SCALES) + 1)[:-1].cumsum(dim=0)
            count += z.numel()
    wanted = torch.tensor([band / 100 for band in BANDS], dtype=torch.float64)
    scale = float(SCALES[(held / count - wanted[:, None]).square().sum(dim=0).argmin()]) if count else 1.0
    return scale * _relative(residuals, squares, fitted)


def _relative(residuals: torch.Tensor, squares: torch.Tensor, fitted: torch.Tensor) -> torch.Tensor:
    """The rms of at most MOST_WIDTHS windows in the mask `fitted`, spread over all of them, in units of that of all."""
    known = fitted.nonzero()[:, 0]
    windows = len(residuals) * len(known)
    kept = torch.linspace(0, windows - 1, min(MOST_WIDTHS, windows), dtype=torch.float64).long()
    some = residuals[kept // len(known), known[kept % len(known)]]
    return (some.square() / _mean_square(squares[fitted])).mean(dim=1).sqrt().clamp(min=LEAST_WIDTH)


def half_width(widths: torch.Tensor, share: float) -> torch.Tensor:
    """Half width [C] of the central band of w z, z standard normal, w drawn from widths [M, C], by bisection."""
    low, high = torch.zeros_like(widths[0]), 10 * widths.max(dim=0).values
    for _ in range(30):
        middle = (low + high) / 2
        wide = torch.erf(middle / widths / 2**0.5).mean(dim=0) > share
        low, high = torch.where(wide, low, middle), torch.where(wide, middle, high)
    return high


def held_out_coverage(residuals: torch.Tensor, squares: torch.Tensor) -> dict[str, float]:
    """Coverage of the bands on residuals [n_series, W, P, C]; each stretch is scored with a law of windows apart."""
    steps, patch_len, count = torch.arange(len(squares)), squares.shape[1], 0
    inside = {f"{width}_coverage_{band}_pct": 0 for width in WIDTHS for band in BANDS}
    for stretch in stretches(len(squares), patch_len):
        others = apart(steps, stretch, patch_len)
        if others.any():
            away = residuals[:, slice(*stretch)].abs()
            sigma, rms = variance_of(squares, others).sqrt(), _mean_square(squares[others]).sqrt()
            widths = widths_of(residuals, squares, others)
            for band, width in BANDS.items():
                inside[f"one_coverage_{band}_pct"] += int((away <= width * sigma).sum())
                inside[f"mixture_coverage_{band}_pct"] += int((away <= half_width(widths, band / 100) * rms).sum())
            count += away.numel()
    return {name: 100 * number / count for name, number in inside.items()}


def newest_crps(residuals: torch.Tensor, squares: torch.Tensor) -> dict[str, float]:
    """CRPS of the newest windows of residuals [n_series, W, P, C], by laws that were fitted on windows before them."""
    windows, patch_len = squares.shape[:2]
    first = windows - max(1, windows // NEWEST)
    older = torch.arange(windows) <= first - patch_len
    newest = residuals[::-(-len(residuals) // MOST_JUDGED_SERIES), first:]
    newest = newest[:, ::-(-newest.shape[:2].numel() // MOST_JUDGED)]
    widths = widths_of(residuals, squares, older)
    laws = {"one": (variance_of(squares, older).sqrt(), torch.ones_like(widths[:1])),
            "mixture": (_mean_square(squares[older]).sqrt(), widths.quantile(_MIDDLES.to(widths), dim=0))}
    return {f"{name}_crps": float((sigma * mixture_crps(newest / sigma, own)).mean())
            for name, (sigma, own) in laws.items()}


_MIDDLES = (torch.arange(32, dtype=torch.float64) + 0.5) / 32  # levels of the quantiles that stand for a distribution


def mixture_crps(z: torch.Tensor, widths: torch.Tensor) -> torch.Tensor:
    """CRPS, at z [..., C], of w y, y standard normal, w drawn from widths [M, C]: E|w y - z| - E|w y - w' y'| / 2."""
    near = torch.zeros_like(z)
    for w in widths:
        t = z / w
        near += w * (t * torch.erf(t / 2**0.5) + (2 / torch.pi)**0.5 * torch.exp(-t.square() / 2))
    apart_by = (widths[:, None].square() + widths.square()).sqrt().mean(dim=(0, 1)) * (2 / torch.pi)**0.5
    return near / len(widths) - apart_by / 2


def fit_law(residuals: torch.Tensor, n_series: int, full: bool) -> Calibration:
    """The law of residuals [n_series * W, P, C], series by series in order of time, and how it holds out of sample.

    One sigma per lead position and variable, see `variance_of`, and the widths of windows, see `widths_of`. full: also
    the correlations of all elements of a patch, shrunk by the rule of Ledoit and Wolf (2004); the sigmas stay. Raises
    ValueError for fewer windows per series than LEAST_PATCHES patches have steps.
    """
    residuals = residuals.double().unflatten(0, (n_series, -1))
    windows, patch_len = residuals.shape[1:3]
    if windows < LEAST_PATCHES * patch_len:
        raise ValueError(f"{windows} windows per series are too few for a law: {LEAST_PATCHES * patch_len} are needed")
    squares = residuals.square().mean(dim=0)
    sigma = variance_of(squares, torch.ones(len(squares), dtype=torch.bool)).sqrt()
    report = held_out_coverage(residuals, squares) | newest_crps(residuals, squares) \
        | {"windows": float(residuals[..., 0, 0].numel())}
    rms = _mean_square(squares).sqrt()  # which the widths are relative to; sigma is that times one number
    widths = (widths_of(residuals, squares, torch.ones(len(squares), dtype=torch.bool)) * (rms / sigma).mean()).float()
    if not full:
        return Calibration(TargetLaw(sigma.float(), relative=True, widths=widths), report)
    whitened = (residuals / squares.mean(dim=0).clamp(min=LEAST_SIGMA**2).sqrt()).flatten(0, 1).flatten(1)
    covariance, report["shrinkage"] = ledoit_wolf(whitened)
    factor = sigma.flatten()[:, None] * torch.linalg.cholesky(covariance)
    return Calibration(TargetLaw(factor.float(), full=True, relative=True, widths=widths), report)


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
