"""What a model says of the next patches, and how states write and read their buffers."""
from dataclasses import dataclass, replace

import torch


@dataclass
class Prediction:
    """Predictions of consecutive patches, in data units; the first is of the first patch that the state lacks.

    mean [B, n, P, C]; logvar the same shape, or None for a model without a variance head;
    scale [B, n, 1, C]: the normalisation stdev that each prediction was made with (ones without norm).
    unit [B, 1, 1, C]: the normalisation stdev of the context (of the target's, in its draft's predictions).
    n = k + 1 for k patches given; a draft that speaks of J patches ahead gives n = J where no patches are given.
    """

    mean: torch.Tensor
    logvar: torch.Tensor | None
    scale: torch.Tensor
    unit: torch.Tensor

    @classmethod
    def of_heads(cls, mean, logvar, stdev: torch.Tensor, unit: torch.Tensor) -> "Prediction":
        """From mean and logvar [B, n, J, P, C], stdev [B, n or 1, 1, C] at n positions, and the unit."""
        n, J = mean.shape[1:3]

        def pick(part):  # one position: all it says of the future; several: the next patch of each
            return None if part is None else part[:, 0] if n == 1 else part[:, :, 0]
        scale = stdev.expand(-1, J if n == 1 else n, -1, -1)
        return cls(pick(mean), pick(logvar), scale, unit)

    def shifted(self, by: torch.Tensor) -> "Prediction":
        return replace(self, mean=self.mean + by)

    def at(self, rows: torch.Tensor, position) -> "Prediction":
        """One prediction of each of some rows [r]: n = 1."""
        parts = (None if part is None else part[rows, position][:, None]
                 for part in (self.mean, self.logvar, self.scale))
        return Prediction(*parts, self.unit[rows])

    def first(self, count: int) -> "Prediction":
        logvar = None if self.logvar is None else self.logvar[:, :count]
        return Prediction(self.mean[:, :count], logvar, self.scale[:, :count], self.unit)


def write_after(buffer: torch.Tensor, times: torch.Tensor, values: torch.Tensor) -> None:
    """buffer[b, times[b] + j] = values[b, j] for values [B, k, ...]"""
    rows = torch.arange(len(times), device=times.device)[:, None]
    buffer[rows, times[:, None] + torch.arange(values.shape[1], device=times.device)] = values


def read_at(buffer: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """buffer [B, T, ...] at times [R, m] -> [B, m, ...]"""
    if times.shape[0] == 1:
        return buffer.index_select(1, times[0])
    return buffer[torch.arange(len(times), device=times.device)[:, None], times]
