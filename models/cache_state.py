"""Rolling by *cache*: keys and values are kept, and k new patches cost k tokens per variable.

Equal to a pass over the whole series since the beginning of the context if a token does not depend on later ones: with
`norm_mode causal`, whose forecast this is, and without normalisation. For a model that normalises whole windows it
freezes the statistics of the context: an approximation. For the latter two it is used only on request.
"""
import torch

from layers.attention import MOST_PAIRS, TokenLayout
from layers.cache import LayerCache
from layers.normalisation import PatchStats, patch_moments
from utils.buffers import read_at, repeated, with_room, write_after
from utils.interface import Prediction

# A long pass is encoded block by block, which bounds everything but the buffers of the state: at most so many patches
# at once, and so many tokens of the whole batch. The preset takes one block up to a horizon of 1440 at batch 64.
BLOCK_PATCHES, BLOCK_TOKENS = 64, 2**15
# where rows differ in length, their keys within the span are copied only if at least so many times more are held
WORTH_A_COPY = 4


def block_of(rows: int, variables: int) -> int:
    """Number of patches that are encoded at once."""
    return min(BLOCK_PATCHES, max(1, BLOCK_TOKENS // (rows * variables)))


def pairs_at_once(queries: int, keys: int) -> int:
    """Most pairs of so many query and key tokens whose attention is computed at once, per head."""
    return min(queries * keys, max(MOST_PAIRS, keys))


class CacheState:
    """Decode state with a key-value cache. Rows may differ in length; all buffers are static.

    The newest `pending` patches have yet to be encoded. It is one number for the whole batch, known to the host: a row
    with fewer of them encodes some a second time, to the same values.
    """

    def __init__(self, model, context: torch.Tensor, room: int):
        """context [B, N, P, C]"""
        B, N, _, C = context.shape
        self.model, self.context_patches, self.pending = model, N, N
        self.stride = model.stride(N)
        self.series = with_room(context, room)
        self.lengths = torch.zeros(B, dtype=torch.long, device=context.device)
        self.level: int | None = 0  # the common length of all rows, None once they may differ
        self.longest = 0  # upper bound on the lengths of rows
        self.unit = model.unit_of(context)
        self.caches = [LayerCache(B, N + room, C) for _ in model.blocks.attn_layers]
        self.moments: torch.Tensor | None = None
        self.frozen: PatchStats | None = None
        if not model.config.causal:
            self.frozen = model.stats_of(context)
        else:
            self.moments = context.new_zeros(2, B, N + room, C)
            self.moments[:, :, :N] = patch_moments(context)

    def append(self, patches: torch.Tensor) -> None:
        """Stores patches [B, k, P, C]; the next `predict` encodes them."""
        k, times = patches.shape[1], self.context_patches + self.lengths
        write_after(self.series, times, patches)
        if self.moments is not None:
            for buffer, values in zip(self.moments, patch_moments(patches)):
                write_after(buffer, times, values)
        self.lengths = self.lengths + k
        self.level = None if self.level is None else self.level + k
        self.pending, self.longest = self.pending + k, self.longest + k

    def rollback(self, lengths: torch.Tensor) -> None:
        self.lengths, self.level = lengths, None

    def select(self, rows: torch.Tensor) -> None:
        self.series, self.lengths, self.unit = self.series[rows], self.lengths[rows], self.unit[rows]
        if self.moments is not None:
            self.moments = self.moments[:, rows]
        if self.frozen is not None:
            self.frozen = PatchStats(self.frozen.mean[rows], self.frozen.stdev[rows])
        for cache in self.caches:
            cache.select(rows)

    def fan_out(self, samples: int) -> None:
        if self.pending:
            self.predict(1)
        self.select(repeated(len(self.lengths), samples, self.lengths.device))

    def predict(self, newest: int) -> Prediction:
        """Encodes the pending patches, at least the `newest` ones, and predicts after each of the latter."""
        times, most = self._newest_times(max(self.pending, newest))
        m, C = times.shape[1], self.series.shape[3]
        block, parts = block_of(len(self.lengths), C), []
        for first in range(0, m, block):
            last = min(first + block, m)
            wanted = min(last - first, last - (m - newest))
            made = self._encode(times[:, first:last], most - (m - last), max(1, wanted))
            if wanted > 0:
                parts.append(made)
        self.pending = 0
        means, logvars, stdevs = zip(*parts)

        def joined(values):
            return values[0] if len(values) == 1 else torch.cat(values, dim=1)
        logvar = None if logvars[0] is None else joined(logvars)
        return Prediction.of_heads(joined(means), logvar, joined(stdevs), self.unit)

    def _encode(self, times: torch.Tensor, most: int, newest: int):
        """Encodes the patches at times [R, m], the last of which are at `most` - 1 or before, and predicts after the
        `newest` of them: mean, logvar (or None) [B, newest, J, P, C], stdev [B, newest or 1, 1, C]."""
        model, C = self.model, self.series.shape[3]
        stats = self.frozen if self.moments is None else self._causal_stats(times, self.moments)
        assert stats is not None
        keys, first_key = self._keys(times, most)
        layout = TokenLayout.build(times, keys, C, self.stride, model.head_dim, span=model.span, first_key=first_key)
        tokens = model.embed(read_at(self.series, times.clamp(min=0)), stats)
        hidden, _ = model.blocks(tokens, layout, newest * C, self.caches)
        stats = stats.newest(newest)
        return *model.predict(hidden.unflatten(1, (newest, C)), stats), stats.stdev.expand(-1, newest, -1, -1)

    def _keys(self, times: torch.Tensor, most: int) -> tuple[int | torch.Tensor, int]:
        """The patches that those at times [R, m] attend to, as `TokenLayout.build` takes them: `keys`, `first_key`."""
        span = self.model.span
        within = most if span is None else min(most, times.shape[1] + span - 1)
        if self.level is not None:
            return within, most - within
        if most < WORTH_A_COPY * within:
            return most, 0
        first = times[:, :1].clamp(min=span - 1) - (span - 1)  # each row has its own
        return first + torch.arange(within, device=times.device), 0

    def _newest_times(self, m: int):
        """Time indices [R, m] of each row's m newest patches, and the number of patches that a query may attend to."""
        self.longest = min(self.longest, self.series.shape[1] - self.context_patches)
        most = self.context_patches + (self.longest if self.level is None else self.level)
        back = torch.arange(1 - min(m, most), 1, device=self.lengths.device) + self.context_patches - 1
        if self.level is not None:
            return back[None] + self.level, most
        return back + self.lengths[:, None], most  # negative where a row has fewer than m patches

    def _causal_stats(self, times: torch.Tensor, moments: torch.Tensor) -> PatchStats:
        window = self.model.config.norm_window
        before = times[:, :1] - torch.arange(window, 0, -1, device=times.device)
        needed = torch.cat([before, times], dim=1)  # [R, window + m]
        present = needed >= 0
        looked_at = torch.stack([read_at(buffer, needed.clamp(min=0)) for buffer in moments])
        return PatchStats.causal(looked_at, present, window)
