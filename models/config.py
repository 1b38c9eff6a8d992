"""Architecture settings of a Timer-XL model, as stored in args.json, and their limits."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from layers.transformer import ACTIVATIONS
from utils.errors import UserError
from utils.limits import Number, OneOf, OrNone, Switch, check, limited, whole

# anything above these limits is a typo and would exhaust memory
MOST_WIDTH, MOST_LAYERS, MOST_STEPS = 2**14, 2**10, 2**31
WIDTH, LAYERS, STEPS = whole(1, MOST_WIDTH), whole(1, MOST_LAYERS), whole(1, MOST_STEPS)
SCALE = Number(0, 1, open_low=True)
SIZES = ("d_model", "n_heads", "d_ff", "e_layers")
SCALES = tuple(f"draft_scale_{size}" for size in SIZES)
DRAFT_ONLY = ("draft_stochastic", "draft_patches", *SCALES)


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a target or a draft. Raises UserError for a value outside its limit.

    The scales shrink a draft (`scaled`); at 1.0 they change nothing. `flash_attention` picks the fused attention
    kernel and does not change the result. norm_mode 'causal' normalises every patch by its own trailing window of
    `norm_window` patches, which is also the token's attention span and the stride of rotary positions.
    """

    input_token_len: int = limited(96, STEPS, "steps of a token")
    d_model: int = limited(512, WIDTH)
    n_heads: int = limited(8, WIDTH)
    d_ff: int = limited(2048, WIDTH)
    e_layers: int = limited(1, LAYERS)
    dropout: float = limited(0.1, Number(0, 0.999))
    activation: str = limited("relu", OneOf(ACTIVATIONS))
    covariate: bool = limited(False, Switch(), "forecast the last variable; the others are covariates")
    use_norm: bool = limited(False, Switch(), "normalise by the series' own statistics")
    norm_mode: str = limited("window", OneOf(("window", "causal")), "statistics of the whole window, or of each "
                             "patch's own trailing window (makes the key-value cache exact)")
    norm_window: int = limited(0, whole(0, MOST_LAYERS),
                               "causal: patches in the trailing window (0: as many as in the test context)")
    flash_attention: bool = limited(True, Switch(), "fused attention kernel")
    draft_stochastic: bool = limited(False, Switch(), "draft with mean and log-variance heads")
    draft_patches: int = limited(1, LAYERS, "patches that the draft proposes per pass")
    draft_scale_d_model: float = limited(1.0, SCALE)
    draft_scale_n_heads: float = limited(1.0, SCALE)
    draft_scale_d_ff: float = limited(1.0, SCALE)
    draft_scale_e_layers: float = limited(1.0, SCALE)
    output_token_len: int | None = limited(None, OrNone(STEPS), "steps that a token predicts, the patch (default: "
                                           "as many as it has; only timesfm predicts more)")

    def __post_init__(self) -> None:
        check({field.name: field for field in fields(self)}, vars(self))
        if self.patch_len % self.input_token_len:
            raise UserError(f"`output_token_len` {self.patch_len} is not a multiple of `input_token_len` "
                            f"{self.input_token_len}: a prediction has to be a whole number of tokens")
        if self.norm_mode == "causal" and not self.use_norm:
            raise UserError("`norm_mode` causal has no effect without `use_norm`: add it, or leave this one out")
        if self.norm_mode != "causal" and self.norm_window:
            raise UserError("`norm_window` has no effect without `norm_mode` causal: add it, or leave this one out")
        if self.norm_mode == "causal" and not self.norm_window:
            raise UserError("`norm_mode` causal needs `norm_window`, the number of patches in a trailing window")
        scaled = any(getattr(self, scale) != 1.0 for scale in SCALES)
        if not scaled and (self.d_model % self.n_heads or self.d_model // self.n_heads % 4):
            raise UserError(f"`d_model` {self.d_model} with `n_heads` {self.n_heads}: their ratio, the head width, "
                            "must be a multiple of 4 (rotary pairs); change one of them")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> ModelConfig:
        """Picks the architecture out of any mapping of settings, such as args.json."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in settings.items() if key in known})

    @property
    def patch_len(self) -> int:
        """Steps of a patch: what a prediction covers."""
        return self.output_token_len or self.input_token_len

    @property
    def causal(self) -> bool:
        return self.use_norm and self.norm_mode == "causal"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def scaled(self) -> ModelConfig:
        """The draft's own dimensions: the target's times the scales, with heads that fit. Scales of 1.0: unchanged."""
        scales = (self.draft_scale_d_model, self.draft_scale_n_heads, self.draft_scale_d_ff, self.draft_scale_e_layers)
        if all(scale == 1.0 for scale in scales):
            return self
        width, heads = _fit_heads(round(self.d_model * scales[0]), round(self.n_heads * scales[1]))
        settings = self.as_dict() | {
            "d_model": width,
            "n_heads": heads,
            "d_ff": max(64, round(self.d_ff * scales[2])),
            "e_layers": max(1, round(self.e_layers * scales[3])),
            "draft_scale_d_model": 1.0, "draft_scale_n_heads": 1.0,
            "draft_scale_d_ff": 1.0, "draft_scale_e_layers": 1.0,
        }
        return ModelConfig(**settings)


def _fit_heads(wanted_width: int, wanted_heads: int) -> tuple[int, int]:
    """Width and heads nearest to those requested, with a head width divisible by 4 (two rotary pairs)."""
    found: list[tuple[int, int, int]] = []
    for heads in range(max(1, wanted_heads - 2), max(1, wanted_heads + 2) + 1):
        width = heads * max(4, 4 * (wanted_width // heads // 4))
        cost = abs(width - wanted_width) + 20 * abs(heads - wanted_heads)
        fits = max(16, width) % heads == 0  # a width raised to the floor of 16 must still split into heads
        if fits:
            found.append((cost, max(16, width), heads))
    _, width, heads = min(found, key=lambda fit: fit[0])
    return width, heads
