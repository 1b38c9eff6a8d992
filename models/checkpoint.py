"""Checkpoints: checkpoint.pth (a bare state dict) and args.json; written atomically, loaded with weights_only.

A file of tensors carries the digest of its content, and a checkpoint its settings, as further entries of torch's
archive. Other programs ignore them.
"""
from __future__ import annotations

import hashlib
import json
import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from difflib import SequenceMatcher
from os.path import commonprefix
from pathlib import Path
from typing import IO, Any

import torch

from models.config import ModelConfig
from models.public import CONFIG, SUFFIX, missing_weights, own_names, read_object, read_weights, settings_beside
from utils.errors import UserError, shorten
from utils.files import replace_when_done, write_json
from utils.limits import check

CHECKPOINT = "checkpoint.pth"
ARGS = "args.json"
OF_INPUT = {"seq_len", "data"}  # settings that later runs take from args.json, beside the architecture
DIRECTORY = 0x10  # among the attributes of an entry, where torch looks for it
DIGEST = "sha256"  # name of the entry with the digest of all others


def save_tensors(path: Path, content: Mapping[str, Any], entries: Mapping[str, str] | None = None) -> None:
    """torch.save, atomically and with a digest. entries: name -> text, kept in the same archive."""
    with replace_when_done(path) as beside:
        with open(beside, "wb") as handle:  # given a path, torch fails on a full disk without a word of it
            torch.save(content, handle)
        with zipfile.ZipFile(beside, "a") as archive:
            top = Path(archive.namelist()[0]).parts[0]
            for name, text in (entries or {}).items():
                archive.writestr(f"{top}/{name}", text)
            archive.writestr(f"{top}/{DIGEST}", _digest(archive)[0])


def save_checkpoint(folder: Path, state: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    """Writes args.json first: a checkpoint never exists without the settings that it was trained with."""
    write_json(Path(folder) / ARGS, settings)
    save_tensors(Path(folder) / CHECKPOINT, state, {ARGS: json.dumps(settings)})


def _digest(archive: zipfile.ZipFile) -> tuple[str, str | None]:
    """sha256 of the entries by name and content, and what the entry DIGEST says it is.

    Raises BadZipFile where the archive's own checksum of an entry does not match, which also protects foreign files.
    """
    sha, said = hashlib.sha256(), None
    for entry in archive.infolist():
        # torch writes neither: the one could be small here and huge in memory, of the other torch reads no content
        if entry.compress_type != zipfile.ZIP_STORED or entry.external_attr & DIRECTORY:
            raise ValueError("a compressed entry, or a directory")
        content = archive.read(entry)
        if Path(entry.filename).name == DIGEST:
            said = content.decode()
        else:
            sha.update(f"{entry.filename} {len(content)} ".encode() + content)
    return sha.hexdigest(), said


def _verify(file: IO[bytes]) -> None:
    """Raises ValueError or BadZipFile if the content of a file of tensors is not what was written."""
    if file.read(2) != b"PK":
        return  # the format of torch before 1.6, which has no checksums
    with zipfile.ZipFile(file) as archive:
        found, said = _digest(archive)
    if said not in (None, found):
        raise ValueError(f"the digest {said} does not match {found}")


def read_tensors(path: str | Path) -> dict[str, Any]:
    """torch.load with weights_only: a file that holds anything but tensors and plain values is refused, and one that
    is not what was written."""
    path = Path(path)
    refuse_missing(path)
    with open(path, "rb") as file:
        content = _loaded(file, path)
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict: give the "
                        "checkpoint.pth of a trained model")
    return content


def refuse_missing(path: Path) -> None:
    """Raises UserError unless there is such a file."""
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist: train it first, or correct the path"
                        f"{missing_weights(path) or nearest(path)}")


