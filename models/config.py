"""What defines a Timer-XL model: the architecture settings that args.json keeps beside a checkpoint."""
from dataclasses import asdict, dataclass, fields


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a target or a draft.

    The scales shrink a draft (`scaled`); at 1.0 they change nothing. `flash_attention` picks the fused attention
    kernel and does not change what is computed. norm_mode 'causal' normalises every patch by its own trailing window
    of `norm_window` patches, which is also how far back its token sees and the stride of rotary positions.
    draft_patches: patches a draft's heads speak of.
    """

    input_token_len: int
    d_model: int
    n_heads: int
    d_ff: int
    e_layers: int
    dropout: float = 0.1
    activation: str = "relu"
    covariate: bool = False
    use_norm: bool = True
    norm_mode: str = "window"
    norm_window: int = 0
    flash_attention: bool = True
    draft_stochastic: bool = False
    draft_patches: int = 1
    draft_scale_d_model: float = 1.0
    draft_scale_n_heads: float = 1.0
    draft_scale_d_ff: float = 1.0
    draft_scale_e_layers: float = 1.0

    @classmethod
    def from_mapping(cls, settings: dict) -> "ModelConfig":
        """Picks the architecture out of any mapping of settings (args.json, vars(args), a parity file)."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in settings.items() if key in known})

    @property
    def causal(self) -> bool:
        return self.use_norm and self.norm_mode == "causal"

    def as_dict(self) -> dict:
        return asdict(self)

    def scaled(self) -> "ModelConfig":
        """The draft's own dimensions: design section 3, 'Draft scaling'. Scales of 1.0 return self unchanged."""
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
    """Width and heads nearest to what is wanted, with a head width divisible by 4 (two rotary pairs)."""
    best = None
    for heads in range(max(1, wanted_heads - 2), max(1, wanted_heads + 2) + 1):
        width = heads * max(4, 4 * (wanted_width // heads // 4))
        cost = abs(width - wanted_width) + 20 * abs(heads - wanted_heads)
        fits = max(16, width) % heads == 0  # a width raised to the floor of 16 must still split into heads
        if fits and (best is None or cost < best[0]):
            best = (cost, max(16, width), heads)
    return best[1], best[2]
