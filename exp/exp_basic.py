"""Device, distributed set-up, seeds, and the models and data of a run."""
from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from data_provider.data_factory import DATASETS, ordered_loader, shared_loader, spread_windows
from data_provider.data_loader import SeriesWindows
from data_provider.samplers import batch_sizes
from data_provider.splits import Cut
from exp.adapters import load_adapter, tested_stand_in, with_stand_ins
from exp.own_heads import with_heads
from exp.processes import started_by_torchrun, watch_others
from exp.program import say
from exp.settings import RunSettings, Settings
from exp.stored import completed, setting_name, tested_checkpoint
from exp.team import ALONE, Team
from models import registry
from models.checkpoint import read_settings
from models.config import ModelConfig
from models.foreign import ForeignModel, is_foreign
from models.timer_xl import TimerBackbone
from utils.errors import UserError
from utils.files import inside
from utils.replay import record

TOKENS = ("input_token_len", "output_token_len")
# for each other: one may calibrate, or audit, for hours; of one that has ended they learn at once
PATIENCE = timedelta(days=7)
log = logging.getLogger(__name__)


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(run: RunSettings) -> torch.device:
    """The requested GPU, or the CPU if there is none."""
    if not torch.cuda.is_available():
        if run.gpu is not None:
            log.info("note: GPU %d was requested, but there is no CUDA device; running on the CPU", run.gpu)
        device = torch.device("cpu")
    elif (run.gpu or 0) >= torch.cuda.device_count():
        raise UserError(f"`gpu` {run.gpu} does not exist: there are {torch.cuda.device_count()}, numbered from 0")
    else:
        device = torch.device("cuda", run.gpu or 0)
    if run.compile and device.type == "cpu":
        log.info("note: --compile records CUDA graphs, and there is no CUDA device: nothing is recorded")
    return usable(run, device)


def usable(run: RunSettings, device: torch.device) -> torch.device:
    """Returns `device`. Raises UserError if it cannot compute as requested."""
    if run.amp and run.amp_dtype == "fp16" and device.type == "cpu":
        raise UserError("`amp_dtype` fp16 needs a GPU: use bf16 on the CPU")
    return device


def autocast(run: RunSettings, device: torch.device) -> AbstractContextManager:
    """Autocast context for `amp` and `amp_dtype`; a null context without `amp`."""
    if not run.amp:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if run.amp_dtype == "bf16" else torch.float16)


def load_model(settings: Settings, path: str | Path, name: str, device: torch.device,
               sizes: Mapping[str, Any] | None = None) -> Any:
    """A trained model in evaluation mode. Raises UserError if it does not fit the other models of this run.

    sizes: sizes that were given for this model by separate flags (those of a target to imitate).
    """
    if is_foreign(name):
        model: Any = load_adapter(path, name, device)
        return _of_the_same_patch(model, name, settings)
    run, asked = settings.run, dict(settings.model.asked if sizes is None else sizes)
    for name_of_length in TOKENS:  # shared by all models of a run: compared below
        asked.pop(name_of_length, None)
    path = registry.checkpoint_in(path)
    stored = read_settings(path)
    for key, value in (sizes or {}).items():  # here, because their flags have other names
        if stored and stored.get(key, value) != value:
            raise UserError(f"`target_{key}` {value} contradicts the checkpoint {path}, which was trained with "
                            f"{stored[key]}: leave it out")
    config = settings.model.config
    bare = None if stored else completed(
        {"covariate": config.covariate} | {key: value for key, value in settings.model.asked.items()
                                           if key not in TOKENS} | tokens_of(config, name) | dict(sizes or {}),
        name, settings.data)
    norm_roll = settings.model.norm_roll if name == "timer" else None  # not the draft's
    model = registry.load(path, device, name, asked, bare, settings.model.rolling, packed=not run.amp and not run.bf16,
                          norm_roll=norm_roll)
    _of_the_same_patch(model, f"checkpoint {path}", settings)
    change = registry.other_rolling(model)
    if change is not None:
        log.warning("note: rolling by %s changes the forecast of %s from the second patch on: %s", model.rolling, path,
                    change)
    if run.bf16 and not model.halve():
        log.info("note: this processor does not multiply in bfloat16: %s stays in float32", path)
    if run.compile:
        record(model)
    return model


