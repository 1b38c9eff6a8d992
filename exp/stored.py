"""Where the runs of a setting are kept, and the settings that a checkpoint brings with it."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exp.flags import FLAGS
from exp.foreign_names import run_of
from exp.settings import DataSettings, RunSettings
from models.checkpoint import ARGS, CHECKPOINT, nearest, read_settings
from models.config import DRAFT_ONLY, ModelConfig
from models.foreign import file_name
from models.registry import DEFAULTS_OF, DRAFTS, MODELS, checkpoint_in
from utils.errors import UserError
from utils.files import inside
from utils.limits import check

OF_DATA = ("seq_len", "data")  # settings of the data that args.json knows


def setting_name(run: RunSettings, model: str, iteration: int = 0) -> str:
    """Folder name of a run: task, model id, model, description, iteration. Everything else is in args.json."""
    return f"{run.task_name}_{run.model_id}_{file_name(model)}_{run.des}_{iteration}"


def tested_checkpoint(run: RunSettings, model: str) -> Path:
    """The checkpoint that a test names."""
    if run.test_dir:
        _refuse_path(run.test_dir, Path(run.checkpoints))
        _refuse_other_name(run.test_dir, Path(run.checkpoints))
    folder = inside(run.checkpoints, run.test_dir or setting_name(run, model), "--model_id/--des/--test_dir")
    named = inside(folder, run.test_file_name, "--test_file_name")
    return checkpoint_in(folder) if run.test_file_name == CHECKPOINT and folder.is_dir() else named


def _refuse_other_name(test_dir: str, checkpoints: Path) -> None:
    """Raises UserError for OpenLTM's name of a run, if there is no folder of that name, with the name it has here."""
    found = run_of(test_dir)
    if found is None or (checkpoints / test_dir).exists():
        return
    theirs = f"a folder that OpenLTM wrote is tested by its own name, once it is in {checkpoints}"
    if found.model is not None and found.model not in MODELS:
        raise UserError(f"--test_dir {test_dir}: that run's model {found.model} is none of {', '.join(MODELS)}; name "
                        "yours as --model module:function, or leave the test out")
    there = (checkpoints / found.here).is_dir()
    raise UserError(f"--test_dir {test_dir} is how OpenLTM names the run that is {found.here} here: write --test_dir "
                    f"{found.here}" + (f", which is in {checkpoints}" if there else
                                       f", after its training; it is not in {checkpoints} yet"
                                       f"{nearest(checkpoints / found.here)}") + f" ({theirs})")


def _refuse_path(test_dir: str, checkpoints: Path) -> None:
    """Raises UserError for a path where the name of a folder in `checkpoints` is wanted, with the flags to write."""
    path = Path(test_dir)
    if (checkpoints / test_dir).is_dir() and ".." not in path.parts and not path.is_absolute():
        return
    folder = path.parent if path.is_file() else path
    if path.exists() and folder.name not in ("", ".."):
        file = f" --test_file_name {path.name}" if folder != path else ""
        raise UserError(f"--test_dir {test_dir} is a path, but must be the name of a folder inside --checkpoints "
                        f"{checkpoints}: write --checkpoints {folder.parent} --test_dir {folder.name}{file}")


def stored_settings(checkpoint: Path) -> dict[str, Any]:
    """args.json beside a checkpoint, with values that can be used; empty where there is none."""
    stored = read_settings(checkpoint) or {}
    check({name: FLAGS[name].field for name in (*OF_DATA, "data_path")}, stored, checkpoint.with_name(ARGS))
    return stored


def completed(wanted: Mapping[str, Any], model: str, data: DataSettings) -> ModelConfig:
    """`wanted` over the model's defaults, with a trailing window, without what only a draft has."""
    known = {name: value for name, value in wanted.items() if model in DRAFTS or name not in DRAFT_ONLY}
    wanted = DEFAULTS_OF.get(model, {}) | known
    if wanted.get("norm_mode") == "causal" and not wanted.get("norm_window"):
        patch_len = wanted.get("input_token_len", ModelConfig.input_token_len)
        wanted["norm_window"] = max(1, data.test_context // patch_len)
    return ModelConfig.from_mapping(wanted)
