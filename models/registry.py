"""Models by name, and loading of trained ones."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layers.linear import pack_linears
from models import timer, timer_xl, timer_xl_draft, timesfm
from models.checkpoint import ARGS, CHECKPOINT, load_into, read_settings, read_state
from models.config import DRAFT_ONLY, SIZES, ModelConfig
from models.foreign import is_foreign
from models.longer_heads import LongerHeads
from models.public import weights_in
from models.timer_xl import ROLLING, TimerBackbone
from utils.errors import UserError, shorten

MODELS: dict[str, type[TimerBackbone]] = {"timer_xl": timer_xl.Model, "timer_xl_draft": timer_xl_draft.Model,
                                          "timer": timer.Model, "timesfm": timesfm.Model}
UNTRAINED = ("timesfm",)  # used as they are published
DRAFTS = ("timer_xl_draft",)
# settings that the weights depend on; for a draft also its scales, patches and heads
ARCHITECTURE = (*SIZES, "activation", "covariate", "use_norm", "norm_mode", "norm_window", "input_token_len")
ARCHITECTURE_OF = {name: ARCHITECTURE + (DRAFT_ONLY if name in DRAFTS else ())
                   + (("output_token_len",) if kind.longer_output else ()) for name, kind in MODELS.items()}
DEFAULTS_OF = {name: kind.defaults for name, kind in MODELS.items()}
APART = tuple(name for name, kind in MODELS.items() if kind.apart)  # every variable is a sequence by itself
# switches that may be turned on for weights that were trained without them, because no tensor changes its shape; and
# the tensors that start afresh then
ADDED_LATER = {"use_norm": "they see normalised windows from now on",
               "draft_stochastic": "they get a log-variance head, which starts afresh"}
FRESH = ("head_logvar.",)
# settings that are required to load a state dict
NEEDED = (*SIZES, "input_token_len")


def predicts_longer(name: str) -> bool:
    """Whether a token of this model may predict more steps than it has; of a foreign one it is not known."""
    return is_foreign(name) or MODELS[name].longer_output


def checkpoint_in(path: str | Path) -> Path:
    """Path of the checkpoint file: `path` itself, or in a folder checkpoint.pth, else a public model's weights."""
    path = Path(path)
    if not path.is_dir():
        return path
    own = path / CHECKPOINT
    return own if own.is_file() else weights_in(path) or own


def load(path: str | Path, device: torch.device | str = "cpu", name: str | None = None,
         asked: Mapping[str, Any] | None = None, bare: ModelConfig | None = None, rolling: str | None = None,
         packed: bool = True, norm_roll: str | None = None) -> TimerBackbone:
    """Loads the trained model in `path`, a checkpoint or its folder, in evaluation mode and ready to decode.

    name, bare: model name and architecture, for a checkpoint without args.json. If that file exists it gives both; name
    and asked (settings of `ModelConfig`) may repeat it, but not contradict it.
    rolling: 'window' or 'cache'; None: the one that the model was trained for.
    packed: lays out large weights for the CPU's kernels; such a model can no longer be trained or saved.
    norm_roll: one of `timer.NORM_ROLLS`, for a timer only; None: that of its public code, 'patch'.
    Raises UserError for a missing or damaged file, for another model, and for settings that contradict each other.
    """
    path = checkpoint_in(path)
    found, config = describe(path, name, asked or {}, bare)
    state = read_state(path)
    model = MODELS[found].for_weights(config, state).to(device)
    load_into(model, state, path)
    model.label = f"checkpoint {path}"
    if norm_roll is not None:
        _choose_norm_roll(model, norm_roll, path)
    if rolling is not None:
        model.rolling = checked_rolling(model, rolling, path)
    if packed:
        pack_linears(model)
    return model.eval()


def load_heads(path: str | Path, target: TimerBackbone, packed: bool = True) -> LongerHeads:
    """Loads longer heads for `target` (`Model.with_heads`), on its device. packed: as for `load`.

    Raises UserError for a missing or damaged file, and for heads of a target of another size or patch.
    """
    path = checkpoint_in(path)
    state = read_state(path)
    weight = state.get("heads.weight")
    count, rest = divmod(len(weight) if weight is not None and weight.dim() == 2 else 0, target.patch_len)
    if rest or not count:
        raise UserError(f"{path} holds no heads for a target with a patch of {target.patch_len} steps: train them "
                        "again")
    longer = LongerHeads(target.config.d_model, target.patch_len, count).to(next(target.parameters()).device)
    load_into(longer, state, path)
    if packed:
        pack_linears(longer)
    return longer.eval()


