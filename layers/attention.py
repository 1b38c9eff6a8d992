"""Timer-XL's time attention: rotary positions, a binary variable bias and the multivariate causal mask.

Tokens are laid out variable by variable: token c*N + t is patch t of variable c.
"""
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from layers.rotary import apply_rotary, rotary_tables


@dataclass
class TokenLayout:
    """What attention must know about the C*N tokens of a window; built once a shape, shared by all layers.

    rotary: tables of `rotary_tables` for positions c*N + t.
    same_variable: [C*N, C*N] long, 1 where query and key belong to one variable.
    visible: [C*N, C*N] bool, True where the query (row) may look at the key (column).
    last: [C] indices of the newest token of every variable.
    """

    rotary: tuple
    same_variable: torch.Tensor
    visible: torch.Tensor
    last: torch.Tensor

    @classmethod
    @lru_cache(maxsize=32)  # noqa: B019 (keeps classes alive, of which there is one)
    @torch.inference_mode(False)  # kept between calls: made while testing, it must serve a later training too
    def build(cls, variables: int, patches: int, head_dim: int, covariate: bool, device) -> "TokenLayout":
        token = torch.arange(variables * patches, device=device)
        variable, time = token // patches, token % patches
        same = variable[:, None] == variable[None, :]
        past = time[None, :] <= time[:, None]
        if covariate:
            # a variable sees itself causally; the last one also sees every token of the others
            is_last = variable == variables - 1
            visible = (same & past) | (is_last[:, None] & ~is_last[None, :])
        else:
            visible = past
        last = torch.arange(1, variables + 1, device=device) * patches - 1
        return cls(rotary_tables(token, head_dim), same.long(), visible, last)


class VariableBias(nn.Module):
    """One learned number a head for 'different variable' (row 0) and one for 'same variable' (row 1)."""

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

    def forward(self, q, k, v, layout: TokenLayout, queries=None, want_weights: bool = False):
        """q [B, heads, Tq, E], k and v [B, heads, C*N, E] -> ([B, heads, Tq, E], weights or None).

        queries: indices of the tokens that q holds, None for all of them.
        """
        same, visible, rotary_q = layout.same_variable, layout.visible, layout.rotary
        if queries is not None:
            same, visible = same[queries], visible[queries]
            rotary_q = tuple(table[queries] for table in rotary_q)
        q, k = apply_rotary(q, rotary_q), apply_rotary(k, layout.rotary)
        scale = q.shape[-1] ** -0.5
        bias = (self.attn_bias(same) * scale).masked_fill(~visible, float("-inf")).to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        if self.fused and not want_weights:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=dropout), None
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

    def forward(self, x, layout: TokenLayout, queries=None, want_weights: bool = False):
        """x [B, C*N, D] -> ([B, Tq, D], weights or None); `queries` picks the tokens that are answered."""
        asked = x if queries is None else x[:, queries]
        q = self._heads(self.query_projection(asked))
        k, v = self._heads(self.key_projection(x)), self._heads(self.value_projection(x))
        mixed, weights = self.inner_attention(q, k, v, layout, queries, want_weights)
        return self.out_projection(mixed.transpose(1, 2).flatten(-2)), weights
