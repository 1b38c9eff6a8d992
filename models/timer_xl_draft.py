"""The draft: a scaled Timer-XL with a mean head and, if stochastic, a log-variance head."""
import torch
from torch import nn

from layers.normalisation import PatchStats
from models.config import ModelConfig
from models.timer_xl import TimerBackbone

LOGVAR_START = -2.0
LOGVAR_LIMIT = 10.0


class Model(TimerBackbone):
    """`config` holds the target's dimensions and the scales; the model is built at `config.scaled()`.

    With draft_patches = J > 1 the heads predict the next J patches at once: one pass proposes J patches.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config.scaled())
        width, outputs = self.config.d_model, self.config.draft_patches * self.patch_len
        self.head_mean = nn.Linear(width, outputs)
        self.head_logvar = None
        if config.draft_stochastic:
            self.head_logvar = nn.Linear(width, outputs)
            nn.init.constant_(self.head_logvar.bias, LOGVAR_START)

    def predict(self, hidden: torch.Tensor, stats: PatchStats) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden [B, T, C, D] -> mean, logvar (or None), each [B, T, J, P, C] in data units."""
        mean = stats.denormalise(self.head_patches(self.head_mean(hidden)))
        if self.head_logvar is None:
            return mean, None
        logvar = self.head_patches(self.head_logvar(hidden)).clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)
        return mean, stats.denormalise_logvar(logvar)

    def forward(self, x: torch.Tensor, newest: int | None = None):
        """x [B, L, C] -> (mean, logvar) in data units; the mean alone for a deterministic draft.

        Each is [B, L, C], patch t the prediction of patch t + 1; with J > 1 patches ahead it is [B, T, J, P, C].
        newest: predictions after the last `newest` patches only.
        """
        hidden, stats, _ = self.encode(self.to_patches(x), newest)
        several = self.config.draft_patches > 1
        parts = [part if several or part is None else part.flatten(1, 3) for part in self.predict(hidden, stats)]
        return parts[0] if parts[1] is None else tuple(parts)