def _of_the_same_patch(model: Any, what: str, settings: Settings) -> Any:
    config = settings.model.config
    if model.patch_len != config.patch_len:
        length = "input_token_len" if config.patch_len == config.input_token_len else "output_token_len"
        raise UserError(f"{what} has a patch of {model.patch_len} steps, but this run has `{length}` "
                        f"{config.patch_len}: they must be equal, for target and draft alike")
    token_len, context = getattr(model, "token_len", 1), settings.data.test_context
    if context % token_len:  # of a draft, whose tokens may be longer than the target's
        raise UserError(f"{what} reads {token_len} steps at a time, but `test_context` {context} is not a multiple of "
                        f"that: use {context // token_len * token_len or token_len}")
    return model


def tokens_of(config: ModelConfig, name: str) -> dict[str, Any]:
    """The lengths of a model of a run whose own has `config`: the patch is the same; in most it is one token."""
    if not registry.predicts_longer(name):
        return {"input_token_len": config.patch_len}
    longer = config.patch_len != config.input_token_len
    return {key: getattr(config, key) for key in TOKENS} if longer else {}


def caveats(model: TimerBackbone | ForeignModel, path: str | Path, context: int) -> list[str]:
    """What a reader should know of this model with contexts of so many steps, in sentences."""
    if isinstance(model, ForeignModel):  # nothing is known of it
        return []
    path, notes = registry.checkpoint_in(path), []
    stored = read_settings(path)
    trained = (stored or {}).get("seq_len")
    if stored is None and not model.config.use_norm:
        notes.append(f"{path} has no args.json and use_norm was not given, so it is taken for a model without "
                     "normalisation; checkpoints of OpenLTM and STRIDE are usually trained with use_norm, and forecast "
                     "badly without it")
    if not model.config.causal and isinstance(trained, int) and context > trained:
        notes.append(f"{path} was trained with a context of {trained} steps (seq_len) and is given {context}: such a "
                     "model, which reads the whole context as one window, usually gets worse with a longer one")
    return notes


