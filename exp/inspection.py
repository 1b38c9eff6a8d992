"""--inspect: what a checkpoint is, how it will be rolled and what fits it, without data; or why it cannot be used."""
from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exp.foreign_names import run_of
from exp.own_heads import heads_beside, refuse_others
from exp.ownership import SOURCES
from exp.section import fields_of
from exp.stored import stored_settings
from models import registry
from models.checkpoint import ARGS, CHECKPOINT, nearest, read_state, settings_inside
from models.config import DRAFT_ONLY, ModelConfig
from models.deduce import Deduced, deduced
from models.public import missing_weights
from models.registry import APART, DEFAULTS_OF, DRAFTS, MODELS, checkpoint_in
from models.timer_xl import TimerBackbone
from utils.errors import UserError
from utils.files import digest

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
NO_CHECKPOINT = "resume.pth"
FITTED = {"calibration": "calibrated laws and bands", "certificate": "certificates of parareal"}
WIDTH = 14  # of the first column
log = logging.getLogger(__name__)


@dataclass
class Found:
    """One usable checkpoint. stored: its args.json or config.json; guess: for a bare one, what its tensors tell."""

    path: Path
    name: str
    model: TimerBackbone
    stored: dict[str, Any]
    guess: Deduced | None = None

    @property
    def draft(self) -> bool:
        return self.name in DRAFTS


def show(path: str) -> None:
    for line in inspected(Path(path)):
        log.info("%s", line)


def inspected(path: Path) -> list[str]:
    """Lines about a checkpoint file, its folder, a public folder, or a folder of such folders (a line each).

    Raises UserError where nothing there can be used.
    """
    single = checkpoint_in(path)
    if single.is_file():
        return _of_one(single)
    if not path.is_dir():
        raise UserError(f"checkpoint {path} does not exist: correct the path{nearest(path)}")
    several = list(_below(path))
    if len(several) == 1:
        return _of_one(several[0])
    if not several:
        raise UserError(f"{path} has no checkpoint ({', '.join(SUFFIXES)}) in it or in a folder of it: name another"
                        f"{missing_weights(single)}")
    lines, usable = [], False
    for checkpoint in several:
        try:
            line = _in_a_line(read(checkpoint))
            usable = True
        except UserError as error:
            line = f"not usable: {error}"
        except PermissionError:
            line = "not usable: permission denied"
        name = checkpoint.parent if checkpoint.name == CHECKPOINT else checkpoint
        lines.append(f"{name.relative_to(path) if name != path else checkpoint.name}: {line}")
    if not usable:
        raise UserError(f"none of the {len(several)} checkpoints in {path} can be used: {lines[0]}")
    return lines


def _below(folder: Path) -> Iterator[Path]:
    """The checkpoints of a folder without one of the usual name, and those of its folders."""
    for part in sorted(folder.iterdir()):
        if part.is_dir():
            if (own := _checkpoint_of(part)) is not None:
                yield own
        elif part.suffix in SUFFIXES and part.name != NO_CHECKPOINT and not any(f"_{kind}_" in part.stem
                                                                               for kind in FITTED):
            yield part


def _checkpoint_of(folder: Path) -> Path | None:
    """The checkpoint in a folder; where it may not be looked into, the one that would be there."""
    try:
        path = checkpoint_in(folder)
        return path if path.is_file() else None
    except PermissionError:
        return folder / CHECKPOINT


def read(path: Path) -> Found:
    """Loads a checkpoint as a test would. Raises UserError with the reason if that would refuse it."""
    whole = path.absolute()
    folder = whole.parent
    if any(heads_beside(target) == whole for target in folder.parent.glob(f"{folder.name.removesuffix('_heads')}.*")):
        raise UserError(f"{path} holds longer heads of a target, and no model: inspect {folder.parent}")
    stored = stored_settings(path)
    if stored:
        model = registry.load(path, packed=False)
        return Found(path, stored["model"], model, stored)
    state = read_state(path)
    guess, theirs = _from_inside(path) or deduced(state, path), run_of(path.parent.name)
    if theirs is not None and "n_heads" in guess.open:
        guess.settings["n_heads"] = theirs.sizes["n_heads"]
        guess.open["n_heads"] = "as its folder's name says"
    config = ModelConfig.from_mapping(DEFAULTS_OF[guess.model] | guess.settings)
    return Found(path, guess.model, registry.load(path, name=guess.model, bare=config, packed=False), {}, guess)


