"""Scores of sampled paths, summed batch by batch: CRPS, energy score, coverage, quantiles, PIT.

Everything is in standardised units, over every element of every window once. A path is [H, C]; S paths a window.
"""
import torch

BANDS = (50, 80, 95)
QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
PIT_BINS = 20


def quantile(ordered: torch.Tensor, level: float) -> torch.Tensor:
    """The quantile of S paths, ascending in dimension 1: [B, S, ...] -> [B, ...].

    Place level * (S + 1) - 1, between the neighbours: as often as `level` says, a further path is below it. (The usual
    level * (S - 1) makes bands of few paths too narrow.) Outside of the paths it is the outermost of them.
    """
    last = ordered.shape[1] - 1
    place = min(max(level * (last + 2) - 1, 0.0), float(last))
    below = min(int(place), max(last - 1, 0))
    return torch.lerp(ordered[:, below], ordered[:, min(below + 1, last)], place - below)


def crps(ordered: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Fair CRPS of S ascending paths [B, S, ...] for truth [B, ...]: [B, ...].

    mean |x - y| - sum_{i<j} (x_j - x_i) / (S (S - 1)). In expectation the CRPS of the law itself, whatever S is.
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
    # not by products of matrices: they lose the digits that near paths differ in
    pairs = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=(1, 2)) / 2
    return near - pairs / (S * (S - 1))


class PathMetrics:
    """Scores over all windows; patch by patch too, since uncertainty grows with the lead."""

    def __init__(self, patch_len: int):
        self.patch_len, self.windows, self.elements = patch_len, 0, 0
        self.sums, self.by_patch, self.ranks = {}, {}, None

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

    def _add(self, name: str, values: torch.Tensor, by_patch: dict | None = None) -> None:
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

        A rank among S paths stands for an interval of length 1 / (S + 1), shared out among the bins that it meets.
        """
        edges = torch.linspace(0, 1, PIT_BINS + 1, dtype=torch.float64)
        shares = torch.cat([torch.zeros(1, dtype=torch.float64), self.ranks.double().cumsum(0) / self.ranks.sum()])
        place = edges * len(self.ranks)
        whole = place.long().clamp(max=len(self.ranks) - 1)
        cumulated = torch.lerp(shares[whole], shares[whole + 1], place - whole)
        return (PIT_BINS * cumulated.diff()).tolist()

    def result(self) -> dict:
        if not self.windows:
            raise ValueError("no window was measured")
        means = {name: value / self.elements for name, value in self.sums.items() if name != "energy_score"}
        quantiles = {f"{level:g}": {name: means.pop(f"{name}_{level:g}") for name in ("loss", "below_pct")}
                     for level in QUANTILES}
        by_patch = {name: (total / number).tolist() for name, (total, number) in self.by_patch.items()}
        return means | {"energy_score": self.sums["energy_score"] / self.windows, "quantiles": quantiles,
                        "by_patch": by_patch, "pit": self.pit(), "windows": self.windows}
