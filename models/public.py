"""Models that others have published: a folder with config.json and model.safetensors, or weights beside a config.json.

A `Family` is a kind of such models that this program has: how its config.json is recognised, and what its settings are
called here. `FAMILIES` is the one place that lists them. `models.checkpoint` reads settings and weights through it, so
that such a folder stands wherever one of this program's own checkpoints does.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError, shorten

CONFIG, WEIGHTS, SUFFIX = "config.json", "model.safetensors", ".safetensors"
REQUIRED = "requirements-public.txt"


@dataclass(frozen=True)
class Family:
    """A kind of public models.

    model: its name in the registry. recognises: whether a config.json (a JSON object) is one of this family.
    settings: (config.json, its path) -> the settings of `ModelConfig` that follow; raises UserError for a model of this
    family that this program does not compute.
    renamed: the name of a tensor in the file -> its name in the module.
    sizes: (shapes of the tensors by name, path of their file) -> the settings that follow, or None for other tensors;
    for a family whose config.json does not tell, which is not read then. Raises UserError as `settings`.
    """

    model: str
    recognises: Callable[[Mapping[str, Any]], bool]
    settings: Callable[[Mapping[str, Any], Path], dict[str, Any]]
    renamed: Callable[[str], str] = str
    sizes: Callable[[Mapping[str, Sequence[int]], Path], dict[str, Any] | None] = lambda shapes, path: None


# --- Timer, from the hub

TIMER_NAMES = {"d_model": "hidden_size", "n_heads": "num_attention_heads", "d_ff": "intermediate_size",
               "e_layers": "num_hidden_layers", "input_token_len": "input_token_len", "activation": "hidden_act"}


def _is_timer(config: Mapping[str, Any]) -> bool:
    return config.get("model_type", config.get("model")) == "timer"


def _timer_settings(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    missing = [name for name in TIMER_NAMES.values() if name not in config]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: restore it")
    patch = config["input_token_len"]
    only = {"output_token_lens": [patch], "rope_theta": 10000}
    for name, value in only.items():
        if config.get(name, value) != value:
            raise UserError(f"{path}: {name} is {shorten(config[name])}, but a Timer here has {value}: use another "
                            "model")
    # all that the weights depend on, so that a flag that says something else is refused
    return {own: config[name] for own, name in TIMER_NAMES.items()} | {
        "use_norm": True, "norm_mode": "window", "norm_window": 0, "covariate": False}


# --- TimesFM 2.5, in the layout of its package for torch

TIMESFM_NAMES = {"tokenizer": "embedding", "stacked_xf": "blocks.attn_layers", "output_projection_point": "head",
                 "output_projection_quantiles": "long_head"}
TIMESFM_CHANNELS = 10


def timesfm_name(name: str) -> str:
    part, _, rest = name.partition(".")
    return f"{TIMESFM_NAMES.get(part, part)}.{rest}"


def timesfm_sizes(shapes: Mapping[str, Sequence[int]], path: Path) -> dict[str, Any] | None:
    """Settings of `ModelConfig` by the shapes of its tensors; None for those of another model."""
    if "stacked_xf.0.attn.qkv_proj.weight" not in shapes:
        return None
    try:
        width, inputs = shapes["tokenizer.hidden_layer.weight"]
        head_dim = shapes["stacked_xf.0.attn.query_ln.scale"][0]
        d_ff, outputs = shapes["stacked_xf.0.ff0.weight"][0], shapes["output_projection_point.output_layer.weight"][0]
    except (KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} lacks tensors of a TimesFM ({error}): download it again") from error
    return {"input_token_len": inputs // 2, "output_token_len": outputs // TIMESFM_CHANNELS, "d_model": width,
            "n_heads": width // head_dim, "d_ff": d_ff, "activation": "silu", "use_norm": True, "norm_mode": "window",
            "covariate": False,
            "e_layers": len({name.split(".")[1] for name in shapes if name.startswith("stacked_xf.")})}


def _nothing(config: Mapping[str, Any], path: Path | None = None) -> Any:
    """For a family that is known by its tensors."""
    return False if path is None else {}


FAMILIES: tuple[Family, ...] = (Family("timer", _is_timer, _timer_settings),
                                Family("timesfm", _nothing, _nothing, timesfm_name, timesfm_sizes))


def weights_in(folder: Path) -> Path | None:
    """The weights of a public model in a folder; None if it has none."""
    return folder / WEIGHTS if (folder / WEIGHTS).is_file() else None


def missing_weights(path: Path) -> str:
    """' (...)': what a folder lacks that has the config.json of a public model, but not the weights at `path`."""
    lacks = path.with_name(CONFIG).is_file() and not path.with_name(WEIGHTS).exists()
    return f" (beside it there is a {CONFIG}, but no {WEIGHTS}: download that too)" if lacks else ""


def settings_beside(weights: Path) -> dict[str, Any] | None:
    """The settings that a file of weights tells, or the config.json beside it, `model` included; None for neither.

    Beside other files than safetensors a config.json of no family means nothing. Raises UserError for one that is no
    JSON object, and for a model that is not here.
    """
    path, public = weights.with_name(CONFIG), weights.suffix == SUFFIX
    shapes = shapes_in(weights) if public and weights.is_file() else {}
    for each in FAMILIES:
        found = each.sizes(shapes, weights)
        if found is not None:
            return {"model": each.model} | found
    if not path.is_file():
        return None
    try:
        config = read_object(path, "restore it")
    except UserError:
        if public:
            raise
        return None
    family = next((each for each in FAMILIES if each.recognises(config)), None)
    if family is not None:
        return {"model": family.model} | family.settings(config, path)
    if not public:
        return None
    told = {key: config[key] for key in ("model_type", "architectures") if key in config}
    known = ", ".join(each.model for each in FAMILIES)
    raise UserError(f"{path} is of a model that is not here ({shorten(told) if told else 'it does not say which'}): "
                    f"use one of {known}, or see docs/YOUR_MODEL.md")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file in the format of safetensors, which holds no code, by the names in the file."""
    return _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def shapes_in(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors of such a file, by name: its header alone is read."""
    return _read(path, lambda file: {name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118


def _read(path: Path, what: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors: pip install -r {REQUIRED}") from error
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: correct the path")
    try:
        with safe_open(path, framework="pt") as file:
            return what(file)
    except OSError:
        raise
    except Exception as error:  # a damaged header can fail in many ways
        raise UserError(f"checkpoint {path} was not loaded: it is damaged, truncated or not in the format of "
                        "safetensors; download it again") from error


def own_names(state: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`state` by the names in `own`, those of a module, if the names of a family lead there; else as it is."""
    for family in FAMILIES:
        named = {family.renamed(key): value for key, value in state.items()}
        if named.keys() == own.keys():
            return named
    return state


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object in a file. Raises UserError where there is none in it; remedy: what to do about that."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold settings (a JSON object): {remedy}")
    return content