def _from_inside(path: Path) -> Deduced | None:
    """The settings that a checkpoint of this program carries, where it has lost those beside it."""
    inside = settings_inside(path)
    if inside.get("model") not in MODELS:
        return None
    return Deduced(inside["model"], {name: inside[name] for name in fields_of(ModelConfig) if name in inside}, {})


# --- in words

def _of_one(path: Path) -> list[str]:
    found = read(path)
    rows = {"family": _family(found), "sizes": _sizes(found), "patch": _patch(found), "normalised": _normalised(found),
            "rolls": _rolls(found), "trained on": _trained_on(found)}
    lines = [str(path)] + _rows({name: words for name, words in rows.items() if words})
    if found.guess is not None:
        lines += _rows({"not known": [f"--{name}: {why}" for name, why in found.guess.open.items()] or ["nothing"]})
    lines += _rows({f"{'targets' if found.draft else 'drafts'} beside": _fitting(found) or ["none that fits"],
                    "kept with it": _kept_beside(path) or ["nothing yet"]})
    return lines + _rows({"to test it": _command(found)})


def _rows(words: Mapping[str, str | list[str]]) -> list[str]:
    """Of a list each part has a line."""
    lines = []
    for name, text in words.items():
        for part in [text] if isinstance(text, str) else text:
            lines.append(f"  {name:<{WIDTH}} {part}")
            name = ""
    return lines


def _in_a_line(found: Found) -> str:
    bare = "" if found.guess is None else ", bare (inspect it by itself)"
    return f"{found.name}, {_sizes(found)}, {_patch(found)}, {_normalised(found)}, rolls by {found.model.rolling}{bare}"


def _family(found: Found) -> str:
    said = "a draft" if found.draft else "a target"
    if found.guess is not None:
        source = "the names and shapes of its tensors" if found.guess.open else "the settings inside it"
        return f"{found.name}, {said}, by {source}: there is no {ARGS}"
    public = "" if found.path.with_name(ARGS).is_file() else ", a public model"
    return f"{found.name}, {said}{public}"


def _sizes(found: Found) -> str:
    config, count = found.model.config, sum(weight.numel() for weight in found.model.parameters())
    scales = [size for size in DRAFT_ONLY if size.startswith("draft_scale") and found.stored.get(size, 1.0) != 1.0]
    of = f" (scaled from d_model {found.stored['d_model']})" if scales else ""
    return f"d_model {config.d_model} x {config.e_layers} layers, {config.n_heads} heads, d_ff {config.d_ff}{of}: " \
           f"{count:,} parameters"


def _patch(found: Found) -> str:
    patch, tokens, context = found.model.patch_len, found.model.token_len, found.stored.get("seq_len")
    ahead = f", {found.model.patches_ahead} of them a pass" if found.model.patches_ahead > 1 else ""
    ahead += f", read {tokens} steps at a time" if tokens != patch else ""
    return f"patch {patch}{ahead}" + (f", context {context} ({context // patch} patches)" if context else "")


def _normalised(found: Found) -> str:
    config = found.model.config
    if not config.use_norm:
        return "not normalised"
    if found.model.token_len != found.model.patch_len:
        return "each token by all before its end"
    if config.causal:
        known = found.guess is None or "norm_window" not in found.guess.open
        window = f"its own trailing {config.norm_window} patches" if known else "its own trailing window"
        return f"each patch by {window}"
    return f"--norm_roll {found.model.way}" if hasattr(found.model, "norm_roll") else "each window as a whole"


def _rolls(found: Found) -> str:
    """How it rolls, and whether a cache computes the same."""
    model, config = found.model, found.model.config
    if config.covariate:
        return "by window; nothing can be cached, as the last variable looks ahead in the others"
    if hasattr(model, "norm_roll"):
        return "by cache, which is exact; so it is for --norm_roll frozen, and --norm_roll window has none"
    if model.own_rolling == "cache":
        return "by cache, which is exact"
    if config.use_norm:
        return "by window; --rolling cache would be an approximation, which freezes the statistics of the context"
    return "by window; --rolling cache is exact for a context that grows with every patch, which is another forecast"


def _trained_on(found: Found) -> str:
    stored = found.stored
    if not stored.get("data_path"):
        return ""
    kind = "each variable by itself" if _apart(found) else "all variables together"
    covariate = ", the last one forecast" if found.model.config.covariate else ""
    return f"{stored['data_path']}, {kind}{covariate}"


