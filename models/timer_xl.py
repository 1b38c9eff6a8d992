"""Timer-XL: decoder-only transformer, patch in, next patch out (Liu et al., ICLR 2025)."""
from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from layers.attention import TokenLayout, rotary_of
from layers.linear import can_pack, pack_linears
from layers.normalisation import PatchStats
from layers.transformer import TimerBlock
from models.cache_state import CacheState
from models.config import ModelConfig
from models.longer_heads import LongerHeads
from models.running_stats import FrozenStats, KeptStats, TrailingStats
from utils.errors import UserError
from utils.interface import Decodable, State
from utils.window_state import WindowState

MOVE_FEATURES = 2  # change of level and scale: additional inputs of a causally normalised model
ROLLING = ("window", "cache")


class TimerBackbone(Decodable, nn.Module):
    """Everything below the heads: normalisation, patch embedding, transformer; and rolling.

    rolling: 'window' re-encodes the last N patches for every prediction, 'cache' keeps the keys and values of a growing
    series. `own_rolling` is the one that defines the model's forecast; see `other_rolling` in the registry for what
    the other one changes. label: where the weights come from, for errors. A subclass defines `predict`: its heads.
    """

    label: str | None = None
    defaults: dict[str, Any] = {}  # settings that differ from those of ModelConfig where they are not given
    whole_head = False  # rotary positions turn all of a head, see `layers.rotary`
    apart = False  # every variable is a sequence by itself
    longer_output = False  # a token may predict more steps than it has
    embedding: nn.Module
    blocks: Any  # called like a `TimerBlock`

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.patch_len != config.input_token_len and not self.longer_output:
            raise UserError(f"`output_token_len` {config.patch_len} differs from `input_token_len` "
                            f"{config.input_token_len}: make them equal (a token predicts the next patch)")
        self.config = config
        self.token_len, self.patch_len = config.input_token_len, config.patch_len
        self.patches_ahead = config.draft_patches
        self.rolling = self.own_rolling
        self.dtype = torch.float32  # of the weights
        self.rotated: tuple[tuple, torch.Tensor] | None = None  # see `rotary`
        self.layout: TokenLayout | None = None  # of the last pass over a window, for who replays it
        self.build()

    @classmethod
    def for_weights(cls, config: ModelConfig, state: Mapping[str, torch.Tensor]) -> TimerBackbone:
        """A model for these weights, by their names in the file."""
        return cls(config)

    def build(self) -> None:
        """Makes the embedding and the layers."""
        config = self.config
        inputs = self.patch_len + (MOVE_FEATURES if config.causal else 0)
        self.embedding = nn.Linear(inputs, config.d_model)
        self.blocks = TimerBlock(config.e_layers, config.d_model, config.n_heads, config.d_ff, config.dropout,
                                 config.activation, config.flash_attention)

    def start(self, context: torch.Tensor, room: int) -> State:
        kind = WindowState if self.rolling == "window" else CacheState
        return kind(self, self.to_patches(context), room)

    def predict_windows(self, windows: torch.Tensor):
        """windows [b, N, P, C] -> mean, logvar (or None) [b, J, P, C], stdev [b, 1, C]."""
        hidden, stats, _ = self.encode(windows, newest=1)
        mean, logvar = self.predict(hidden, stats)
        return mean[:, 0], None if logvar is None else logvar[:, 0], stats.unit[:, 0]

    @property
    def own_rolling(self) -> str:
        """The rolling that defines the model's forecast.

        A causal model's is a pass over the whole series since the beginning of the context, which the cache reproduces;
        that of every other checkpoint is OpenLTM's, a new window of N patches for every prediction. With covariates the
        last variable looks ahead in the others, so its past changes with every patch and nothing can be kept.
        """
        return "cache" if self.config.causal and not self.config.covariate else "window"

    @property
    def way(self) -> str:
        """Name of the forecast that the present way of rolling gives."""
        return self.rolling

    @property
    def head_dim(self) -> int:
        return self.config.d_model // self.config.n_heads

    def stride(self, context_patches: int) -> int:
        """N of the rotary position c*N + t: fixed in training for a causal model, else the length of the context."""
        return self.config.norm_window if self.config.causal else context_patches

    @property
    def span(self) -> int | None:
        """Attention span in patches: the window that a causal model was trained for, else None (unlimited)."""
        return self.config.norm_window if self.config.causal else None

    def rotary(self, patches: int, variables: int, stride: int, device: torch.device) -> torch.Tensor:
        """Rotations of the tokens of at least `patches` patches [1, 1, patches * C, ...]; the longest table is kept."""
        of, kept = (variables, stride, device), self.rotated
        if kept is None or kept[0] != of or kept[1].shape[2] < patches * variables:
            with torch.inference_mode(False):
                times = torch.arange(patches, device=device)[None]
                kept = self.rotated = of, rotary_of(times, variables, stride, self.head_dim, self.whole_head)
        return kept[1]

    def halve(self) -> bool:
        """Weights in bfloat16, for inference. On a CPU they are packed, and only large products are taken in it.

        Returns False where the processor has no such products: the weights are packed in float32 then.
        """
        if next(self.parameters()).device.type == "cpu":
            known = can_pack(torch.bfloat16)
            pack_linears(self, torch.bfloat16 if known else torch.float32)
            return known
        self.dtype = torch.bfloat16
        self.to(self.dtype)
        return True

    def predict(self, hidden: torch.Tensor, stats: PatchStats) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden [B, T, C, D] -> mean and logvar (None without a variance head) [B, T, J, P, C] in data units."""
        raise NotImplementedError

    def to_patches(self, series: torch.Tensor) -> torch.Tensor:
        """[B, T*P, C] -> [B, T, P, C]"""
        if series.shape[1] % self.patch_len:
            raise ValueError(f"a series of {series.shape[1]} steps is not a multiple of the patch length "
                             f"({self.patch_len})")
        return series.unflatten(1, (-1, self.patch_len))

    def stats_of(self, patches: torch.Tensor) -> PatchStats:
        """Normalisation statistics of patches [B, T, P, C], a series from its beginning."""
        if not self.config.use_norm:
            return PatchStats.identity(patches)
        if self.config.causal:
            return PatchStats.causal_of(patches, self.config.norm_window)
        return PatchStats.of_window(patches)

    def running_stats(self, context: torch.Tensor, room: int) -> FrozenStats | KeptStats:
        """Statistics for a cache: context [B, N, P, C] and `room` patches after it."""
        if self.config.causal:
            return TrailingStats(context, room, self.config.norm_window)
        return FrozenStats(self.stats_of(context))

    def unit_of(self, context: torch.Tensor) -> torch.Tensor:
        """The normalisation stdev of the next patch after context [B, N, P, C]: [B, 1, 1, C]."""
        if not self.config.use_norm:
            return PatchStats.identity(context).stdev
        return PatchStats.of_window(context[:, -(self.span or 0):]).stdev

    def embed(self, patches: torch.Tensor, stats: PatchStats) -> torch.Tensor:
        """[B, T, P, C] in data units -> tokens [B, T*C, D]"""
        inputs = stats.normalise(patches).transpose(2, 3)
        if stats.features is not None:
            inputs = torch.cat([inputs, stats.features], dim=-1)
        return self.embedding(inputs.flatten(1, 2).to(self.dtype))

    def encode(self, patches: torch.Tensor, newest: int | None = None, want_weights: bool = False,
               stats: PatchStats | None = None):
        """patches [B, T, P, C], a series from its beginning -> hidden [B, T or newest, C, D], their PatchStats,
        attention weights. stats: default, those of the series."""
        B, T, _, C = patches.shape
        stats = self.stats_of(patches) if stats is None else stats
        layout = TokenLayout.of_window(T, C, self.stride(T), self.head_dim, self.config.covariate, self.span,
                                       patches.device, self.whole_head)
        self.layout = layout
        hidden, weights = self.blocks(self.embed(patches, stats), layout, newest and newest * C,
                                      want_weights=want_weights)
        return hidden.unflatten(1, (-1, C)), stats if newest is None else stats.newest(newest), weights

    def head_patches(self, outputs: torch.Tensor) -> torch.Tensor:
        """Normalised outputs of heads [B, T, C, J * P], of J patches ahead, as [B, T, J, P, C]."""
        return outputs.unflatten(-1, (-1, self.patch_len)).permute(0, 1, 3, 4, 2).float()

    def attention(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Attention weights of every layer, each [B, heads, C*N, C*N], tokens variable by variable."""
        _, _, N, C = self.to_patches(x).permute(0, 2, 1, 3).shape
        order = torch.arange(N * C, device=x.device).unflatten(0, (N, C)).T.flatten()
        return [weights[..., order, :][..., order] for weights in self.encode(self.to_patches(x), None, True)[2]]


