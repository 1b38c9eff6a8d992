"""Values on the scale of their own context: what a model is given then depends on no other row, nor on the unit."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

ROUNDING = 4 * np.finfo(np.float64).eps  # a spread of a few units in the last place is rounding, not a signal

FAR = 1e18  # standard deviations; float32 holds no squares of larger numbers


@dataclass(frozen=True)
class OwnScale:
    """Mean and standard deviation of windows, per variable, in float64: value = mean + z * deviation.

    With values scaled by 2**exponent to at most 1, deviation is that of `value - origin`, where origin is the newest
    value: exact, so that a large offset costs no digits beyond those the values lack, and no square overflows or
    underflows. All are [..., 1, C]. constant [..., C]: variables without a deviation; they are 0 on this scale, and
    their value again on the way back.
    """

    exponent: np.ndarray
    origin: np.ndarray
    centre: np.ndarray  # mean of `value - origin`
    deviation: np.ndarray

    @classmethod
    def of(cls, windows: np.ndarray) -> OwnScale:
        """Of finite windows [..., L, C]."""
        exponent = np.frexp(np.abs(windows).max(axis=-2, keepdims=True))[1]
        scaled = np.ldexp(windows, -exponent)
        origin = scaled[..., -1:, :]
        gaps = scaled - origin
        varies = np.abs(gaps).max(axis=-2, keepdims=True) > ROUNDING
        centre = np.where(varies, gaps.mean(axis=-2, keepdims=True), 0.0)
        deviation = np.where(varies, np.sqrt(np.square(gaps - centre).mean(axis=-2, keepdims=True)), 0.0)
        return cls(exponent, origin, centre, deviation)

    @property
    def constant(self) -> np.ndarray:
        return self.deviation[..., 0, :] == 0

    def apply(self, values: np.ndarray) -> torch.Tensor:
        """values [..., T, C] -> standard deviations from the mean, float32; see `too_far` for those of other rows."""
        with np.errstate(over="ignore"):
            gaps = np.ldexp(values, -self.exponent) - self.origin - self.centre
            varies = self.deviation > 0
            return torch.from_numpy(np.where(varies, gaps, 0.0) / np.where(varies, self.deviation, 1.0)).float()

    def back(self, values: np.ndarray) -> np.ndarray:
        """Standard deviations from the mean [..., T, C] -> values; infinite where float64 cannot hold them."""
        with np.errstate(over="ignore"):
            return np.ldexp(values * self.deviation + self.centre + self.origin, self.exponent)


def too_far(values: torch.Tensor) -> torch.Tensor:
    """[..., T, C] on an `OwnScale` -> [..., C], True where a value is too large to compute with in float32."""
    return ~(values.abs() < FAR).all(dim=-2)
