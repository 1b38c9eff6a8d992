"""Longer heads of a target, kept beside its checkpoint: CHECKPOINT_heads/ holds their weights and settings.

The target's own file stays as it is. The settings name the target by the digest of its file: heads of other weights say
what those would have said.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

from exp.ownership import SOURCES
from exp.settings import RunSettings
from models.checkpoint import CHECKPOINT, read_settings
from models.foreign import ForeignModel
from models.registry import load_heads
from models.timer_xl import Model
from utils.errors import UserError, shorten
from utils.files import digest

OF_TARGET = "distill_target_ckpt"  # in the sources of their training


def heads_beside(checkpoint: Path) -> Path:
    """Path of the heads of a checkpoint, in a folder of their own."""
    return checkpoint.with_name(f"{checkpoint.stem}_heads") / CHECKPOINT


def with_heads(model: Any, checkpoint: Path, run: RunSettings) -> Any:
    """The target of a checkpoint with the longer heads beside it, in the precision of the run; one that has heads of
    its own, as it is.

    Raises UserError where there are none, and for those of another target.
    """
    if model.heads_ahead:
        return model
    path = heads_beside(checkpoint)
    if isinstance(model, ForeignModel):
        raise UserError(f"`draft` head: {model.label} has no longer heads (heads_ahead, docs/YOUR_MODEL.md): name a "
                        "draft with `draft_checkpoint`")
    if type(model) is not Model:
        raise UserError(f"`draft` head: {checkpoint} is no timer_xl, the target that heads can be trained for, and has "
                        "none of its own: name a draft with `draft_checkpoint`")
    if not path.is_file():
        raise UserError(f"`draft` head: there are no longer heads beside {checkpoint}: train them with --is_training 1 "
                        f"--self_draft 8 --distill_target_ckpt {checkpoint}, or name a draft with `draft_checkpoint`")
    refuse_others(path, checkpoint)
    drafting = model.with_heads(load_heads(path, model, packed=not run.amp and not run.bf16))
    if run.bf16:
        drafting.halve()
    return drafting


def refuse_others(path: Path, checkpoint: Path) -> None:
    """Raises UserError for heads that were trained on other weights than those of the checkpoint."""
    files = (read_settings(path) or {}).get(SOURCES)
    known = files.get(OF_TARGET) if isinstance(files, dict) else None
    found = known.get("sha256") if isinstance(known, dict) else None
    if found != digest(checkpoint):
        raise UserError(f"{path} was not trained on {checkpoint} as it is, but on a target with the sha256 "
                        f"{shorten(str(found)[:12])}: move {path.parent} away, and train its heads with --self_draft")
