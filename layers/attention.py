"""Timer-XL's time attention: rotary positions, a binary variable bias and the multivariate causal mask.

Inside the transformer, tokens are laid out patch by patch: token t*C + c is patch t of variable c. So the newest
patches are the last tokens, and a cache grows at its end. The public checkpoints fix the rotary POSITION c*N + t; the
order of tokens affects nothing else.
"""
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from layers.rotary import apply_rotary, rotary_tables


@dataclass
class TokenLayout:
    """Attention metadata for m new patches of C variables that attend to T patches; shared by all layers.

    times [R, m]: time index of the new patches; R is 1 if all rows of the batch agree, else the batch size.
    rotary: tables for the new tokens, [R, 1, m*C, head_dim // 2].
    same_variable: [m*C, T*C] long, 1 where query and key belong to one variable.
    visible: [R, 1, m*C, T*C] bool, True where the query (row) may attend to the key (column).
    """

    times: torch.Tensor
    rotary: tuple
    same_variable: torch.Tensor
    visible: torch.Tensor

    @classmethod
    def build(cls, times: torch.Tensor, keys: int, variables: int, stride: int, head_dim: int,
              covariate: bool = False, span: int | None = None) -> "TokenLayout":
        """keys: T; stride: N of the position c*N + t; span: number of patches that a token sees (None: all).

        A negative time means no patch: its token sees the first patch, so that everything stays finite.
        """
        variable = torch.arange(variables, device=times.device)
        position = (variable * stride + times[..., None]).flatten(1)  # [R, m*C]
        rotary = tuple(table[:, None] for table in rotary_tables(position, head_dim))
        query_variable = variable.repeat(times.shape[1])
        key_variable = variable.repeat(keys)
        same = query_variable[:, None] == key_variable
        query_time = times.clamp(min=0).repeat_interleave(variables, dim=1)
        key_time = torch.arange(keys, device=times.device).repeat_interleave(variables)
        past = key_time <= query_time[..., None]  # [R, m*C, T*C]
        if span is not None:
            past &= key_time > query_time[..., None] - span
        if covariate:
            # a variable sees itself causally; the last one also sees every token of the others
            last = variables - 1
            visible = (same & past) | ((query_variable == last)[:, None] & (key_variable != last))
        else:
            visible = past
        return cls(times, rotary, same.long(), visible[:, None])

    @classmethod
    @lru_cache(maxsize=32)  # noqa: B019 (keeps classes alive, of which there is one)
    @torch.inference_mode(False)  # cached across calls: a layout made in testing must also serve later training
    def of_window(cls, patches: int, variables: int, stride: int, head_dim: int, covariate: bool, span, device):
        """The layout of a pass over a whole series: every patch is new and nothing is cached."""
        times = torch.arange(patches, device=device)[None]
        return cls.build(times, patches, variables, stride, head_dim, covariate, span)


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

    def forward(self, q, k, v, layout: TokenLayout, want_weights: bool = False):
        """q [B, heads, Tq, E] of the newest tokens, k and v [B, heads, T*C, E], already rotated
        -> ([B, heads, Tq, E], weights or None)."""
        asked = slice(-q.shape[2], None)
        scale = q.shape[-1] ** -0.5
        bias = self.attn_bias(layout.same_variable[asked]) * scale
        bias = bias.masked_fill(~layout.visible[:, :, asked], float("-inf")).to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        if self.fused and not want_weights:
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
        q = apply_rotary(q, tuple(table[:, :, -q.shape[2]:] for table in layout.rotary))
        k = apply_rotary(k, layout.rotary)
        if cache is not None:
            k, v = cache.store(k, v, layout)
        mixed, weights = self.inner_attention(q, k, v, layout, want_weights)
        return self.out_projection(mixed.transpose(1, 2).flatten(-2)), weights
