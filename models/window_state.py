"""The *window* implementation of the decoding interface: every prediction re-encodes a window of the last N patches."""
import torch

from models.prediction import Prediction, write_after

# On a CPU a pass over many windows is cut so that its activations stay in the cache: 512 windows of 49 tokens at
# d_model 256 take 370 to 480 ms in parts of 64 and 520 ms at once (2 cores). It also bounds the memory of a pass.
CPU_TOKENS = 3136


class WindowState:
    """Decode state without a cache: each position is a freshly normalised window of the last N patches.

    Exact for every checkpoint: what OpenLTM's rolling forecast computes.
    """

    def __init__(self, model, context: torch.Tensor, room: int):
        """context [B, N, P, C]"""
        B, N, P, C = context.shape
        self.model, self.context_patches = model, N
        # static buffer: appending writes, rolling back only moves `lengths`
        self.series = context.new_zeros(B, N + room, P, C)
        self.series[:, :N] = context
        self.lengths = torch.zeros(B, dtype=torch.long, device=context.device)
        self.unit = model.unit_of(context)

    def append(self, patches: torch.Tensor) -> None:
        """Writes patches [B, k, P, C] after each row's own length."""
        write_after(self.series, self.context_patches + self.lengths, patches)
        self.lengths = self.lengths + patches.shape[1]

    def rollback(self, lengths: torch.Tensor) -> None:
        self.lengths = lengths

    def select(self, rows: torch.Tensor) -> None:
        self.series, self.lengths, self.unit = self.series[rows], self.lengths[rows], self.unit[rows]

    def fan_out(self, samples: int) -> None:
        self.select(torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(samples))

    def windows(self, newest: int) -> torch.Tensor:
        """The windows that end at each row's last `newest` positions, oldest first: [B * newest, N, P, C]."""
        every = self.series.unfold(1, self.context_patches, 1)  # [B, 1 + room, P, C, N], a view
        ends = self.lengths[:, None] - torch.arange(newest - 1, -1, -1, device=self.lengths.device)
        rows = torch.arange(ends.shape[0], device=ends.device)[:, None]
        return every[rows, ends].flatten(0, 1).movedim(-1, 1)

    def predict(self, newest: int) -> Prediction:
        windows = self.windows(newest)
        tokens = windows.shape[1] * windows.shape[3]
        part = max(1, CPU_TOKENS // tokens) if windows.device.type == "cpu" else len(windows)
        parts = [self._predict_after(some) for some in windows.split(part)]

        def joined(values):
            return None if values[0] is None else torch.cat(values).unflatten(0, (-1, newest))
        mean, logvar, stdev = (joined(values) for values in zip(*parts))
        return Prediction.of_heads(mean, logvar, stdev, self.unit)

    def _predict_after(self, windows: torch.Tensor):
        """windows [b, N, P, C] -> mean, logvar [b, J, P, C], stdev [b, 1, C]."""
        hidden, stats, _ = self.model.encode(windows, newest=1)
        mean, logvar = self.model.predict(hidden, stats)
        return mean[:, 0], None if logvar is None else logvar[:, 0], stats.stdev[:, 0]