def _apart(found: Found) -> bool:
    return found.model.apart or found.stored.get("data", "MultivariateDatasetBenchmark") != \
        "MultivariateDatasetBenchmark"


def _fitting(found: Found) -> list[str]:
    """The drafts, or for a draft the targets, in folders beside it that have its patch and its variables."""
    words = ["its own longer head (--spec_draft head)"] if found.model.heads_ahead else []
    if found.guess is not None or found.path != checkpoint_in(found.path.parent):
        return words
    own = digest(found.path)
    for folder in sorted(found.path.absolute().parent.parent.iterdir()):
        path = _checkpoint_of(folder) if folder.is_dir() else None
        if path is None or path == found.path.absolute():
            continue
        try:
            stored = stored_settings(path)
        except (UserError, PermissionError):
            continue
        if not stored or (stored.get("model") in DRAFTS) == found.draft or not _agree(found, stored):
            continue
        draft, target = (found.stored, digest(path)) if found.draft else (stored, own)
        words.append(folder.name + (" (distilled from it)" if not found.draft and _teacher(draft) == target else
                                    " (its teacher)" if found.draft and _teacher(draft) == target else ""))
    return words


def _agree(found: Found, stored: Mapping[str, Any]) -> bool:
    same = _patch_of(found.stored) == _patch_of(stored) and \
        bool(found.stored.get("covariate")) == bool(stored.get("covariate"))
    apart = stored.get("data", "MultivariateDatasetBenchmark") != "MultivariateDatasetBenchmark"
    return same and (found.model.apart or stored.get("model") in APART or apart == _apart(found))


def _patch_of(stored: Mapping[str, Any]) -> Any:
    return stored.get("output_token_len") or stored.get("input_token_len")


def _teacher(draft: Mapping[str, Any]) -> str | None:
    """The digest of the checkpoint that a draft learned from."""
    teacher = (draft.get(SOURCES) or {}).get("distill_target_ckpt") if isinstance(draft.get(SOURCES), dict) else None
    return teacher.get("sha256") if isinstance(teacher, dict) else None


def _kept_beside(path: Path) -> list[str]:
    """What was fitted to it and is kept beside it, by kind."""
    found = {words: sorted(other.name for other in path.parent.glob(f"{path.stem}_{kind}*"))
             for kind, words in FITTED.items()}
    return [f"{words}: {', '.join(names)}" for words, names in found.items() if names] + _heads_of(path)


def _heads_of(path: Path) -> list[str]:
    heads = heads_beside(path)
    if not heads.is_file():
        return []
    try:
        refuse_others(heads, path)
    except UserError:
        return [f"longer heads of other weights, which cannot be used: {heads.parent.name}"]
    return [f"longer heads, for --use_speculative --spec_draft head: {heads.parent.name}"]


def _command(found: Found) -> str:
    """A command line that tests it, but for the data."""
    folder = found.path.parent.resolve()
    flags = ["python", "run.py", "--is_training", "0", "--checkpoints", str(folder.parent), "--test_dir", folder.name]
    if found.path != checkpoint_in(found.path.parent):
        flags += ["--test_file_name", found.path.name]
    if found.name != "timer_xl":
        flags += ["--model", found.name]
    if found.guess is not None:
        theirs = run_of(found.path.parent.name)
        flags += ["--seq_len", str(theirs.sizes["seq_len"] if theirs else 7 * found.model.patch_len)]
        flags += _of_guess(found.guess)
    elif "seq_len" not in found.stored:  # a public model
        flags += ["--seq_len", str(7 * found.model.patch_len), "--input_token_len", str(found.model.token_len)]
    return " ".join(map(shlex.quote, flags)) + " --root_path FOLDER --data_path FILE"


def _of_guess(guess: Deduced) -> Iterator[str]:
    """The flags of a bare checkpoint's architecture, but for those that change no forecast or are usual."""
    usual = vars(ModelConfig.from_mapping({})) | DEFAULTS_OF[guess.model]
    idle = {"dropout", "flash_attention"} | ({"norm_window"} & guess.open.keys())
    for name, value in guess.settings.items():
        if name in idle or value == usual[name]:
            continue
        yield f"--{name}"
        if value is not True:
            yield str(value)
