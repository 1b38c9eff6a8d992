"""Window normalisation: statistics of a window, and the way there and back."""
from dataclasses import dataclass

import torch

VARIANCE_FLOOR = 1e-5


@dataclass
class WindowStats:
    """mean, stdev: [B, 1, C] in data units; `stdev` is the unit of window-normalised quantities."""

    mean: torch.Tensor
    stdev: torch.Tensor

    @classmethod
    def of(cls, window: torch.Tensor) -> "WindowStats":
        """Statistics over time of window [B, L, C]: mean and sqrt(biased variance + 1e-5)."""
        mean = window.mean(dim=1, keepdim=True)
        variance = window.var(dim=1, keepdim=True, unbiased=False)
        return cls(mean.detach(), torch.sqrt(variance + VARIANCE_FLOOR).detach())

    @classmethod
    def identity(cls, window: torch.Tensor) -> "WindowStats":
        """Statistics that change nothing, for models without `use_norm`."""
        zero = window.new_zeros(window.shape[0], 1, window.shape[2])
        return cls(zero, torch.ones_like(zero))

    def normalise(self, window: torch.Tensor) -> torch.Tensor:
        return (window - self.mean) / self.stdev

    def denormalise(self, mean: torch.Tensor) -> torch.Tensor:
        return mean * self.stdev + self.mean

    def denormalise_logvar(self, logvar: torch.Tensor) -> torch.Tensor:
        return logvar + 2 * torch.log(self.stdev)
