"""Rolling by *window*: every prediction re-encodes a freshly normalised window of the last N patches."""
from __future__ import annotations

from typing import Protocol

import torch

from .buffers import cut, each_row, repeated, with_room, write_after
from .interface import Prediction

# On a CPU a pass over many windows is split so that its activations stay in the cache: 512 windows of 49 tokens at
# d_model 256 take 370 to 480 ms in parts of 64 and 520 ms at once (2 cores). It also bounds the memory of a pass.
CPU_TOKENS = 3136
GPU_TOKENS = 2**17  # only for the memory: a GPU is busy with far fewer


class WindowModel(Protocol):
    """What `WindowState` requires of a model. heads_ahead: of `Decodable`."""

    patch_len: int
    heads_ahead: int

    def predict_windows(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """windows [b, N, T, C] -> mean and logvar (or None) [b, J, P, C] of the next J patches, stdev [b, 1, C].

        The last `heads_ahead` of the J are what longer heads say.
        """

    def unit_of(self, context: torch.Tensor) -> torch.Tensor:
        """The normalisation stdev of the patch after context [B, N, T, C]: [B, 1, 1, C]."""


class WindowState:
    """Decode state without a cache. For any model it computes the same as OpenLTM's rolling forecast.

    For a model whose tokens do not depend on later ones, this is another forecast than that of a pass over the whole
    series since the beginning of the context, which a cache computes.
    """

    def __init__(self, model: WindowModel, context: torch.Tensor, room: int):
        """context [B, N, T, C]: in tokens of T steps, of which a patch may have several."""
        self.model, self.context_tokens = model, context.shape[1]
        self.in_patch = model.patch_len // context.shape[2]  # tokens
        self.series = with_room(context, room * self.in_patch)
        self.lengths = torch.zeros(len(context), dtype=torch.long, device=context.device)
        self.unit = model.unit_of(context)

    def append(self, patches: torch.Tensor) -> None:
        write_after(self.series, self.context_tokens + self.lengths * self.in_patch,
                    cut(patches, self.series.shape[2]))
        self.lengths = self.lengths + patches.shape[1]

    def rollback(self, lengths: torch.Tensor | int) -> None:
        self.lengths = each_row(lengths, self.lengths)

    def select(self, rows: torch.Tensor) -> None:
        self.series, self.lengths, self.unit = self.series[rows], self.lengths[rows], self.unit[rows]

    def fan_out(self, samples: int) -> None:
        self.select(repeated(len(self.lengths), samples, self.lengths.device))

    def windows(self, newest: int) -> torch.Tensor:
        """The windows that end at each row's last `newest` positions, oldest first: [B * newest, N, T, C]."""
        return self._cut(*self._places(newest))

    def _places(self, newest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and first token [B * newest] of these windows."""
        starts = self.lengths[:, None] - torch.arange(newest - 1, -1, -1, device=self.lengths.device)
        rows = torch.arange(len(starts), device=starts.device)[:, None]
        return rows.expand(-1, newest).flatten(), starts.flatten() * self.in_patch

    def _cut(self, rows: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        every = self.series.unfold(1, self.context_tokens, 1)  # [B, 1 + room, T, C, N], a view
        return every[rows, starts].movedim(-1, 1)

    def predict_at(self, rows: torch.Tensor,
                   starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """What `WindowModel.predict_windows` says of the windows that begin at these tokens of these rows [b]."""
        return self.model.predict_windows(self._cut(rows, starts))

    def predict(self, newest: int) -> Prediction:
        places = self._places(newest)
        tokens = self.context_tokens * self.series.shape[3]
        part = max(1, (CPU_TOKENS if self.series.device.type == "cpu" else GPU_TOKENS) // tokens)
        # a window is cut when its turn comes: together they hold the series `context_tokens` times
        parts = zip(*(place.split(part) for place in places))
        means, logvars, stdevs = zip(*(self.predict_at(*some) for some in parts))

        def joined(values: tuple[torch.Tensor, ...]) -> torch.Tensor:
            return torch.cat(values).unflatten(0, (-1, newest))
        logvar = None if logvars[0] is None else joined(logvars)
        return Prediction.of_heads(joined(means), logvar, joined(stdevs), self.unit, self.model.heads_ahead)
