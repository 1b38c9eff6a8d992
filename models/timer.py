"""Timer: decoder-only transformer, patch in, next patch out (Liu et al., ICML 2024), as published with 84 M parameters.

Univariate: every variable of a window is a sequence by itself. Three ways to roll it are in public use (`NORM_ROLLS`),
which differ in what normalises a patch; mean and UNBIASED standard deviation, without a floor:

    window  everything so far, context and forecast, anew for every prediction: nothing can be kept
    frozen  the context, once
    patch   the context for its own patches, and each later patch by its own values: the public model's own `generate`
"""
import torch
from torch import nn

from layers.gated import GatedStack
from layers.normalisation import PatchStats, SampleStats
from models.cache_state import CacheState
from models.config import ModelConfig
from models.growing_state import GrowingState
from models.running_stats import FrozenStats, KeptStats, OwnStats
from models.timer_xl import Model as OneHead
from utils.errors import UserError
from utils.interface import State

NORM_ROLLS = ("window", "frozen", "patch")


class Model(OneHead):
    """norm_roll: one of NORM_ROLLS; says what the forecast is. `rolling` says how it is computed: 'cache', or 'window',
    which re-encodes the whole series for every prediction, to the same numbers. Without `use_norm` nothing is
    normalised and norm_roll has no effect. `forward` normalises its input as one window.
    """

    defaults = {"activation": "silu", "use_norm": True}
    whole_head = apart = True

    def __init__(self, config: ModelConfig):
        if config.covariate:
            raise UserError("`covariate` has no effect on the model timer, whose variables do not see each other: "
                            "leave it out")
        if config.causal:
            raise UserError("`norm_mode` causal is not known to the model timer, which has three ways of its own "
                            "(`norm_roll`): leave it out")
        if config.use_norm and config.input_token_len < 2:
            raise UserError("`input_token_len` 1: the model timer normalises a patch by its own deviation, which a "
                            "single step has not; use 2 or more")
        self.norm_roll = "patch"
        super().__init__(config)

    def build(self) -> None:
        config = self.config
        self.model = GatedStack(self.patch_len, config.e_layers, config.d_model, config.n_heads, config.d_ff,
                                config.dropout, config.activation, config.flash_attention)
        self.lm_heads = nn.ModuleList([nn.Linear(config.d_model, self.patch_len, bias=False)])

    # the names of the public checkpoint behind those of every model here

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        return self.lm_heads[0]

    @property
    def blocks(self) -> GatedStack:  # type: ignore[override]
        return self.model

    @property
    def embedding(self) -> nn.Module:  # type: ignore[override]
        return self.model.embed_layer

    def roll_by(self, norm_roll: str) -> None:
        """Chooses one of NORM_ROLLS, and the rolling that goes with it."""
        self.norm_roll = norm_roll
        self.rolling = self.own_rolling

    @property
    def way(self) -> str:
        return self.norm_roll if self.config.use_norm else "cache"

    @property
    def own_rolling(self) -> str:
        return "window" if self.config.use_norm and self.norm_roll == "window" else "cache"

    def start(self, context: torch.Tensor, room: int) -> State:
        kind = GrowingState if self.rolling == "window" else CacheState
        return kind(self, self.to_patches(context), room)

    def stride(self, context_patches: int) -> int:
        """Of the rotary position c*N + t: 0, as every variable has positions of its own."""
        return 0

    def stats_of(self, patches: torch.Tensor) -> PatchStats:
        return SampleStats.of(patches) if self.config.use_norm else PatchStats.identity(patches)

    def unit_of(self, context: torch.Tensor) -> torch.Tensor:
        return self.stats_of(context).unit

    def running_stats(self, context: torch.Tensor, room: int) -> FrozenStats | KeptStats:
        if self.config.use_norm and self.norm_roll == "patch":
            return OwnStats(context, room)
        return FrozenStats(self.stats_of(context))

    def predict_series(self, patches: torch.Tensor, counts: torch.Tensor, context_patches: int):
        """After the first `counts` [b] of patches [b, T, P, C]: mean [b, 1, P, C], None, stdev [b, 1, C]."""
        stats = self._stats_of_first(patches, counts, context_patches)
        hidden, _, _ = self.encode(patches, stats=stats)
        rows, last = torch.arange(len(counts), device=counts.device), counts - 1
        if stats.mean.shape[1] > 1:
            stats = SampleStats(stats.mean[rows, last][:, None], stats.stdev[rows, last][:, None])
        mean, _ = self.predict(hidden[rows, last][:, None], stats)
        return mean[:, 0], None, stats.unit[:, 0]

    def _stats_of_first(self, patches: torch.Tensor, counts: torch.Tensor, context_patches: int) -> PatchStats:
        if self.config.use_norm and self.norm_roll == "window":
            return SampleStats.of_first(patches, counts)
        context, later = patches[:, :context_patches], patches[:, context_patches:]
        stats = self.running_stats(context, later.shape[1])
        if later.shape[1]:
            stats.write(context_patches, later)
        return stats.at(range(patches.shape[1]))
