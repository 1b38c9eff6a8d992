"""The layer of Timer: rotary positions on whole heads, no bias between variables, a gated feed-forward (post-norm).

Every variable is a sequence by itself: a token sees the past of its own variable only. Tokens are laid out as
everywhere, patch by patch (see `layers.attention`), and taken apart inside the attention. Key names follow the public
checkpoints.
"""
import torch
import torch.nn.functional as F
from torch import nn

from layers.attention import TokenLayout
from layers.rotary import apply_rotary_to_halves
from layers.transformer import ACTIVATIONS, run_layers


def taken_apart(tokens: torch.Tensor, variables: int) -> torch.Tensor:
    """[B, heads, T*C, E] -> [B*C, heads, T, E], without a copy for a single variable."""
    return tokens.unflatten(2, (-1, variables)).permute(0, 3, 1, 2, 4).flatten(0, 1)


def put_together(mixed: torch.Tensor, variables: int) -> torch.Tensor:
    """[B*C, heads, T, E] -> [B, T*C, heads*E]"""
    return mixed.unflatten(0, (-1, variables)).permute(0, 3, 1, 2, 4).flatten(3).flatten(1, 2)


class SelfAttention(nn.Module):
    """softmax((q.k + mask) / sqrt(E)) v, within each variable."""

    def __init__(self, d_model: int, n_heads: int, dropout: float, fused: bool):
        super().__init__()
        self.n_heads, self.dropout, self.fused = n_heads, dropout, fused
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, d_model) for _ in range(3))
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def forward(self, x, layout: TokenLayout, newest: int | None = None, cache=None, want_weights: bool = False):
        """As `layers.attention.AttentionLayer`."""
        C = layout.variables
        q, k, v = self._heads(self.q_proj(x if newest is None else x[:, -newest:])), \
            self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        q = apply_rotary_to_halves(q, layout.rotary[:, :, -q.shape[2]:])
        k = apply_rotary_to_halves(k, layout.rotary)
        if cache is not None:
            k, v = cache.store(k, v, layout)
        q, k, v = (taken_apart(part, C) for part in (q, k, v))
        visible = layout.within[:, :, -q.shape[2]:]
        if len(visible) > 1:
            visible = visible.repeat_interleave(C, dim=0)
        mixed, weights = self._mix(q, k, v, visible, want_weights)
        return self.o_proj(put_together(mixed, C)), None if weights is None else self._of_all(weights, C)

    def _mix(self, q, k, v, visible, want_weights: bool):
        dropout = self.dropout if self.training else 0.0
        if self.fused and not want_weights:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout), None
        scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~visible, float("-inf"))
        weights = scores.softmax(dim=-1)
        return F.dropout(weights, dropout, self.training) @ v, weights if want_weights else None

    @staticmethod
    def _of_all(weights: torch.Tensor, variables: int) -> torch.Tensor:
        """Weights within variables [B*C, heads, Tq, T] as those of all tokens [B, heads, Tq*C, T*C]."""
        apart = weights.unflatten(0, (-1, variables)).permute(0, 2, 3, 4, 1)
        return apart.diag_embed().transpose(3, 4).flatten(4, 5).flatten(2, 3)


class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x))"""

    def __init__(self, d_model: int, d_ff: int, activation: str):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(d_model, d_ff, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class GatedLayer(nn.Module):
    """x = norm1(x + attention(x)); x = norm2(x + feed_forward(x))."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float, activation: str, fused: bool):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads, dropout, fused)
        self.ffn_layer = GatedFeedForward(d_model, d_ff, activation)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, layout: TokenLayout, newest: int | None = None, cache=None, want_weights: bool = False):
        mixed, weights = self.self_attn(x, layout, newest, cache, want_weights)
        x = self.norm1((x if newest is None else x[:, -newest:]) + self.dropout(mixed))
        return self.norm2(x + self.dropout(self.ffn_layer(x))), weights


class PatchEmbedding(nn.Module):
    """A linear map without bias."""

    def __init__(self, patch_len: int, d_model: int):
        super().__init__()
        self.emb = nn.Linear(patch_len, d_model, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.emb(patches)


class GatedStack(nn.Module):
    """The embedding and a stack of `GatedLayer`, closed by a layer norm; called like `TimerBlock`."""

    def __init__(self, patch_len: int, e_layers: int, d_model: int, n_heads: int, d_ff: int, dropout: float,
                 activation: str, fused: bool):
        super().__init__()
        self.embed_layer = PatchEmbedding(patch_len, d_model)
        self.layers = nn.ModuleList(
            GatedLayer(d_model, n_heads, d_ff, dropout, activation, fused) for _ in range(e_layers))
        self.norm = nn.LayerNorm(d_model)

    @property
    def attn_layers(self) -> nn.ModuleList:
        return self.layers

    def forward(self, x: torch.Tensor, layout: TokenLayout, newest: int | None = None, caches=None,
                want_weights: bool = False):
        x, kept = run_layers(list(self.layers), x, layout, newest, caches, want_weights)
        return self.norm(x), kept
