"""Scores, summed batch by batch: point errors, the cost of speculation, and sampled paths (CRPS, coverage, PIT).

All scores are in the units of the forecasts (standardised units in the program) and count every element of every window
once. A path is [H, C]; S paths per window.
"""
from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch

from .decoded import Decoded
from .target_law import LEAST_SIGMA

# per cent -> half width in standard deviations of a Gaussian
BANDS = {50: 0.674490, 80: 1.281552, 95: 1.959964}
LOSSLESS_NATS = 0.001  # of a path: a total variation of at most 2.3 %, sqrt(KL / 2)
QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
PIT_BINS = 20


class PointMetrics:
    """MSE, MAE, RMSE, MAPE, MSPE, SMAPE of forecasts in standardised units, every element of every window once.

    MAPE and MSPE are fractions of the truth and leave out elements where it is exactly zero; SMAPE is
    mean(2 |f - y| / (|f| + |y|)), between 0 and 2.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(5, dtype=torch.float64)
        self.elements = self.nonzero = 0

    def update(self, forecast: torch.Tensor, truth: torch.Tensor) -> None:
        """forecast, truth [B, H, C]"""
        if forecast.shape != truth.shape:
            raise ValueError(f"forecast {list(forecast.shape)} and truth {list(truth.shape)} differ in shape")
        f, y = forecast.double(), truth.double()
        error = (f - y).abs()
        relative = torch.where(y != 0, error / y.abs(), torch.zeros_like(error))
        spread = f.abs() + y.abs()
        symmetric = torch.where(spread > 0, 2 * error / spread, torch.zeros_like(error))
        self.sums += torch.stack([error.square().sum(), error.sum(), relative.sum(), relative.square().sum(),
                                  symmetric.sum()]).cpu()
        self.elements += y.numel()
        self.nonzero += int((y != 0).sum())

    def merge(self, other: PointMetrics) -> None:
        """Adds what another one has measured."""
        self.sums += other.sums
        self.elements += other.elements
        self.nonzero += other.nonzero

    def result(self) -> dict[str, float]:
        if not self.elements:
            raise ValueError("no window was measured")
        squared, absolute, relative, relative_squared, symmetric = self.sums.tolist()
        mse, nonzero = squared / self.elements, max(1, self.nonzero)
        return {"mse": mse, "mae": absolute / self.elements, "rmse": mse**0.5, "mape": relative / nonzero,
                "mspe": relative_squared / nonzero, "smape": symmetric / self.elements}


class SeriesMetrics:
    """MSE, MAE and MASE of each of S series, so that a few wild ones do not drown the rest.

    MASE is the mean absolute error over naive_errors [S], the mean absolute error of the seasonal-naive forecast on the
    part of the series that was trained on (Hyndman and Koehler, 2006). It is NaN for a series where that is 0 or NaN.
    """

    def __init__(self, naive_errors: torch.Tensor):
        self.naive_errors = naive_errors.double()
        self.sums = torch.zeros(3, len(naive_errors), dtype=torch.float64)  # squared and absolute errors, elements

    def update(self, forecast: torch.Tensor, truth: torch.Tensor, series: torch.Tensor) -> None:
        """forecast, truth [B, H, C]; series [B, C]: numbers of the series that the variables are."""
        error = (forecast - truth).double().abs()
        sums = torch.stack([error.square().sum(dim=1), error.sum(dim=1), torch.full_like(error[:, 0], error.shape[1])])
        self.sums.index_add_(1, series.flatten(), sums.flatten(1).cpu())

    def merge(self, other: SeriesMetrics) -> None:
        """Adds what another one has measured of the same series."""
        self.sums += other.sums

    def scored(self) -> list[int]:
        """Numbers of the series that have a score."""
        return self.sums[2].nonzero()[:, 0].tolist()

    def of_groups(self, group: torch.Tensor, groups: int) -> list[dict[str, float]]:
        """The means over the elements of the series of every group, MASE without those that have none.

        group [S]: the group of each series, counted from 0. NaN where nothing was scored.
        """
        known = (self.naive_errors > 0) & (self.sums[2] > 0)
        scaled = torch.where(known, self.sums[1] / self.naive_errors, 0.0)
        sums = torch.stack([*self.sums, scaled, torch.where(known, self.sums[2], 0.0)])
        squared, absolute, elements, scaled, scorable = sums.new_zeros(5, groups).index_add_(1, group, sums)
        means = zip((squared / elements).tolist(), (absolute / elements).tolist(), (scaled / scorable).tolist())
        return [dict(zip(("mse", "mae", "mase"), values)) for values in means]

    def of(self) -> dict[str, float]:
        """The means over the elements of all series."""
        return self.of_groups(torch.zeros(len(self.naive_errors), dtype=torch.long), 1)[0]


class SpeculationMetrics:
    """Acceptance and passes over all windows.

    acceptance_pct: share of judged proposals that were accepted (a round is judged up to its first rejection);
    used_pct: share of all proposals within the horizon that were accepted, discarded ones included;
    most_pct: expected acceptance of an optimal law-preserving rule on the judged proposals (if known).
    The shares are None where there was nothing to share: no proposal was made or judged.
    """

    COUNTS = ("accepted", "judged", "proposed", "target_passes", "draft_passes")

    def __init__(self) -> None:
        self.totals = dict.fromkeys(self.COUNTS, 0)
        self.windows = 0
        self.lengths: list[int] = []
        self.most: float | None = None

    def update(self, decoded: Decoded) -> None:
        """Counts of a speculative decode."""
        counts = {name: getattr(decoded, name) for name in self.COUNTS}
        for name, values in counts.items():
            self.totals[name] += int(values.sum())
        self.windows += len(counts["accepted"])  # not len(forecast), which has one row per window if paths are sampled
        if decoded.most is not None:
            self.most = (self.most or 0.0) + float(decoded.most.sum())
        self.lengths = _added(self.lengths, [] if decoded.lengths is None else decoded.lengths.tolist())

    def merge(self, other: SpeculationMetrics) -> None:
        """Adds what another one has counted."""
        for name, count in other.totals.items():
            self.totals[name] += count
        self.windows += other.windows
        if other.most is not None:
            self.most = (self.most or 0.0) + other.most
        self.lengths = _added(self.lengths, other.lengths)

    def result(self) -> dict[str, Any]:
        totals, rounds = self.totals, max(1, sum(self.lengths))
        return {
            "acceptance_pct": _per_cent(totals["accepted"], totals["judged"]),
            "used_pct": _per_cent(totals["accepted"], totals["proposed"]),
            "accepted": totals["accepted"], "attempted": totals["judged"], "proposed": totals["proposed"],
            "mean_accepted_length": totals["accepted"] / rounds,
            "accepted_length_histogram": self.lengths,
            "target_passes": totals["target_passes"] / max(1, self.windows),
            "draft_passes": totals["draft_passes"] / max(1, self.windows),
        } | ({} if self.most is None else {"most_pct": _per_cent(self.most, totals["judged"])})


class PararealMetrics:
    """Passes of parareal over all windows, and the gaps that it left.

    target_passes_histogram: number of windows that took 1, 2, ... passes; gap_by_patch: for each patch but the last the
    mean over windows of `Decoded.gap`, 0 where all of them had the target's own patch. Of sampled paths also
    divergence_nats, the mean over windows of `Decoded.divergence`, None where a tolerance ends a path, which has then
    no known law; and lossless: whether it is known and below LOSSLESS_NATS.
    """

    def __init__(self) -> None:
        self.windows = 0
        self.passes: list[int] = []
        self.draft_passes = 0
        self.gap = torch.zeros(0, dtype=torch.float64)
        self.sampled, self.nats, self.audited = False, 0.0, 0

    def update(self, decoded: Decoded) -> None:
        """Counts of a parareal decode."""
        assert decoded.gap is not None and decoded.target_passes is not None and decoded.draft_passes is not None
        patches = decoded.gap.shape[1] + 1
        found = torch.bincount(decoded.target_passes, minlength=patches + 1)[1:].tolist()
        self.passes = _added(self.passes, found)
        self.draft_passes += int(decoded.draft_passes.sum())
        self.windows += len(decoded.gap)
        gap = decoded.gap.double().sum(dim=0).cpu()
        self.gap = self.gap + gap if len(self.gap) else gap
        self.sampled |= decoded.paths is not None
        if decoded.divergence is not None:
            self.nats += float(decoded.divergence.sum())
            self.audited += decoded.divergence.numel()

    def merge(self, other: PararealMetrics) -> None:
        """Adds what another one has counted, of forecasts of as many patches."""
        self.passes = _added(self.passes, other.passes)
        self.gap = self.gap + other.gap if len(self.gap) else other.gap
        self.draft_passes += other.draft_passes
        self.windows += other.windows
        self.sampled |= other.sampled
        self.nats += other.nats
        self.audited += other.audited

    def result(self) -> dict[str, Any]:
        nats = self.nats / self.audited if self.audited else None
        law = {"divergence_nats": nats, "lossless": nats is not None and nats < LOSSLESS_NATS}
        total = sum(number * windows for number, windows in enumerate(self.passes, 1))
        return {"target_passes": total / max(1, self.windows), "draft_passes": self.draft_passes / max(1, self.windows),
                "target_passes_histogram": self.passes, "gap_by_patch": (self.gap / max(1, self.windows)).tolist()} | (
                    law if self.sampled else {})


def _added(counts: list[int], more: list[int]) -> list[int]:
    """Sums of two histograms, of which one may be shorter."""
    return [a + b for a, b in zip_longest(counts, more, fillvalue=0)]


def _per_cent(part: float, whole: int) -> float | None:
    return 100 * part / whole if whole else None


def quantile(ordered: torch.Tensor, level: float) -> torch.Tensor:
    """Quantile of S paths, sorted along dimension 1: [B, S, ...] -> [B, ...].

    The Weibull plotting position, level * (S + 1) - 1 (numpy's method='weibull'), clamped to the range of the paths:
    unbiased for a new path, unlike the usual linear rule, which makes bands of few paths too narrow.
    """
    last = ordered.shape[1] - 1
    place = min(max(level * (last + 2) - 1, 0.0), float(last))
    below = min(int(place), max(last - 1, 0))
    return torch.lerp(ordered[:, below], ordered[:, min(below + 1, last)], place - below)


def crps(ordered: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Fair CRPS of S ascending paths [B, S, ...] for truth [B, ...]: [B, ...].

    mean |x - y| - sum_{i<j} (x_j - x_i) / (S (S - 1)). Unbiased for the CRPS of the law itself, for any S.
    """
    S = ordered.shape[1]
    weight = (2 * torch.arange(S, device=ordered.device, dtype=ordered.dtype) - S + 1) / (S * (S - 1))
    pairs = torch.tensordot(ordered, weight, dims=([1], [0]))
    return (ordered - truth[:, None]).abs().mean(dim=1) - pairs


def energy_score(paths: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Fair energy score of whole paths [B, S, H, C] for truth [B, H, C]: [B].

    mean |x - y| - sum_{i<j} |x_i - x_j| / (S (S - 1)), | | the Euclidean norm over all steps and variables.
    """
    flat, S = paths.flatten(2), paths.shape[1]
    near = (flat - truth.flatten(1)[:, None]).norm(dim=2).mean(dim=1)
    # not by matrix products: they cancel the digits in which close paths differ
    pairs = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=(1, 2)) / 2
    return near - pairs / (S * (S - 1))


class PathMetrics:
    """Scores over all windows, and patch by patch, since uncertainty grows with the lead."""

    def __init__(self, patch_len: int):
        self.patch_len, self.windows, self.elements = patch_len, 0, 0
        self.sums: dict[str, float] = {}
        self.by_patch: dict[str, tuple[Any, Any]] = {}
        self.ranks: torch.Tensor | None = None

    def update(self, paths: torch.Tensor, truth: torch.Tensor) -> None:
        """paths [B, S, H, C], truth [B, H, C]"""
        ordered = paths.sort(dim=1).values
        self._add("crps", crps(ordered, truth), self.by_patch)
        self._add("mse_of_mean", (paths.mean(dim=1) - truth).square(), self.by_patch)
        for band in BANDS:
            low, high = (quantile(ordered, 0.5 + sign * band / 200) for sign in (-1, 1))
            self._add(f"coverage_{band}_pct", 100.0 * ((low <= truth) & (truth <= high)), self.by_patch)
            self._add(f"width_{band}", high - low)
        for level in QUANTILES:
            below = quantile(ordered, level)
            self._add(f"loss_{level:g}", torch.maximum(level * (truth - below), (level - 1) * (truth - below)))
            self._add(f"below_pct_{level:g}", 100.0 * (truth < below))
        self._add_window("energy_score", energy_score(paths, truth))
        rank = (paths < truth[:, None]).sum(dim=1).flatten()
        ranks = torch.bincount(rank, minlength=paths.shape[1] + 1).cpu()
        self.ranks = ranks if self.ranks is None else self.ranks + ranks
        self.windows += len(truth)
        self.elements += truth.numel()

    def merge(self, other: PathMetrics) -> None:
        """Adds what another one has measured, of as many paths a window."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        for name, (parts, counts) in other.by_patch.items():
            total, number = self.by_patch.get(name, (0.0, 0))
            self.by_patch[name] = total + parts, number + counts
        if other.ranks is not None:
            self.ranks = other.ranks if self.ranks is None else self.ranks + other.ranks
        self.windows += other.windows
        self.elements += other.elements

    def _add(self, name: str, values: torch.Tensor, by_patch: dict[str, tuple[Any, Any]] | None = None) -> None:
        """values [B, H, C]"""
        parts = torch.stack([part.sum(dtype=torch.float64) for part in values.split(self.patch_len, dim=1)]).cpu()
        self.sums[name] = self.sums.get(name, 0.0) + float(parts.sum())
        if by_patch is not None:
            counts = torch.tensor([part[0].numel() * len(values) for part in values.split(self.patch_len, dim=1)])
            total, number = by_patch.get(name, (0.0, 0))
            by_patch[name] = total + parts, number + counts

    def _add_window(self, name: str, values: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(values.sum(dtype=torch.float64))

    def pit(self) -> list[float]:
        """Histogram of the probability integral transform in PIT_BINS equal bins; 1 everywhere for the right law.

        A rank among S paths represents an interval of length 1 / (S + 1), split among the bins that it overlaps.
        """
        if self.ranks is None:
            raise ValueError("no window was measured")
        edges = torch.linspace(0, 1, PIT_BINS + 1, dtype=torch.float64)
        shares = torch.cat([torch.zeros(1, dtype=torch.float64), self.ranks.double().cumsum(0) / self.ranks.sum()])
        place = edges * len(self.ranks)
        whole = place.long().clamp(max=len(self.ranks) - 1)
        cumulated = torch.lerp(shares[whole], shares[whole + 1], place - whole)
        return [float(share) for share in PIT_BINS * cumulated.diff()]

    def result(self) -> dict[str, Any]:
        if not self.windows:
            raise ValueError("no window was measured")
        means = {name: value / self.elements for name, value in self.sums.items() if name != "energy_score"}
        quantiles = {f"{level:g}": {name: means.pop(f"{name}_{level:g}") for name in ("loss", "below_pct")}
                     for level in QUANTILES}
        by_patch = {name: (total / number).tolist() for name, (total, number) in self.by_patch.items()}
        return means | {"energy_score": self.sums["energy_score"] / self.windows, "quantiles": quantiles,
                        "by_patch": by_patch, "pit": self.pit(), "windows": self.windows}


class RollingScale:
    """Factors on the spread of sampled paths, from the squared errors relative to it in the windows just before.

    A window's squared error in units of its own spread, z^2 = (truth - mean)^2 / var, is known for its patch j once
    that patch has passed, (j + 1) * P steps after the window. Each patch and variable has
    factor^2 = (prior + sum of z^2) / (prior + count) over the windows of the last `span` steps for which z^2 is known;
    it is 1, the calibration unchanged, if there are none. Nothing later than the window is used.
    """

    def __init__(self, patch_len: int, span: int, first_rows: torch.Tensor, prior: float):
        """first_rows [n_series]: rows are numbered series by series. prior: a number of windows."""
        self.patch_len, self.span, self.first_rows, self.prior = patch_len, span, first_rows, prior
        self.rows = torch.zeros(0, dtype=torch.long)
        self.squares: torch.Tensor | None = None

    def factors(self, paths: torch.Tensor, truth: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Batches come in ascending order: paths [B, S, H, C], truth [B, H, C], rows [B] -> [B, H, C]."""
        self.add(self.squares_of(paths, truth), rows)
        return self.factors_at(rows, truth.shape[1]).to(truth)

    def squares_of(self, paths: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """z^2 [B, n, C] of every patch, on the CPU; of these windows alone."""
        spread = paths.var(dim=1).clamp(min=LEAST_SIGMA**2) * (1 + 1 / paths.shape[1])
        squares = ((truth - paths.mean(dim=1)).square() / spread).cpu()
        return torch.stack([part.mean(dim=1) for part in squares.split(self.patch_len, dim=1)], dim=1).double()

    def add(self, squares: torch.Tensor, rows: torch.Tensor) -> None:
        """Remembers z^2 [B, n, C] of the windows at rows [B], which come after those that are known."""
        self.squares = squares if self.squares is None else torch.cat([self.squares, squares])
        self.rows = torch.cat([self.rows, rows])

    def factors_at(self, rows: torch.Tensor, horizon: int) -> torch.Tensor:
        """Factors [B, horizon, C] of the windows at rows [B], from those before them, which must be known."""
        assert self.squares is not None
        total = torch.cat([torch.zeros_like(self.squares[:1]), self.squares.cumsum(dim=0)])
        first_of_series = self.first_rows[torch.searchsorted(self.first_rows, rows, right=True) - 1]
        patch = torch.arange(self.squares.shape[1])
        passed = rows[:, None] - torch.minimum((patch + 1) * self.patch_len, torch.tensor(horizon))
        first = torch.maximum(passed - self.span + 1, first_of_series[:, None])
        low = torch.searchsorted(self.rows, first)
        high = torch.maximum(torch.searchsorted(self.rows, passed, right=True), low)
        known, count = total[high, patch] - total[low, patch], (high - low)[..., None]
        factor = ((self.prior + known) / (self.prior + count)).sqrt()
        return factor.repeat_interleave(self.patch_len, dim=1)[:, :horizon]
