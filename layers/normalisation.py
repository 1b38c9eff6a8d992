"""Normalisation of patches: statistics of a window or of every patch's own trailing window, and the way back.

Patches are [B, T, P, C]; statistics are [B, T, 1, C], or [B, 1, 1, C] where one pair serves the whole window.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

VARIANCE_FLOOR = 1e-5
JUMP_LIMIT = 5.0
# Least deviation of values that are divided by it as it is: what float32 resolves at their level, and at zero. Smaller
# ones are rounding, and nothing at all for a constant window, whose forecast stays at its level then.
RESOLUTION, LEAST = 2.0**-23, 1e-12
SPREAD_FLOOR = 1e-6


@dataclass
class PatchStats:
    """mean, stdev in data units.

    features [B, T, C, 2], or None: change of level and scale since the previous patch (causal normalisation only).
    """

    mean: torch.Tensor
    stdev: torch.Tensor
    features: torch.Tensor | None = None

    @classmethod
    def of_window(cls, patches: torch.Tensor) -> "PatchStats":
        """Mean and sqrt(biased variance + 1e-5) per variable, over all steps of patches [B, T, P, C]."""
        mean = patches.mean(dim=(1, 2), keepdim=True)
        variance = patches.var(dim=(1, 2), keepdim=True, unbiased=False)
        return cls(mean.detach(), torch.sqrt(variance + VARIANCE_FLOOR).detach())

    @property
    def unit(self) -> torch.Tensor:
        """The unit of window-normalised quantities."""
        return self.stdev

    @classmethod
    def identity(cls, patches: torch.Tensor) -> "PatchStats":
        """Statistics that change nothing, for models without `use_norm`."""
        zero = patches.new_zeros(patches.shape[0], 1, 1, patches.shape[3])
        return cls(zero, torch.ones_like(zero))

    @classmethod
    def causal(cls, moments: torch.Tensor, present: torch.Tensor | None, window: int) -> "PatchStats":
        """Statistics of each patch's own trailing window, from the moments of single patches.

        moments [2, B, window + T, C]: mean and biased variance of consecutive patches, of which the last T get
        statistics; present [B or 1, window + T] bool, False before the series begins, where windows are shorter; None
        if it has begun.
        The window of patch t is patches t - window + 1 .. t. Features: (m[t-1] - m[t]) / s[t], clamped to +-5, and
        log(s[t-1] / s[t]); zero for the first patch of a series.
        """
        mean, variance = moments.unfold(2, window, 1)  # each [B, T + 1, C, window]
        # law of total variance: no cancellation, even far from zero
        if present is None:
            between, level = torch.var_mean(mean, -1, correction=0)
            spread = variance.mean(-1) + between
        else:
            weight = present.to(mean.dtype).unfold(1, window, 1)[:, :, None]
            weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
            level = (mean * weight).sum(-1)
            spread = ((variance + (mean - level[..., None]).square()) * weight).sum(-1)
        stdev = torch.sqrt(spread + VARIANCE_FLOOR)
        jump = ((level[:, :-1] - level[:, 1:]) / stdev[:, 1:]).clamp(-JUMP_LIMIT, JUMP_LIMIT)
        growth = torch.log(stdev[:, :-1] / stdev[:, 1:])
        features = torch.stack([jump, growth], dim=-1)
        if present is not None:
            features = features * present[:, window - 1:-1, None, None]  # the first patch has none before it
        return cls(level[:, 1:, None].detach(), stdev[:, 1:, None].detach(), features.detach())

    @classmethod
    def causal_of(cls, patches: torch.Tensor, window: int) -> "PatchStats":
        """`causal` for all patches [B, T, P, C] of a series from its beginning."""
        moments = F.pad(patch_moments(patches), (0, 0, window, 0))
        present = torch.arange(-window, patches.shape[1], device=patches.device)[None] >= 0
        return cls.causal(moments, present, window)

    def newest(self, count: int) -> "PatchStats":
        """Statistics of the last `count` patches; those of a whole window are returned as they are."""
        if self.mean.shape[1] == 1:
            return self
        features = None if self.features is None else self.features[:, -count:]
        return replace(self, mean=self.mean[:, -count:], stdev=self.stdev[:, -count:], features=features)

    def select(self, rows: torch.Tensor) -> "PatchStats":
        """Of these rows, without features."""
        return replace(self, mean=self.mean[rows], stdev=self.stdev[rows], features=None)

    def normalise(self, patches: torch.Tensor) -> torch.Tensor:
        return (patches - self.mean) / self.stdev

    def denormalise(self, mean: torch.Tensor) -> torch.Tensor:
        """mean [B, T, J, P, C], normalised, -> data units."""
        return mean * self.stdev[:, :, None] + self.mean[:, :, None]

    def denormalise_logvar(self, logvar: torch.Tensor) -> torch.Tensor:
        return logvar + 2 * torch.log(self.stdev[:, :, None])


@dataclass
class SampleStats(PatchStats):
    """Mean and UNBIASED standard deviation, without a floor, as Timer's public code has them.

    Values that do not vary (see RESOLUTION) are divided by a tiny number instead of zero. Their `unit` is that of any
    other model, so that rules do not judge their rounding.
    """

    @property
    def unit(self) -> torch.Tensor:
        return self.stdev.clamp(min=VARIANCE_FLOOR ** 0.5)

    @classmethod
    def of(cls, patches: torch.Tensor, each: bool = False) -> "SampleStats":
        """Of all steps of patches [B, T, P, C]: [B, 1, 1, C]; each: of every patch by itself, [B, T, 1, C]."""
        variance, mean = torch.var_mean(patches, dim=2 if each else (1, 2), keepdim=True, correction=1)
        return cls._of_moments(mean, variance)

    @classmethod
    def of_first(cls, patches: torch.Tensor, counts: torch.Tensor) -> "SampleStats":
        """Of the first counts [B] of patches [B, T, P, C]: [B, 1, 1, C]."""
        T, P = patches.shape[1:3]
        present = (torch.arange(T, device=patches.device) < counts[:, None])[..., None, None]
        steps = (counts * P)[:, None, None, None]

        def total(values: torch.Tensor) -> torch.Tensor:
            return values.where(present, 0).sum(dim=(1, 2), keepdim=True)
        mean = total(patches) / steps
        return cls._of_moments(mean, total((patches - mean).square()) / (steps - 1))

    @classmethod
    def _of_moments(cls, mean: torch.Tensor, variance: torch.Tensor) -> "SampleStats":
        stdev = torch.maximum(variance.sqrt(), RESOLUTION * mean.abs()).clamp(min=LEAST)
        return cls(mean.detach(), stdev.detach())


@dataclass
class PastStats(PatchStats):
    """Mean and biased standard deviation of everything from the beginning of a series to the end of each patch.

    As TimesFM takes them: a deviation below SPREAD_FLOOR divides nothing, so that a constant series stays at its level.
    missing [B, T, P, 1] bool: steps before the series begins, which are 0 when normalised; None where there are none.
    """

    missing: torch.Tensor | None = None

    @property
    def unit(self) -> torch.Tensor:
        return self.stdev.clamp(min=VARIANCE_FLOOR ** 0.5)

    def newest(self, count: int) -> "PastStats":
        missing = None if self.missing is None else self.missing[:, -count:]
        return PastStats(self.mean[:, -count:], self.stdev[:, -count:], None, missing)

    def normalise(self, patches: torch.Tensor) -> torch.Tensor:
        made = (patches - self.mean) / torch.where(self.stdev < SPREAD_FLOOR, 1.0, self.stdev)
        return made if self.missing is None else made.masked_fill(self.missing, 0)


def moments_of_past(moments: torch.Tensor, steps: int, missing: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [B, T, C] of everything up to the end of each patch, from those of the patches.

    moments [2, B, T, C]: mean and biased variance of all patches from the beginning, in double precision; steps: of a
    patch; the first of them lacks `missing`.
    Sums are relative to the first patch, and in double precision: far from zero and after a jump of the level, nothing
    cancels that single precision would have held.
    """
    counts = torch.full((moments.shape[2], 1), steps, dtype=moments.dtype, device=moments.device)
    counts[0] -= missing
    total, origin = counts.cumsum(0), moments[0][:, :1]
    shift = moments[0] - origin
    level = (counts * shift).cumsum(1) / total
    variance = (counts * (moments[1] + shift.square())).cumsum(1) / total - level.square()
    return origin + level, variance.clamp(min=0).sqrt()


def patch_moments(patches: torch.Tensor) -> torch.Tensor:
    """Mean and biased variance of every patch: [B, T, P, C] -> [2, B, T, C]."""
    return torch.stack([patches.mean(dim=2), patches.var(dim=2, unbiased=False)])
