"""Timer-XL's time attention: rotary positions, a binary variable bias and the multivariate causal mask.

Inside the transformer, tokens are laid out patch by patch: token t*C + c is patch t of variable c. So the newest
patches are the last tokens, and a cache grows at its end. The public checkpoints fix the rotary POSITION c*N + t; the
order of tokens affects nothing else.
"""
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from layers.rotary import apply_rotary, rotary_table

# Most pairs of query and key that are looked at at once, per head: more are split into parts, one after the other, so
# that the memory of a pass grows with its tokens and not with their square. 2**22 is 2048 tokens that see each other.
MOST_PAIRS = 2**22
MOST_KEPT = 2**17  # most pairs whose bias a layer keeps for later passes: 4 MiB with 8 heads


@dataclass
class TokenLayout:
    """Attention metadata for m new patches of C variables that attend to T patches; shared by all layers.

    times [R, m]: time index of the new patches; R is 1 if all rows of the batch agree, else the batch size.
    keys [R or 1, T]: time index of the patches that they attend to; first_key: the first of them, where they are
    consecutive and the same for all rows, else None.
    rotary: table for the new tokens, [R, 1, m*C, head_dim // 2].
    span: number of patches that a token sees (None: all).
    first: time index of the first new patch, where the new patches are consecutive, the same for all rows, and the last
    of those attended to; else None. What may see what then depends on the numbers of patches alone.
    """

    times: torch.Tensor
    keys: torch.Tensor
    first_key: int | None
    rotary: torch.Tensor
    variables: int
    covariate: bool
    span: int | None
    first: int | None = None

    @cached_property
    def whole(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """`seen` of all new tokens, computed once for all layers; None if it has to be computed part by part."""
        m, T = self.times.shape[1] * self.variables, self.keys.shape[1] * self.variables
        return self._compare(slice(0, m)) if self.times.shape[0] * m * T <= MOST_PAIRS else None

    @cached_property
    def within(self) -> torch.Tensor:
        """For attention within each variable: which patches (column) a new one (row) sees, bool [R, 1, m, T]."""
        return (self.keys[:, None] <= self.times.clamp(min=0)[..., None])[:, None]

    @classmethod
    def build(cls, times: torch.Tensor, keys: "int | torch.Tensor", variables: int, stride: int, head_dim: int,
              covariate: bool = False, span: int | None = None, first_key: int = 0,
              whole_head: bool = False) -> "TokenLayout":
        """keys: number of patches from `first_key` on, or their time indices [R, T]; stride: N of the position c*N + t;
        whole_head: see `layers.rotary`.

        A negative time means no patch: its token sees the first patch, so that everything stays finite.
        """
        rotary = rotary_of(times, variables, stride, head_dim, whole_head)
        if isinstance(keys, torch.Tensor):
            return cls(times, keys, None, rotary, variables, covariate, span)
        listed = torch.arange(first_key, first_key + keys, device=times.device)[None]
        return cls(times, listed, first_key, rotary, variables, covariate, span)

    @classmethod
    def of_newest(cls, patches: int, first: int, first_key: int, variables: int, span: int | None,
                  rotary: torch.Tensor) -> "TokenLayout":
        """The layout of the newest `patches` of every row, from time `first` on, which attend to those from `first_key`
        on and to one another; rotary: table of all tokens from time 0 on."""
        last = first + patches
        every = torch.arange(first_key, last, device=rotary.device)[None]
        rotary = rotary[:, :, first * variables:last * variables]
        return cls(every[:, first - first_key:], every, first_key, rotary, variables, False, span, first)

    @classmethod
    @lru_cache(maxsize=32)  # noqa: B019 (keeps classes alive, of which there is one)
    @torch.inference_mode(False)  # cached across calls: a layout made in testing must also serve later training
    def of_window(cls, patches: int, variables: int, stride: int, head_dim: int, covariate: bool, span, device,
                  whole_head: bool = False):
        """The layout of a pass over a whole series: every patch is new and nothing is cached."""
        times = torch.arange(patches, device=device)[None]
        layout = cls.build(times, patches, variables, stride, head_dim, covariate, span, whole_head=whole_head)
        layout.first = 0
        layout.whole, layout.within  # noqa: B018 (now, outside of inference mode)
        return layout

    def parts(self, queries: int, rows: int) -> list[slice]:
        """The last `queries` of the new tokens, in parts of at most MOST_PAIRS (query, key) pairs in `rows` rows."""
        last, T = self.times.shape[1] * self.variables, self.keys.shape[1] * self.variables
        size = max(1, MOST_PAIRS // (rows * T))
        return [slice(first, min(first + size, last)) for first in range(last - queries, last, size)]

    def seen(self, queries: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """For some of the new tokens: same_variable [q, T*C] long, 1 where query and key belong to one variable, and
        visible [R, 1, q, T*C] bool, True where the query (row) may attend to the key (column)."""
        if self.whole is None:
            return self._compare(queries)
        same, visible = self.whole
        return same[queries], visible[:, :, queries]

    def _compare(self, queries: slice) -> tuple[torch.Tensor, torch.Tensor]:
        C, device = self.variables, self.times.device
        query = torch.arange(queries.start, queries.stop, device=device)
        query_variable, key_variable = query % C, torch.arange(C, device=device).repeat(self.keys.shape[1])
        query_time = self.times[:, query // C].clamp(min=0)[..., None]
        key_time = self.keys.repeat_interleave(C, dim=1)[:, None]
        same = query_variable[:, None] == key_variable
        visible = key_time <= query_time  # [R, q, T*C]
        if self.span is not None:
            visible &= key_time > query_time - self.span
        if self.covariate:
            # a variable sees itself causally; the last one also sees every token of the others
            last = C - 1
            visible = (same & visible) | ((query_variable == last)[:, None] & (key_variable != last))
        return same.long(), visible[:, None]


def rotary_of(times: torch.Tensor, variables: int, stride: int, head_dim: int,
              whole_head: bool = False) -> torch.Tensor:
    """times [R, m] -> the table of their tokens [R, 1, m*C, head_dim // 2]."""
    variable = torch.arange(variables, device=times.device)
    return rotary_table((variable * stride + times[..., None]).flatten(1), head_dim, whole_head)[:, None]


class VariableBias(nn.Module):
    """One learned number per head for 'different variable' (row 0) and one for 'same variable' (row 1)."""

    def __init__(self, n_heads: int):
        super().__init__()
        self.emb = nn.Embedding(2, n_heads)

    def forward(self, same_variable: torch.Tensor) -> torch.Tensor:
        return self.emb(same_variable).permute(2, 0, 1)  # [heads, queries, keys]


class TimeAttention(nn.Module):
    """softmax((q.k + bias + mask) / sqrt(E)) v, with the bias INSIDE the scale as in the public checkpoints."""

    def __init__(self, n_heads: int, dropout: float, fused: bool):
        super().__init__()
        self.attn_bias = VariableBias(n_heads)
        self.dropout = dropout
        self.fused = fused
        self.kept: tuple[tuple, torch.Tensor] | None = None  # see `_bias`

    def forward(self, q, k, v, layout: TokenLayout, want_weights: bool = False):
        """q [B, heads, Tq, E] of the newest tokens, k and v [B, heads, T*C, E], already rotated
        -> ([B, heads, Tq, E], weights or None)."""
        fused = self.fused and not want_weights
        # fused, the only thing of the size of queries times keys is the bias, which the rows of a batch may share
        parts = layout.parts(q.shape[2], layout.times.shape[0] if fused else q.shape[0])
        if want_weights or len(parts) == 1:
            asked = slice(parts[0].start, parts[-1].stop)
            return self._mix(q, k, v, self._bias(layout, asked, q), fused, want_weights)
        before = parts[0].start
        return torch.cat([self._mix(q[:, :, part.start - before:part.stop - before], k, v,
                                    self._bias(layout, part, q), fused)[0] for part in parts], dim=2), None

    def _bias(self, layout: TokenLayout, queries: slice, q: torch.Tensor) -> torch.Tensor:
        """What is added to q.k of these new tokens, [heads or R, heads, Tq, T*C], minus infinity where a key is hidden.

        In a layout with a `first` time it depends on the numbers of patches alone, and that of fewer patches is a part
        of that of more: in testing the widest so far is kept, until the weights change. It takes as long as a fifth of
        the pass of a small model.
        """
        scale, m, T = q.shape[-1] ** -0.5, layout.times.shape[1], layout.keys.shape[1]
        C, weight = layout.variables, self.attn_bias.emb.weight
        pairs = (T * C) ** 2
        if layout.first is None or pairs > min(MOST_KEPT, MOST_PAIRS) or not torch.is_inference_mode_enabled():
            return self._computed(layout.seen(queries), scale).to(q.dtype)
        of = (C, layout.span, layout.covariate, q.dtype, weight.device, weight.data_ptr(), weight._version)
        kept = self.kept
        if kept is None or kept[0] != of or kept[1].shape[-2] < T * C:
            every = TokenLayout.of_window(T, C, T, q.shape[-1], layout.covariate, layout.span, q.device)
            bias = self._computed(every.seen(slice(0, T * C)), scale).to(q.dtype)
            kept = self.kept = of, F.pad(bias, (0, -T * C % 8))  # a kernel of GPUs copies what is not aligned
        before = (T - m) * C
        return kept[1][..., before + queries.start:before + queries.stop, :T * C]

    def _computed(self, seen: tuple[torch.Tensor, torch.Tensor], scale: float) -> torch.Tensor:
        same_variable, visible = seen
        return (self.attn_bias(same_variable) * scale).masked_fill(~visible, float("-inf"))

    def _mix(self, q, k, v, bias, fused: bool, want_weights: bool = False):
        scale = q.shape[-1] ** -0.5
        dropout = self.dropout if self.training else 0.0
        if fused:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout), None
        weights = torch.softmax(q @ k.transpose(-1, -2) * scale + bias, dim=-1)
        mixed = F.dropout(weights, dropout, self.training) @ v
        return mixed, weights if want_weights else None


class AttentionLayer(nn.Module):
    """Projections around `TimeAttention`; key names follow the public checkpoints."""

    def __init__(self, d_model: int, n_heads: int, dropout: float, fused: bool):
        super().__init__()
        self.n_heads = n_heads
        self.inner_attention = TimeAttention(n_heads, dropout, fused)
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)

    def _heads(self, x):
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, x, layout: TokenLayout, newest: int | None = None, cache=None, want_weights: bool = False):
        """x [B, m*C, D] -> ([B, Tq, D], weights or None).

        newest: return outputs for the final `newest` tokens only (None: all). cache: a `layers.cache.LayerCache` that
        stores the keys and values of these tokens and returns those of all T patches.
        """
        asked = x if newest is None else x[:, -newest:]
        q = self._heads(self.query_projection(asked))
        k, v = self._heads(self.key_projection(x)), self._heads(self.value_projection(x))
        q = apply_rotary(q, layout.rotary[:, :, -q.shape[2]:])
        k = apply_rotary(k, layout.rotary)
        if cache is not None:
            k, v = cache.store(k, v, layout)
        mixed, weights = self.inner_attention(q, k, v, layout, want_weights)
        return self.out_projection(mixed.transpose(1, 2).flatten(-2)), weights
