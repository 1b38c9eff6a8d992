"""Models that others have published: a folder with config.json and model.safetensors, or weights beside a config.json.

A `Family` is a kind of such models that this program has: how its config.json is recognised, and what its settings are
called here. `FAMILIES` is the one place that lists them. `models.checkpoint` reads settings and weights through it, so
that such a folder stands wherever one of this program's own checkpoints does.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
    """

    model: str
    recognises: Callable[[Mapping[str, Any]], bool]
    settings: Callable[[Mapping[str, Any], Path], dict[str, Any]]
    renamed: Callable[[str], str] = str


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


FAMILIES: tuple[Family, ...] = (Family("timer", _is_timer, _timer_settings),)


def weights_in(folder: Path) -> Path | None:
    """The weights of a public model in a folder; None if it has none."""
    return folder / WEIGHTS if (folder / WEIGHTS).is_file() else None


def missing_weights(path: Path) -> str:
    """' (...)': what a folder lacks that has the config.json of a public model, but not the weights at `path`."""
    lacks = path.with_name(CONFIG).is_file() and not path.with_name(WEIGHTS).exists()
    return f" (beside it there is a {CONFIG}, but no {WEIGHTS}: download that too)" if lacks else ""


def settings_beside(weights: Path) -> dict[str, Any] | None:
    """The settings that the config.json beside a file of weights tells, `model` included; None where there is none.

    Beside other files than safetensors a config.json of no family means nothing. Raises UserError for one that is no
    JSON object, and for a model that is not here.
    """
    path = weights.with_name(CONFIG)
    if not path.is_file():
        return None
    public = weights.suffix == SUFFIX
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
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors: pip install -r {REQUIRED}") from error
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: correct the path")
    try:
        return load_file(path)
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