def describe(path: Path, name: str | None, asked: Mapping[str, Any],
             bare: ModelConfig | None = None) -> tuple[str, ModelConfig]:
    """Name and architecture of a checkpoint, see `load`."""
    settings = read_settings(path)
    if settings is None:
        return name or "timer_xl", bare or ModelConfig.from_mapping(asked)
    found = settings.get("model")
    if not isinstance(found, str) or found not in MODELS:
        raise UserError(f"{path.with_name(ARGS)}: the model {shorten(found)} is none of {', '.join(MODELS)}: "
                        "correct it, or delete the file and give the settings")
    if name not in (None, found):
        raise UserError(f"checkpoint {path} is a {found}, not a {name}: give another checkpoint, or change `model` / "
                        "`draft_model` / `target_model`")
    missing = [key for key in NEEDED if key not in settings]
    if missing:
        raise UserError(f"{path.with_name(ARGS)} lacks {', '.join(missing)}: restore it, or delete it and give the "
                        "settings")
    for key in ARCHITECTURE_OF[found]:
        if key in asked and key in settings and asked[key] != settings[key]:
            raise UserError(f"`{key}` {asked[key]} contradicts the checkpoint {path}, which was trained with "
                            f"{settings[key]}: leave it out")
    kernel = {key: asked[key] for key in ("flash_attention",) if key in asked}  # changes nothing that is computed
    return found, ModelConfig.from_mapping(settings | kernel)


def _choose_norm_roll(model: TimerBackbone, norm_roll: str, path: Path) -> None:
    """Raises UserError where it would have no effect."""
    if norm_roll not in timer.NORM_ROLLS:
        raise UserError(f"`norm_roll` is {norm_roll!r}, but must be one of {', '.join(timer.NORM_ROLLS)}")
    if not isinstance(model, timer.Model):
        raise UserError(f"`norm_roll` {norm_roll} has no effect on {path}, which is no timer: leave it out (`rolling` "
                        "is the setting of other models)")
    if not model.config.use_norm:
        raise UserError(f"`norm_roll` {norm_roll} has no effect on {path}, which normalises nothing (`use_norm`): "
                        "leave it out")
    model.roll_by(norm_roll)


def checked_rolling(model: TimerBackbone, rolling: str, path: Path) -> str:
    """Returns `rolling`. Raises UserError if it would be wrong for this model."""
    if rolling not in ROLLING:
        raise UserError(f"`rolling` is {rolling!r}, but must be one of {', '.join(ROLLING)}")
    if rolling == "window" and isinstance(model, timesfm.Model):
        raise UserError("`rolling` window is not known to the model timesfm, whose own forecast is by cache: leave it "
                        "out")
    if rolling == "cache" and isinstance(model, timer.Model) and model.own_rolling == "window":
        raise UserError("`rolling` cache contradicts `norm_roll` window, by which every new patch changes how all of "
                        "them are normalised, so that nothing can be kept: leave one of them out")
    if rolling == "cache" and model.config.covariate:
        raise UserError(f"`rolling` cache: {path} was trained with `covariate`, where the last variable looks ahead in "
                        "the others, so that nothing can be cached; use window")
    return rolling


def other_rolling(model: TimerBackbone) -> str | None:
    """What changes from the second patch on because the model rolls in another way than its own; None if it does not.

    The first patch is the same in either way.
    """
    if model.rolling == model.own_rolling or isinstance(model, timer.Model):  # of a timer `norm_roll` decides
        return None
    if model.rolling == "window":
        return ("every patch is predicted from the last patches alone, as if the series began there; the model's own "
                "forecast, by cache, is that of one series that grows from the beginning of the context")
    if model.config.use_norm:
        return ("an APPROXIMATION: the model normalises whole windows, but the statistics of the context are frozen; "
                "its own forecast, by window, normalises every window anew")
    return ("the context grows with every patch, beyond its length in training; the model's own forecast, by window, "
            "is from the last patches alone")
