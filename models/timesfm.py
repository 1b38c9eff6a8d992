"""TimesFM 2.5 (Das et al., ICML 2024; its decoder of 200 M parameters): reads 32 steps, predicts 128, and 1024 ahead.

A token is `token_len` steps of one series, normalised by the mean and standard deviation of everything from the
beginning of the context to its own end. After every token a head speaks of the next patch, `patch_len` steps, and a
longer one of eight patches, both in ten channels: the mean and nine quantiles. The forecast is the median: its first
patch is the first head's, and so is each later one, after the patches before it, which enter as tokens. That is what
`decode` of the public package does; as no token depends on a later one, its cache is exact.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch

from layers.normalisation import PastStats, PatchStats
from layers.normed_block import NormedBlock
from layers.residual import ChannelHead, ResidualBlock
from models.cache_state import CacheState
from models.config import ModelConfig
from models.folded_state import FoldedState
from models.running_stats import AllPastStats
from models.timer_xl import TimerBackbone
from utils.errors import UserError

CHANNELS, MEDIAN = 10, 5  # the mean, then the quantiles 0.1 to 0.9
LONG_PATCHES = 8  # of the longer head, the next one included
PUBLIC = {"input_token_len": 32, "output_token_len": 128, "d_model": 1280, "n_heads": 16, "d_ff": 1280, "e_layers": 20,
          "activation": "silu", "use_norm": True}


class Model(TimerBackbone):
    """A target to use, not to train here. Every variable of a window is a series by itself.

    token_len: steps of a token, of which a patch has several. heads_ahead: patches after the next one that the longer
    head speaks of.
    """

    defaults = PUBLIC
    whole_head = apart = longer_output = True
    own_rolling = "cache"  # type: ignore[assignment]  # the only one

    def __init__(self, config: ModelConfig, long_patches: int = LONG_PATCHES):
        """long_patches: patches that the longer head speaks of, the next one included."""
        for name, wanted in (("activation", "silu"), ("use_norm", True), ("norm_mode", "window"),
                             ("covariate", False), ("flash_attention", True)):
            if getattr(config, name) != wanted:
                raise UserError(f"`{name}` {getattr(config, name)} is not known to the model timesfm, which has "
                                f"{wanted}: leave it out")
        self.long_patches, self.heads_ahead = long_patches, long_patches - 1
        super().__init__(config)

    @classmethod
    def for_weights(cls, config: ModelConfig, state: Mapping[str, torch.Tensor]) -> Model:
        """With a longer head as long as that of the weights."""
        rows = state.get("output_projection_quantiles.output_layer.weight", state.get("long_head.output_layer.weight"))
        return cls(config, LONG_PATCHES if rows is None else max(1, len(rows) // (CHANNELS * config.patch_len)))

    def build(self) -> None:
        config, width = self.config, self.config.d_model
        self.embedding = ResidualBlock(2 * self.token_len, width, width)
        self.blocks = NormedBlock(config.e_layers, width, config.n_heads, config.d_ff)
        self.head = ChannelHead(width, width, self.patch_len, CHANNELS)
        self.long_head = ChannelHead(width, width, self.long_patches * self.patch_len, CHANNELS)

    def start(self, context: torch.Tensor, room: int) -> FoldedState:
        """context [B, L, C]: where L is not a multiple of `token_len`, the first token is that much shorter."""
        series, missing = self._series(context)
        tokens = self.patch_len // self.token_len
        inner = CacheState(self, series, room * tokens, AllPastStats(series, room * tokens, missing))
        end = range(series.shape[1] - 1, series.shape[1])
        return FoldedState(inner, inner.stats.at(end).unit, context.shape[2], tokens)

    def _series(self, context: torch.Tensor) -> tuple[torch.Tensor, int]:
        """context [B, L, C] -> its tokens [B * C, N, token_len, 1], and how many steps the first of them lack."""
        if context.dim() != 3 or not context.shape[1]:
            raise ValueError(f"the context is {list(context.shape)}, but must be [B, L, C] with at least one step")
        B, L, C = context.shape
        missing = -L % self.token_len
        series = context.new_zeros(B * C, missing + L, 1)
        series[:, missing:, 0] = context.transpose(1, 2).reshape(B * C, L)
        return series.unflatten(1, (-1, self.token_len)), missing

    def embed(self, patches: torch.Tensor, stats: PatchStats) -> torch.Tensor:
        """[R, T, token_len, 1] in data units -> [R, T, D]: a token says which of its steps are missing."""
        assert isinstance(stats, PastStats)
        missing = torch.zeros_like(patches) if stats.missing is None else stats.missing.to(patches).expand_as(patches)
        return self.embedding(torch.cat([stats.normalise(patches), missing], dim=2).squeeze(3).to(self.dtype))

    def predict(self, hidden: torch.Tensor, stats: PatchStats) -> tuple[torch.Tensor, None]:
        """hidden [R, T, 1, D] -> medians [R, T, J, P, 1] in data units: the first head's of the next patch, and the
        longer one's of the patches after it."""
        hidden = hidden[:, :, 0]
        later = self.long_head(hidden, MEDIAN)[..., self.patch_len:]
        medians = torch.cat([self.head(hidden, MEDIAN), later], dim=-1).float()
        return stats.denormalise(medians.unflatten(-1, (-1, self.patch_len))[..., None]), None

    @torch.inference_mode()
    def quantiles(self, context: torch.Tensor) -> torch.Tensor:
        """What the longer head says of the S steps after context [B, L, C]: [B, S, C, 10], data units, the mean and
        the quantiles 0.1 to 0.9."""
        series, missing = self._series(context)
        stats = AllPastStats(series, 0, missing).at(range(series.shape[1]))
        hidden, stats, _ = self.encode(series, newest=1, stats=stats)
        made = self.long_head(hidden[:, 0, 0]).float() * stats.stdev[:, 0] + stats.mean[:, 0]  # [B * C, S, 10]
        return made.unflatten(0, (-1, context.shape[2])).transpose(1, 2)

    def attention(self, x: torch.Tensor) -> list[torch.Tensor]:
        series, missing = self._series(x)
        stats = AllPastStats(series, 0, missing).at(range(series.shape[1]))
        every = (weights.unflatten(0, (len(x), -1)) for weights in self.encode(series, None, True, stats)[2])
        # [B, C, heads, N, N] -> [B, heads, C, N, C, N], zero between variables
        return [weights.permute(0, 2, 3, 4, 1).diag_embed().permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
                for weights in every]
