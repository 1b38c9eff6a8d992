"""Checkpoints: checkpoint.pth (a bare state dict) with args.json beside it, written whole and read without pickles."""
import json
import warnings
from pathlib import Path

import torch

from data_provider.data_factory import DATASETS
from layers.transformer import ACTIVATIONS
from utils.errors import UserError, shorten
from utils.files import replace_when_done, write_json

CHECKPOINT = "checkpoint.pth"
ARGS = "args.json"
MOST_WIDTH, MOST_LAYERS, MOST_STEPS = 2**14, 2**10, 2**31


# type(value), not isinstance: true and false are whole numbers to Python
def _whole(most: int):
    return f"a whole number from 1 to {most}", lambda value: type(value) is int and 1 <= value <= most


def _natural(most: int):
    return f"a whole number from 0 to {most}", lambda value: type(value) is int and 0 <= value <= most


def _number(words: str, fits):
    return f"a number {words}", lambda value: type(value) in (int, float) and fits(value)


def _one_of(names):
    return f"one of {', '.join(sorted(names))}", lambda value: isinstance(value, str) and value in names


_SWITCH = "true or false", lambda value: isinstance(value, bool)
_TEXT = "text", lambda value: isinstance(value, str)
# what is used of args.json, which anybody may have written: name -> (what it must be, whether it is)
SETTINGS = {
    "d_model": _whole(MOST_WIDTH), "n_heads": _whole(MOST_WIDTH), "d_ff": _whole(MOST_WIDTH),
    "e_layers": _whole(MOST_LAYERS), "input_token_len": _whole(MOST_STEPS), "seq_len": _whole(MOST_STEPS),
    "dropout": _number("from 0 to 0.999", lambda rate: 0 <= rate <= 0.999),
    "activation": _one_of(ACTIVATIONS), "data": _one_of(DATASETS), "model": _TEXT, "data_path": _TEXT,
    "covariate": _SWITCH, "use_norm": _SWITCH, "draft_stochastic": _SWITCH,
    "norm_mode": _one_of(("window", "causal")), "norm_window": _natural(MOST_LAYERS),
    "draft_patches": _whole(MOST_LAYERS),
} | {
    f"draft_scale_{name}": _number("above 0, to 1", lambda scale: 0 < scale <= 1)
    for name in ("d_model", "n_heads", "d_ff", "e_layers")
}


def save_tensors(path: Path, content: dict) -> None:
    """torch.save, atomically."""
    with replace_when_done(path) as beside:
        torch.save(content, beside)


def save_checkpoint(folder: Path, state: dict, settings: dict) -> None:
    """Writes args.json first: a checkpoint is never there without the settings it was made with."""
    write_json(Path(folder) / ARGS, settings)
    save_tensors(Path(folder) / CHECKPOINT, state)


def read_tensors(path: str | Path) -> dict:
    """torch.load with weights_only: a file that holds anything but tensors and plain values is refused."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: train it first or correct the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles; the error below says enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, not a checkpoint, or holding code: torch raises many kinds
        reason = "it holds objects other than tensors, which could run code" if "weights_only" in str(error) \
            or "Unsupported" in str(error) else "it is damaged, cut short or not a checkpoint"
        raise UserError(f"checkpoint {path} was not loaded: {reason}; copy or train it again") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict")
    return content


def read_state(path: str | Path) -> dict:
    """The state dict in a checkpoint of this program, of OpenLTM or of STRIDE (wrappers and 'module.' are undone)."""
    content = read_tensors(path)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not content or not all(isinstance(key, str) and _is_weight(value) for key, value in content.items()):
        raise UserError(f"checkpoint {path} holds no state dict of tensors: give the checkpoint.pth of a trained model")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _is_weight(value) -> bool:
    """Dense floats that are really there: nothing sparse, quantized, integer, complex, 8 bits short or on 'meta'."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
            and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64))


def read_settings(path: str | Path) -> dict | None:
    """args.json beside a checkpoint, with values that can be used; None for a bare checkpoint."""
    beside = Path(path).with_name(ARGS)
    if not beside.is_file():
        return None
    try:
        settings = json.loads(beside.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{beside} is not valid JSON ({error}): restore it, or delete it and give the flags") from error
    if not isinstance(settings, dict):
        raise UserError(f"{beside} does not hold settings (a JSON object): restore it, or delete it and give the flags")
    for name, (wanted, fits) in SETTINGS.items():
        if name in settings and not fits(settings[name]):
            raise UserError(f"{beside}: {name} is {shorten(settings[name])}, but must be {wanted}: correct it, or "
                            "delete the file and give the flags")
    return settings


def load_into(model: torch.nn.Module, state: dict, path: str | Path) -> None:
    """Loads by name; a key that is missing, unknown or of another shape is named, with both shapes."""
    own = model.state_dict()
    for key, value in own.items():
        if key in state and state[key].shape != value.shape:
            raise UserError(f"checkpoint {path} has another shape: {key} is {list(state[key].shape)} in the file and "
                            f"{list(value.shape)} in the model; give the flags it was trained with")
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        raise UserError(f"checkpoint {path} is of another model: {len(missing)} tensors missing "
                        f"({', '.join(missing[:2]) or '-'}), {len(unknown)} unknown ({', '.join(unknown[:2]) or '-'}); "
                        "check --model, --e_layers and --draft_stochastic")
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"checkpoint {path} holds NaN or infinity in {bad[0]}: train it again")
    model.load_state_dict(state)
