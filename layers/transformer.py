"""The decoder-only stack of Timer-XL (post-norm)."""
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from layers.attention import AttentionLayer, TokenLayout
from layers.linear import PointwiseConv

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class TimerLayer(nn.Module):
    """x = norm1(x + attention(x)); x = norm2(x + conv2(act(conv1(x))))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float, activation: str, fused: bool):
        super().__init__()
        self.attention = AttentionLayer(d_model, n_heads, dropout, fused)
        self.conv1, self.conv2 = PointwiseConv(d_model, d_ff), PointwiseConv(d_ff, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x, layout: TokenLayout, newest: int | None = None, cache=None, want_weights: bool = False):
        mixed, weights = self.attention(x, layout, newest, cache, want_weights)
        x = self.norm1((x if newest is None else x[:, -newest:]) + self.dropout(mixed))
        hidden = self.dropout(self.activation(self.conv1(x)))
        hidden = self.dropout(self.conv2(hidden))
        return self.norm2(x + hidden), weights


class TimerBlock(nn.Module):
    """A stack of `TimerLayer`, closed by a layer norm."""

    def __init__(self, e_layers: int, d_model: int, n_heads: int, d_ff: int, dropout: float, activation: str,
                 fused: bool):
        super().__init__()
        self.attn_layers = nn.ModuleList(
            TimerLayer(d_model, n_heads, d_ff, dropout, activation, fused) for _ in range(e_layers))
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: torch.Tensor, layout: TokenLayout, newest: int | None = None, caches=None,
                want_weights: bool = False):
        """x [B, m*C, D], m new patches -> ([B, m*C, D], attention weights of every layer).

        newest: the last layer returns outputs for the final `newest` tokens only, [B, newest, D]: its keys need all
        tokens, its queries and its feed-forward do not. caches: one `LayerCache` per layer, or None for a pass
        without past.
        """
        x, kept = run_layers(list(self.attn_layers), x, layout, newest, caches, want_weights)
        return self.norm(x), kept


def run_layers(layers: Sequence[nn.Module], x: torch.Tensor, layout: TokenLayout, newest: int | None, caches,
               want_weights: bool):
    """See `TimerBlock.forward`."""
    kept, last = [], len(layers) - 1
    for i, layer in enumerate(layers):
        x, weights = layer(x, layout, newest if i == last else None, caches[i] if caches else None, want_weights)
        kept.append(weights)
    return x, kept
