"""Timer-XL: decoder-only transformer, patch in, next patch out (Liu et al., ICLR 2025)."""
import torch
from torch import nn

from layers.attention import TokenLayout
from layers.normalisation import WindowStats
from layers.transformer import TimerBlock
from models.config import ModelConfig
from models.decoding import WindowDecoding


class TimerBackbone(nn.Module):
    """Everything below the head: normalisation, patch embedding, transformer."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.patch_len = config.input_token_len
        self.embedding = nn.Linear(self.patch_len, config.d_model)
        self.blocks = TimerBlock(config.e_layers, config.d_model, config.n_heads, config.d_ff, config.dropout,
                                 config.activation, config.flash_attention)

    def encode(self, x: torch.Tensor, last_only: bool = False, want_weights: bool = False):
        """x [B, L, C] in data units -> hidden [B, C, N, D] (N = 1 with `last_only`), WindowStats, attention weights."""
        B, L, C = x.shape
        if L % self.patch_len:
            raise ValueError(f"a window of {L} steps is not a multiple of the patch ({self.patch_len})")
        N = L // self.patch_len
        stats = WindowStats.of(x) if self.config.use_norm else WindowStats.identity(x)
        tokens = stats.normalise(x).transpose(1, 2).reshape(B, C * N, self.patch_len)
        head_dim = self.config.d_model // self.config.n_heads
        layout = TokenLayout.build(C, N, head_dim, self.config.covariate, x.device)
        hidden, weights = self.blocks(self.embedding(tokens), layout, last_only, want_weights)
        return hidden.unflatten(1, (C, -1)), stats, weights

    @staticmethod
    def to_series(patches: torch.Tensor) -> torch.Tensor:
        """[B, C, N, P] -> [B, N*P, C]"""
        return patches.flatten(2).transpose(1, 2).float()


class Model(WindowDecoding, TimerBackbone):
    """The target. Also the deterministic form of any Timer-XL-shaped model."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.head = nn.Linear(config.d_model, config.input_token_len)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, L, C] -> [B, L, C], data units: patch t of the output is the prediction of patch t + 1."""
        hidden, stats, _ = self.encode(x)
        return stats.denormalise(self.to_series(self.head(hidden)))

    def predict_next(self, windows: torch.Tensor):
        """windows [B, L, C] -> mean [B, P, C], None (no variance head), scale [B, 1, C]."""
        hidden, stats, _ = self.encode(windows, last_only=True)
        return stats.denormalise(self.to_series(self.head(hidden))), None, stats.stdev

    def attention(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Attention weights of every layer, each [B, heads, C*N, C*N]."""
        return self.encode(x, want_weights=True)[2]
