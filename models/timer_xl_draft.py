"""The draft: a scaled Timer-XL with a mean head and, if stochastic, a log-variance head."""
import torch
from torch import nn

from models.config import ModelConfig
from models.decoding import WindowDecoding
from models.timer_xl import TimerBackbone

LOGVAR_START = -2.0
LOGVAR_LIMIT = 10.0


class Model(WindowDecoding, TimerBackbone):
    """`config` holds the target's dimensions and the scales; the model is built at `config.scaled()`."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.scaled())
        width = self.config.d_model
        self.head_mean = nn.Linear(width, self.patch_len)
        self.head_logvar = None
        if config.draft_stochastic:
            self.head_logvar = nn.Linear(width, self.patch_len)
            nn.init.constant_(self.head_logvar.bias, LOGVAR_START)

    def _heads(self, hidden, stats):
        mean = stats.denormalise(self.to_series(self.head_mean(hidden)))
        if self.head_logvar is None:
            return mean, None
        logvar = self.to_series(self.head_logvar(hidden)).clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)
        return mean, stats.denormalise_logvar(logvar)

    def forward(self, x: torch.Tensor):
        """x [B, L, C] -> (mean, logvar) each [B, L, C] in data units; the mean alone for a deterministic draft."""
        hidden, stats, _ = self.encode(x)
        mean, logvar = self._heads(hidden, stats)
        return mean if logvar is None else (mean, logvar)

    def predict_next(self, windows: torch.Tensor):
        """windows [B, L, C] -> mean [B, P, C], logvar [B, P, C] or None, scale [B, 1, C]."""
        hidden, stats, _ = self.encode(windows, last_only=True)
        return *self._heads(hidden, stats), stats.stdev

    def attention(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Attention weights of every layer, each [B, heads, C*N, C*N]."""
        return self.encode(x, want_weights=True)[2]