class Exp_Basic:
    """Base of the experiments: device, models, data and folders."""

    def __init__(self, settings: Settings):
        self.settings = settings = with_stand_ins(settings)
        self._said: set[str] = set()
        if not settings.run.ddp and started_by_torchrun() > 1:
            raise UserError("torchrun has started several processes, each of which would do all of the work: start "
                            "run.py without torchrun" + ("" if settings.run.do_predict else ", or add --ddp"))
        self.team = ALONE
        self.device = self._set_up_distributed() if settings.run.ddp else choose_device(settings.run)
        self.rank, self.world_size, self.is_main = self.team.rank, self.team.size, self.team.is_main
        if not self.is_main:  # only the main process logs
            logging.getLogger("exp").setLevel(logging.ERROR)

    def _set_up_distributed(self) -> torch.device:
        if "RANK" not in os.environ:
            raise UserError("--ddp must be started with torchrun: torchrun --nproc_per_node N run.py --ddp ...")
        watch_others(say)
        device = usable(self.settings.run, self._device_of_process(int(os.environ.get("LOCAL_RANK", 0))))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        group = dist.new_group(backend="gloo", timeout=PATIENCE)  # objects lie on the CPU, whatever the device
        self.team = Team(dist.get_rank(), dist.get_world_size(), group)
        return device

    def _device_of_process(self, local: int) -> torch.device:
        """GPU of process `local` on this machine; --devices must name enough GPUs even if there are none."""
        named = self.settings.run.devices
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = named or tuple(range(present))
        if local >= len(devices) and (present or named):
            raise UserError(f"--ddp: only {len(devices)} GPU(s) for process {local + 1} on this machine: start fewer "
                            "processes (torchrun --nproc_per_node), or name one GPU per process with --devices")
        if not present:
            return torch.device("cpu")
        if max(devices) >= present:
            raise UserError(f"--devices names GPU {max(devices)}, but there are {present}, numbered from 0")
        torch.cuda.set_device(devices[local])
        return torch.device("cuda", devices[local])

    @property
    def patch_len(self) -> int:
        return self.settings.model.config.patch_len

    def setting(self, iteration: int = 0) -> str:
        return setting_name(self.settings.run, self.settings.model.name, iteration)

    def checkpoint_folder(self, setting: str) -> Path:
        return inside(self.settings.run.checkpoints, setting, "--model_id/--des/--test_dir")

    def tested_checkpoint(self) -> Path:
        """The checkpoint to test, or the file that stands for a foreign model."""
        if is_foreign(self.settings.model.name):
            return tested_stand_in(self.settings.run, self.settings.model.name)
        return tested_checkpoint(self.settings.run, self.settings.model.name)

    def load_tested(self, checkpoint: Path) -> Any:
        """The model under test; says what a reader should know of it."""
        return self._noted(load_model(self.settings, checkpoint, self.settings.model.name, self.device), checkpoint)

    def with_draft(self, model: Any, checkpoint: Path) -> tuple[Any, Any]:
        """The tested model and its draft; or, where its own heads propose, that model with them and None."""
        if self.settings.run.draft == "head":
            return with_heads(model, checkpoint, self.settings.run), None
        return model, self.load_draft()

    def load_draft(self) -> Any:
        """The draft used with it."""
        run = self.settings.run
        if run.draft_checkpoint is None:
            raise UserError("`draft_checkpoint` is missing: give the checkpoint of the draft")
        return self._noted(load_model(self.settings, run.draft_checkpoint, run.draft_model, self.device),
                           run.draft_checkpoint)

    def _noted(self, model: Any, path: str | Path) -> Any:
        for note in caveats(model, path, self.settings.data.test_context):
            log.info("note: %s", note)
        return model

    def dataset(self, split: str, context: int | None = None, rolled: bool = False) -> SeriesWindows:
        """One split of the series; context: default, that of training; rolled: windows with a whole horizon after."""
        data = self.settings.data
        files = data.files
        dataset = DATASETS[data.kind](files, Cut(split, context or data.context, self.patch_len, data.horizon,
                                                 data.subset_ratio, rolled, self.settings.report.season))
        for note in dataset.notes:
            self.note(f"{files[0].path if len(files) == 1 else data.label}: {note}")
        return dataset

    def note(self, text: str) -> None:
        """Says it once in a run, although each split reads the file."""
        if text not in self._said:
            log.info("note: %s", text)
        self._said.add(text)

    def tested_split(self) -> SeriesWindows:
        """The windows to forecast: the test split, or the validation split for choosing settings."""
        data = self.settings.data
        return self.dataset("val" if data.test_flag == "V" else "test", data.test_context, rolled=True)

    def test_part(self) -> tuple[SeriesWindows, DataLoader]:
        """The tested split and a loader of its windows, or of `test_windows` of them."""
        dataset = self.tested_split()
        return dataset, self.tested_batches(dataset)

    def tested_batches(self, dataset: SeriesWindows, most: int | None = None) -> DataLoader:
        """The windows to forecast, in order and in batches, each in parts of at most `most`; this process's share."""
        data = self.settings.data
        items = spread_windows(dataset, data.test_windows)
        sizes = batch_sizes(len(items), data.batch_size, most)
        return shared_loader(dataset, items, sizes, self.team.rank, self.team.size, data.num_workers)

    def validation_part(self) -> tuple[SeriesWindows, DataLoader]:
        """The validation split with the context of the test, in order."""
        data, dataset = self.settings.data, self.dataset("val", self.settings.data.test_context)
        return dataset, ordered_loader(dataset, data.batch_size, None, data.num_workers)
