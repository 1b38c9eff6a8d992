"""The decoding interface that the speculative decoder talks to, and its *window* implementation.

A model that can be decoded offers

    state = model.start(context, room)         context [B, L, C]; room: patches that may follow the context
    prediction = model.extend(state, patches)  patches [B, k, P, C] or None -> k + 1 next-patch predictions, ONE pass
    state.append(patch)                        a patch [B, P, C] that is known and needs no prediction of its own yet
    state.rollback(lengths)                    per row: forget everything after `lengths` [B] patches
    state.select(rows)                         keep these rows only: a finished row leaves the batch

`extend` predicts after what the state already holds and after each of the k new patches, so K proposals and the
bonus patch are one call. The decoder never looks inside a state; a cached implementation fits behind the same five
verbs (`append` leaves its patch to the next `extend`, `rollback` writes at an earlier position).
"""
from dataclasses import dataclass

import torch

# On a CPU a pass over many windows is cut so that its activations stay in the cache: 512 windows of 49 tokens at
# d_model 256 take 370 to 480 ms in parts of 64 and 520 ms at once (2 cores). It also bounds the memory of a pass.
CPU_TOKENS = 3136


@dataclass
class Prediction:
    """Next-patch predictions at k + 1 positions, in data units.

    mean [B, k+1, P, C]; logvar the same shape, or None for a model without a variance head;
    scale [B, k+1, 1, C]: the normalisation stdev of the window each prediction was made from (ones without norm).
    """

    mean: torch.Tensor
    logvar: torch.Tensor | None
    scale: torch.Tensor


class WindowState:
    """Decode state of the window implementation: the series so far, per-row lengths, no cache.

    Exact for every checkpoint, as each position is a freshly normalised window of the last N patches.
    """

    def __init__(self, context: torch.Tensor, room: int, patch_len: int):
        B, L, C = context.shape
        self.patch_len, self.context_len = patch_len, L
        # static buffer: appending writes, rolling back only moves `lengths`
        self.series = context.new_zeros(B, L + room * patch_len, C)
        self.series[:, :L] = context
        self.lengths = torch.zeros(B, dtype=torch.long, device=context.device)

    def append(self, patch: torch.Tensor) -> None:
        """Writes patch [B, P, C] after each row's own length."""
        B, P, C = patch.shape
        time = self.context_len + self.lengths[:, None] * P + torch.arange(P, device=patch.device)
        self.series.scatter_(1, time[..., None].expand(B, P, C), patch)
        self.lengths = self.lengths + 1

    def rollback(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths

    def select(self, rows: torch.Tensor) -> None:
        self.series, self.lengths = self.series[rows], self.lengths[rows]

    def windows(self, newest: int) -> torch.Tensor:
        """The windows that end at each row's last `newest` positions, oldest first: [B * newest, L, C]."""
        every = self.series.unfold(1, self.context_len, self.patch_len)  # [B, 1 + room, C, L], a view
        ends = self.lengths[:, None] - torch.arange(newest - 1, -1, -1, device=self.lengths.device)
        rows = torch.arange(ends.shape[0], device=ends.device)[:, None]
        return every[rows, ends].flatten(0, 1).transpose(1, 2)


class WindowDecoding:
    """Gives a model with `predict_next(windows)` the decoding interface by re-encoding windows."""

    def start(self, context: torch.Tensor, room: int) -> WindowState:
        if context.shape[1] % self.patch_len:
            raise ValueError(f"context of {context.shape[1]} steps is not a multiple of the patch ({self.patch_len})")
        return WindowState(context, room, self.patch_len)

    def extend(self, state: WindowState, patches: torch.Tensor | None = None) -> Prediction:
        k = 0 if patches is None else patches.shape[1]
        for i in range(k):
            state.append(patches[:, i])
        windows = state.windows(k + 1)
        tokens = windows.shape[1] * windows.shape[2] // self.patch_len
        part = max(1, CPU_TOKENS // tokens) if windows.device.type == "cpu" else len(windows)
        mean, logvar, scale = zip(*(self.predict_next(some) for some in windows.split(part)))

        def joined(parts):
            return None if parts[0] is None else torch.cat(parts).unflatten(0, (-1, k + 1))

        return Prediction(joined(mean), joined(logvar), joined(scale))
