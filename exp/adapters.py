"""Models named 'module:function' in a run: what does not go with them, and the file that stands for one.

Everything that a run keeps beside a checkpoint, and tells apart by its content, is kept beside that file.
"""
from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from exp.section import fields_of
from exp.settings import RunSettings, Settings
from models import foreign
from models.config import ModelConfig
from models.foreign import ForeignModel, is_foreign
from utils.errors import UserError
from utils.files import inside, write_json

FOLDER = "adapters"  # in that of all checkpoints
SHARED = {"input_token_len", "output_token_len"}  # of the architecture: the patch, which all models of a run share
# flags of a test, and why a foreign model cannot have them
OF_OWN_MODELS = {"rolling": "it rolls in its own way", "bf16": "its weights are its own business",
                 "compile": "only decodes of this program's models are recorded",
                 "output_attention": "its attention is not known"}
log = logging.getLogger(__name__)


def refuse_for_adapters(values: Mapping[str, Any], given: set[str]) -> None:
    """Refuses flags that do not go with a model named 'module:function'. values: flag -> value."""
    name = values["model"]
    if is_foreign(name):
        if values["is_training"]:
            raise UserError(f"--model {name} cannot be trained here: it is tested with --is_training 0, and teaches a "
                            f"draft with --distill --distill_target_model {name}")
        alone = not (values["use_speculative"] or values["compare"] or values["spec_draft_ckpt"])
        idle = (set(fields_of(ModelConfig)) - SHARED) & given if alone else set()
        for flag in sorted(idle):
            raise UserError(f"--{flag} has no effect with --model {name}, which brings its own architecture: leave it "
                            "out")
        for flag, reason in OF_OWN_MODELS.items():
            if values[flag] not in (None, False):
                raise UserError(f"--{flag} does not go with --model {name}: {reason}; leave it out")
    if values["distill"] and is_foreign(values["distill_target_model"]):
        sizes = sorted(flag for flag in given if flag.startswith("distill_target_") and flag not in (
            "distill_target_model", "distill_target_ckpt"))
        if sizes:
            raise UserError(f"--{sizes[0]} has no effect with --distill_target_model "
                            f"{values['distill_target_model']}, which brings its own architecture: leave it out")


def has_draft(values: Mapping[str, Any]) -> bool:
    """Whether a draft is named: a checkpoint, or a function that may need none."""
    return values["spec_draft_ckpt"] is not None or is_foreign(values["spec_draft_model"])


def with_stand_ins(settings: Settings) -> Settings:
    """The files that stand for them, in place of the checkpoints of a foreign draft and of a foreign teacher."""
    run, train = settings.run, settings.train
    if is_foreign(run.draft_model) and (run.use_speculative or run.compare):
        settings = settings.with_("run", draft_checkpoint=_stand_in(run, run.draft_model, run.draft_checkpoint))
    if train.distill and is_foreign(train.target_model):
        settings = settings.with_("train", target_checkpoint=_stand_in(run, train.target_model,
                                                                       train.target_checkpoint))
    return settings


def tested_stand_in(run: RunSettings, model: str) -> Path:
    """That of the model under test; its checkpoint, if --test_dir names one, is a file like any other's."""
    named = None if run.test_dir is None else str(inside(inside(run.checkpoints, run.test_dir, "--test_dir"),
                                                         run.test_file_name, "--test_file_name"))
    return Path(_stand_in(run, model, named))


def _stand_in(run: RunSettings, name: str, checkpoint: str | None) -> str:
    """Writes, if it is not there, the file that says which model it is: another one has a file of another name."""
    foreign.checked_function(name, checkpoint)
    found = foreign.identity(name, checkpoint)
    path = Path(run.checkpoints) / FOLDER / f"{foreign.short_identity(found)}.json"
    if not path.is_file():
        write_json(path, dict(found))
    return str(path)


def load_adapter(stand_in: str | Path, name: str, device: torch.device) -> ForeignModel:
    """The model that a file of `_stand_in` stands for."""
    checkpoint = _checkpoint_of(stand_in)
    model = foreign.load(name, device, checkpoint)
    log.info("note: %s is your own code: only %s is checked for changes: after others give another --des", name,
             "its source file" if checkpoint is None else f"its source file and {checkpoint}")
    return model


def draft_flag(run: RunSettings) -> str | None:
    """--spec_draft_ckpt as it was given."""
    foreign_one = run.draft_checkpoint is not None and is_foreign(run.draft_model)
    return _checkpoint_of(str(run.draft_checkpoint)) if foreign_one else run.draft_checkpoint


def _checkpoint_of(stand_in: str | Path) -> str | None:
    return json.loads(Path(stand_in).read_text(encoding="utf-8")).get("checkpoint")
