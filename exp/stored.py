"""Where the runs of a setting are kept, and the settings that a checkpoint brings with it."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exp.flags import FLAGS
from exp.settings import DataSettings, RunSettings
from models.checkpoint import ARGS, read_settings
from models.config import DRAFT_ONLY, ModelConfig
from models.registry import DRAFTS
from utils.files import inside
from utils.limits import check

OF_DATA = ("seq_len", "data")  # settings of the data that args.json knows


def setting_name(run: RunSettings, model: str, iteration: int = 0) -> str:
    """Folder name of a run: task, model id, model, description, iteration. Everything else is in args.json."""
    return f"{run.task_name}_{run.model_id}_{model}_{run.des}_{iteration}"


def tested_checkpoint(run: RunSettings, model: str) -> Path:
    """The checkpoint that a test names."""
    folder = inside(run.checkpoints, run.test_dir or setting_name(run, model), "--model_id/--des/--test_dir")
    return inside(folder, run.test_file_name, "--test_file_name")


def stored_settings(checkpoint: Path) -> dict[str, Any]:
    """args.json beside a checkpoint, with values that can be used; empty where there is none."""
    stored = read_settings(checkpoint) or {}
    check({name: FLAGS[name].field for name in (*OF_DATA, "data_path")}, stored, checkpoint.with_name(ARGS))
    return stored


def completed(wanted: Mapping[str, Any], model: str, data: DataSettings) -> ModelConfig:
    """`wanted` over the defaults, without what only a draft has for another model, and with a trailing window."""
    wanted = {name: value for name, value in wanted.items() if model in DRAFTS or name not in DRAFT_ONLY}
    if wanted.get("norm_mode") == "causal" and not wanted.get("norm_window"):
        patch_len = wanted.get("input_token_len", ModelConfig.input_token_len)
        wanted["norm_window"] = max(1, data.test_context // patch_len)
    return ModelConfig.from_mapping(wanted)