class Model(TimerBackbone):
    """The target. Also the deterministic form of any Timer-XL-shaped model.

    longer: heads for the patches after the next one, whose proposals need no draft; see `with_heads`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.longer: LongerHeads | None = None

    def build(self) -> None:
        super().build()
        self.head = nn.Linear(self.config.d_model, self.patch_len)

    def with_heads(self, longer: LongerHeads) -> Model:
        """The same model, on the same weights, with longer heads; this one stays without them."""
        model = copy.copy(self)
        model._modules = dict(self._modules)
        model.longer, model.heads_ahead = longer, longer.count
        return model

    def predict(self, hidden: torch.Tensor, stats: PatchStats) -> tuple[torch.Tensor, None]:
        """hidden [B, T, C, D] -> mean [B, T, J, P, C] in data units, None (no variance head).

        J is 1, and one more for each of the longer heads.
        """
        outputs = self.head(hidden)
        if self.longer is not None:
            outputs = torch.cat([outputs, self.longer(hidden)], dim=-1)
        return stats.denormalise(self.head_patches(outputs)), None

    def forward(self, x: torch.Tensor, newest: int | None = None) -> torch.Tensor:
        """x [B, L, C] -> [B, L, C], data units: patch t of the output is the prediction of patch t + 1.

        newest: predictions after the last `newest` patches only, [B, newest * P, C].
        """
        hidden, stats, _ = self.encode(self.to_patches(x), newest)
        return self.predict(hidden, stats)[0][:, :, 0].flatten(1, 2)
