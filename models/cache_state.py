"""Rolling by *cache*: keys and values are kept, and k new patches cost k tokens per variable.

Equal to a pass over the whole series since the beginning of the context if a token does not depend on later ones: with
`norm_mode causal`, whose forecast this is, and without normalisation. For a Timer-XL that normalises whole windows it
freezes the statistics of the context: an approximation. For the latter two it is used only on request. Timer's public
code rolls this way, see `models.timer`.
"""
import torch

from layers.attention import MOST_PAIRS, TokenLayout
from layers.cache import LayerCache
from models.running_stats import KeptStats
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

    While the host knows one length for all rows, `level`, patches are written and read as slices: no indices, and no
    masks that are made anew for every pass.

    The newest `pending` patches have yet to be encoded. It is one number for the whole batch, known to the host: a row
    with fewer of them encodes some a second time, to the same values.
    """

    def __init__(self, model, context: torch.Tensor, room: int, stats: KeptStats | None = None):
        """context [B, N, P, C]; stats: default, those of the model."""
        B, N, _, C = context.shape
        self.model, self.context_patches, self.pending = model, N, N
        self.stride = model.stride(N)
        self.series = with_room(context, room)
        self.level: int | None = 0  # the common length of all rows, None once they may differ
        self._lengths: torch.Tensor | None = None  # of each row, where they may differ
        self.longest = 0  # upper bound on the lengths of rows
        self.unit = model.unit_of(context)
        self.caches = [LayerCache(B, N + room, C) for _ in model.blocks.attn_layers]
        self.stats = model.running_stats(context, room) if stats is None else stats

    def append(self, patches: torch.Tensor) -> None:
        """Stores patches [B, k, P, C]; the next `predict` encodes them."""
        k = patches.shape[1]
        if self.level is not None:
            first = self.context_patches + self.level
            self.series[:, first:first + k] = patches
            self.stats.write(first, patches)
            self.level += k
        else:
            times = self.context_patches + self.lengths
            write_after(self.series, times, patches)
            self.stats.write_after(times, patches)
            self._lengths = self.lengths + k
        self.pending, self.longest = self.pending + k, self.longest + k

    @property
    def lengths(self) -> torch.Tensor:
        """Patches of each row after the context [B]."""
        if self._lengths is None or self.level is not None:
            return torch.full((len(self.series),), self.level or 0, device=self.series.device)
        return self._lengths

    def rollback(self, lengths: torch.Tensor | int) -> None:
        if isinstance(lengths, int):
            if self.level is not None:
                self.pending = max(0, self.pending - (self.level - lengths))
            self.level, self.longest = lengths, lengths
        else:
            self._lengths, self.level = lengths, None

    def select(self, rows: torch.Tensor) -> None:
        self._lengths = None if self.level is not None else self.lengths[rows]
        self.series, self.unit = self.series[rows], self.unit[rows]
        self.stats.select(rows)
        for cache in self.caches:
            cache.select(rows)

    def settle(self) -> None:
        """Encodes what is pending."""
        if self.pending:
            self.predict(1)

    def fan_out(self, samples: int) -> None:
        self.settle()
        self.select(repeated(len(self.series), samples, self.series.device))

    def predict(self, newest: int) -> Prediction:
        """Encodes the pending patches, at least the `newest` ones, and predicts after each of the latter."""
        times, most = self._newest_times(max(self.pending, newest))
        m, C = len(times) if isinstance(times, range) else times.shape[1], self.series.shape[3]
        block, parts = block_of(len(self.series), C), []
        for first in range(0, m, block):
            last = min(first + block, m)
            wanted = min(last - first, last - (m - newest))
            some = times[first:last] if isinstance(times, range) else times[:, first:last]
            made = self._encode(some, most - (m - last), max(1, wanted))
            if wanted > 0:
                parts.append(made)
        self.pending = 0
        means, logvars, stdevs = zip(*parts)

        def joined(values):
            return values[0] if len(values) == 1 else torch.cat(values, dim=1)
        logvar = None if logvars[0] is None else joined(logvars)
        return Prediction.of_heads(joined(means), logvar, joined(stdevs), self.unit, self.model.heads_ahead)

    def _encode(self, times: torch.Tensor | range, most: int, newest: int):
        """Encodes the patches at times [B, m], or at these of all rows, the last of which are at `most` - 1 or before,
        and predicts after the `newest` of them: mean, logvar (or None) [B, newest, J, P, C], stdev [B, newest or 1, 1,
        C]."""
        model, C = self.model, self.series.shape[3]
        stats = self.stats.at(times)
        if isinstance(times, range):
            held = most if model.span is None else min(most, len(times) + model.span - 1)
            rotary = model.rotary(self.series.shape[1], C, self.stride, self.series.device)
            layout = TokenLayout.of_newest(len(times), times.start, most - held, C, model.span, rotary)
            patches = self.series[:, times.start:times.stop]
        else:
            layout = TokenLayout.build(times, self._keys(times, most), C, self.stride, model.head_dim, span=model.span,
                                       whole_head=model.whole_head)
            patches = read_at(self.series, times.clamp(min=0))
        tokens = model.embed(patches, stats)
        hidden, _ = model.blocks(tokens, layout, newest * C, self.caches)
        stats = stats.newest(newest)
        return *model.predict(hidden.unflatten(1, (newest, C)), stats), stats.unit.expand(-1, newest, -1, -1)

    def _keys(self, times: torch.Tensor, most: int) -> int | torch.Tensor:
        """The patches that those at times [B, m] attend to, as `TokenLayout.build` takes them."""
        span = self.model.span
        within = most if span is None else min(most, times.shape[1] + span - 1)
        if most < WORTH_A_COPY * within:
            return most
        first = times[:, :1].clamp(min=span - 1) - (span - 1)  # each row has its own
        return first + torch.arange(within, device=times.device)

    def _newest_times(self, m: int) -> tuple[torch.Tensor | range, int]:
        """Times of the m newest patches, of all rows or of each [B, m], and the number of patches that a query may
        attend to."""
        if self.level is not None:
            most = self.context_patches + self.level
            return range(most - min(m, most), most), most
        self.longest = min(self.longest, self.series.shape[1] - self.context_patches)
        most = self.context_patches + self.longest
        back = torch.arange(1 - min(m, most), 1, device=self.series.device) + self.context_patches - 1
        return back + self.lengths[:, None], most  # negative where a row has fewer than m patches
