"""The decoder-only stack of TimesFM 2.5: norms before and after every part, and of queries and keys after rotation.

Key names follow the public checkpoint, below `blocks.attn_layers`, which it calls `stacked_xf`.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from layers.attention import TokenLayout
from layers.rotary import apply_rotary_to_halves
from layers.transformer import run_layers

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale, over the last dimension."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale.to(x.dtype), EPSILON)


class PerDimScale(nn.Module):
    """A learned factor for each dimension of a query, in the place of 1 / sqrt(head_dim)."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.per_dim_scale = nn.Parameter(torch.zeros(head_dim))

    def forward(self) -> torch.Tensor:
        """The factors [head_dim]: 1 / sqrt(head_dim) where the parameter is 0, as 1 / softplus(0) = log2(e)."""
        return F.softplus(self.per_dim_scale) * (math.log2(math.e) / math.sqrt(len(self.per_dim_scale)))


class NormedAttention(nn.Module):
    """Causal attention over the tokens of one series, of whose queries and keys the norm is taken after rotation.

    So a score depends on the positions themselves, not on their distance alone: a series has to be counted from its
    own beginning.
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.query_ln, self.key_ln = RMSNorm(d_model // n_heads), RMSNorm(d_model // n_heads)
        self.per_dim_scale = PerDimScale(d_model // n_heads)

    def forward(self, x: torch.Tensor, layout: TokenLayout, newest: int | None = None, cache=None,
                want_weights: bool = False):
        """As `layers.attention.AttentionLayer`, for layouts of one variable; layout.rotary turns whole heads."""
        projected = self.qkv_proj(x).unflatten(-1, (3, self.n_heads, -1)).transpose(1, 3)  # [R, heads, 3, m, E]
        factors = torch.stack([self.query_ln.scale * self.per_dim_scale(), self.key_ln.scale])[:, None]  # [2, 1, E]
        rotated = apply_rotary_to_halves(projected[:, :, :2], layout.rotary[:, :, None])
        q, k = (F.rms_norm(rotated, rotated.shape[-1:], eps=EPSILON) * factors).unbind(2)
        v = projected[:, :, 2]
        if newest is not None:
            q = q[:, :, -newest:]
        if cache is not None:
            k, v = cache.store(k, v, layout)
        visible = layout.within[:, :, -q.shape[2]:]
        weights = None
        if want_weights:
            weights = (q @ k.transpose(-1, -2)).masked_fill(~visible, float("-inf")).softmax(dim=-1)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=1.0)
        return self.out(mixed.transpose(1, 2).flatten(-2)), weights


class NormedLayer(nn.Module):
    """x = x + post_attn_ln(attn(pre_attn_ln(x))); x = x + post_ff_ln(ff1(silu(ff0(pre_ff_ln(x)))))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int):
        super().__init__()
        self.pre_attn_ln, self.post_attn_ln = RMSNorm(d_model), RMSNorm(d_model)
        self.attn = NormedAttention(d_model, n_heads)
        self.pre_ff_ln, self.post_ff_ln = RMSNorm(d_model), RMSNorm(d_model)
        self.ff0, self.ff1 = nn.Linear(d_model, d_ff, bias=False), nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: torch.Tensor, layout: TokenLayout, newest: int | None = None, cache=None,
                want_weights: bool = False):
        mixed, weights = self.attn(self.pre_attn_ln(x), layout, newest, cache, want_weights)
        x = self.post_attn_ln(mixed) + (x if newest is None else x[:, -newest:])
        return self.post_ff_ln(self.ff1(F.silu(self.ff0(self.pre_ff_ln(x))))) + x, weights


class NormedBlock(nn.Module):
    """A stack of `NormedLayer`, which nothing closes; called like `layers.transformer.TimerBlock`."""

    def __init__(self, e_layers: int, d_model: int, n_heads: int, d_ff: int):
        super().__init__()
        self.attn_layers = nn.ModuleList(NormedLayer(d_model, n_heads, d_ff) for _ in range(e_layers))

    def forward(self, x: torch.Tensor, layout: TokenLayout, newest: int | None = None, caches=None,
                want_weights: bool = False):
        return run_layers(list(self.attn_layers), x, layout, newest, caches, want_weights)