def _loaded(file: IO[bytes], path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign pickles; the error below suffices
            _verify(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated, not a checkpoint, or holding code: torch raises many kinds
        reason = "it holds objects other than tensors, which could run code" if "weights_only" in str(error) \
            or "Unsupported" in str(error) else "it is damaged, truncated or not a checkpoint"
        raise UserError(f"checkpoint {path} was not loaded: {reason}; copy or train it again") from error


def nearest(path: Path, most: int = 3) -> str:
    """' (there are: ...)': checkpoints whose path is most like one that does not exist; '' if there are none."""
    missing = next((part for part in (path, *path.parents) if part.parent.is_dir()), path)
    try:
        beside = [other for other in missing.parent.iterdir() if missing.name != CHECKPOINT]
        found = [other for other in beside if (other / CHECKPOINT).is_file()
                 or (other.is_file() and other.suffix == missing.suffix != "")]
        found += [other / missing.name for other in beside if (other / missing.name / CHECKPOINT).is_file()]
    except OSError:  # a folder that cannot be read
        return ""
    found.sort(key=lambda other: (-len(commonprefix([other.name, missing.name])),
                                  -SequenceMatcher(None, other.name, missing.name).ratio(), other.name))
    return f" (there are: {', '.join(map(str, found[:most]))}{', ...' if found[most:] else ''})" if found else ""


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a checkpoint of this program, of OpenLTM or of STRIDE (wrappers and 'module.' are stripped), or
    in a file in the format of safetensors."""
    content: dict[str, Any] = read_weights(Path(path)) if Path(path).suffix == SUFFIX else read_tensors(path)
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not content or not all(isinstance(key, str) and _is_weight(value) for key, value in content.items()):
        raise UserError(f"checkpoint {path} holds no state dict of tensors: give the checkpoint.pth of a trained model")
    return {key.removeprefix("module."): value for key, value in content.items()}


def _is_weight(value: object) -> bool:
    """True for dense float tensors with data: not sparse, nested, quantized, integer, complex, 8-bit or on 'meta'."""
    return (isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_nested
            and value.device.type == "cpu"
            and value.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64))


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """The validated args.json beside a checkpoint, or what a public model's config.json says; None for a bare one."""
    beside = Path(path).with_name(ARGS)
    of_model = {field.name: field for field in fields(ModelConfig)}
    if not beside.is_file():
        public = settings_beside(Path(path))
        check(of_model, public or {}, beside.with_name(CONFIG))
        return public
    settings = read_object(beside, "restore it, or delete it and give the settings")
    check(of_model, settings, beside)
    trained = settings_inside(Path(path))
    for name in sorted(trained.keys() & settings.keys() & (of_model.keys() | OF_INPUT)):
        if trained[name] != settings[name]:
            raise UserError(f"{beside} says {name} is {shorten(settings[name])}, but {path} was trained with "
                            f"{shorten(trained[name])}: restore the file")
    # a file that does not mention normalisation has always meant a model that has it
    return {"use_norm": True} | settings


def settings_inside(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint carries; empty for one of another program."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if Path(name).name == ARGS)
            inside = json.loads(archive.read(name))
    except Exception:  # none, or damaged in one of many ways, which loading it will report
        return {}
    return inside if isinstance(inside, dict) else {}


def renamed(state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """STRIDE calls the only head of a deterministic draft `head`, as a target's; here it is `head_mean`.

    A file that has both names keeps them: the model knows one of them only, and the other is refused as unknown.
    A public model may have names of its own, see `models.public`.
    """
    state = own_names(state, own)
    if "head_mean.weight" not in own or any(key.startswith("head_mean.") for key in state):
        return state
    return {f"head_mean.{key.removeprefix('head.')}" if key.startswith("head.") else key: value
            for key, value in state.items()}


def load_into(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | Path,
              fresh: tuple[str, ...] = ()) -> list[str]:
    """Loads by name, in the model's precision.

    Raises UserError that names keys which are missing, unknown, of another shape or not finite; the model is then left
    as it was.
    fresh: beginnings of names; tensors of such a name may all be missing and stay as they are. Returns their names.
    """
    own = model.state_dict()
    state = renamed(state, own)
    for key, value in own.items():
        if key in state and state[key].shape != value.shape:
            raise UserError(f"checkpoint {path} has another shape: {key} is {list(state[key].shape)} in the file and "
                            f"{list(value.shape)} in the model; give the settings it was trained with")
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    new = [] if any(key.startswith(fresh) for key in state) else [key for key in missing if key.startswith(fresh)]
    missing = [key for key in missing if key not in new]
    if missing or unknown:
        raise UserError(f"checkpoint {path} belongs to another model: {len(missing)} tensors missing "
                        f"({', '.join(missing[:2]) or '-'}), {len(unknown)} unknown ({', '.join(unknown[:2]) or '-'}); "
                        "check `model`, `e_layers` and `draft_stochastic`")
    for key, value in state.items():
        held = value.to(own[key].dtype)
        if not torch.isfinite(held).all():
            largest = float(value.abs().max())
            what = "NaN or infinity" if not math.isfinite(largest) else f"{largest:g}, too large for {held.dtype},"
            raise UserError(f"checkpoint {path} holds {what} in {key}: train it again")
    model.load_state_dict(state | {key: own[key] for key in new})
    return new
