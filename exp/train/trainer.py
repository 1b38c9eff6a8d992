"""One training run: steps, validation, early stopping, and a state from which a killed run continues exactly."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from exp.exp_basic import autocast
from exp.ownership import differing, of_training, told
from exp.schedules import learning_rate
from exp.settings import Settings, TrainSettings
from exp.train.curves import Curves
from models.checkpoint import read_tensors, save_checkpoint, save_tensors
from utils.errors import UserError

RESUME = "resume.pth"
log = logging.getLogger(__name__)
COUNTERS = {"epoch": int, "batch": int, "step": int, "best": float, "bad_rounds": int, "finished": bool,
            "running": float | None}


class Trainer:
    """Trains `model` in place; its best weights on the validation split are in folder/checkpoint.pth.

    train_loader must carry a `BatchSampler` of data_provider.samplers; loss_fn(model, x, y) is one of
    `exp.train.losses`. With val_every = 0 a validation ends every epoch, otherwise every `val_every` steps; `patience`
    counts validations. With ema > 0 the exponential moving average of the weights is validated and saved, not their
    last value.
    kept: contents of args.json, flag -> value.
    """

    def __init__(self, model: nn.Module, loss_fn, train_loader, val_loader, settings: Settings, folder: Path,
                 kept: dict[str, Any], device: torch.device, rank: int = 0, world_size: int = 1):
        self.model, self.loss_fn = model, loss_fn
        self.train_loader, self.val_loader = train_loader, val_loader
        self.run_settings, self.settings = settings.run, settings.train
        self.folder, self.kept, self.device = Path(folder), kept, device
        self.is_main, self.rank, self.world_size = rank == 0, rank, world_size
        self.wrapped = model
        if world_size > 1:
            self.wrapped = torch.nn.parallel.DistributedDataParallel(
                model, device_ids=[device.index] if device.type == "cuda" else None)
        ema = self.settings.ema
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema > 0 else None
        self.candidate = model if self.average is None else self.average.module  # validated and saved
        self.optimizer = torch.optim.Adam(model.parameters(), lr=self.settings.learning_rate,
                                          weight_decay=self.settings.weight_decay)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.run.amp and settings.run.amp_dtype == "fp16")
        self.epoch = self.batch = self.step = 0  # position of the next batch
        self.best, self.bad_rounds, self.finished = float("inf"), 0, False
        self.running: float | None = None
        self.curves: Curves | None = None

    def run(self) -> float:
        """Trains to the end; returns the best validation loss."""
        if self.run_settings.resume:
            self._restore()
        else:
            self._forget_older_run()
        self.curves = Curves(self.folder) if self.is_main else None  # not before: --resume may be refused
        try:
            self._run_epochs()
        finally:
            if self.curves is not None:
                self.curves.close()
        if self.best == float("inf"):
            raise UserError(f"no validation loss was finite, so there is no checkpoint in {self.folder}: lower "
                            "--learning_rate")
        return self.best

    def _forget_older_run(self) -> None:
        """Removes the state of an older run of the same name: it must not be mistaken for this run's."""
        path = self.folder / RESUME
        if not path.exists():
            return
        with suppress(UserError):  # damaged
            if self.is_main and not read_tensors(path).get("finished", True):
                log.info("note: %s is of a training that was interrupted; this one starts over (--resume continues)",
                         path)
        path.unlink(missing_ok=True)

    def _run_epochs(self) -> None:
        total = self.settings.train_epochs * self.train_loader.batch_sampler.batches_per_epoch
        with tqdm(total=total, initial=self.step, desc="train", unit="step",
                  disable=self.run_settings.quiet or not self.is_main) as bar:
            while not self.finished and self.epoch < self.settings.train_epochs:
                self._run_epoch(bar)
        if not self.finished:
            self.finished = True
            self._save_resume()

    def _run_epoch(self, bar) -> None:
        rate = learning_rate(self.epoch, self.settings.learning_rate, self.settings.lradj, self.settings.cosine,
                             self.settings.tmax)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sampler = self.train_loader.batch_sampler
        sampler.start_at(self.epoch, self.batch)
        for x, y in self.train_loader:
            loss = self._step(x, y)
            self.batch += 1
            self.step += 1
            self.running = loss if self.running is None else 0.98 * self.running + 0.02 * loss
            bar.update(1)
            bar.set_postfix(loss=f"{self.running:.4f}", lr=f"{rate:.1e}", best_val=f"{self.best:.4f}", refresh=False)
            if self.curves is not None:
                self.curves.add("train/loss", loss, self.step)
            last = self.batch == sampler.batches_per_epoch
            if last:
                self.epoch, self.batch = self.epoch + 1, 0
            over = last and self.epoch == self.settings.train_epochs  # the last weights are always a candidate
            if over or (self.step % self.settings.val_every == 0 if self.settings.val_every else last):
                self._validate_and_save()
                if self.finished:
                    return

    def _step(self, x, y) -> float:
        self.wrapped.train()
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        with autocast(self.run_settings, self.device):
            loss = self.loss_fn(self.wrapped, x, y)
        value = loss.item()
        if value != value or value in (float("inf"), float("-inf")):
            # a checkpoint in the folder may come from an older run of the same name
            kept = "the last good checkpoint is kept" if self.best < float("inf") else "no checkpoint of this run yet"
            raise UserError(f"the loss became {value} at step {self.step + 1} (epoch {self.epoch + 1}, batch "
                            f"{self.batch + 1}): {kept} in {self.folder}; lower --learning_rate or check the data")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss * self.train_loader.batch_sampler.weight(self.batch)).backward()
        if self.settings.clip_grad > 0:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    @torch.no_grad()
    def validate(self) -> float:
        """Mean validation loss over the windows of the loader, every window counted once."""
        self.candidate.eval()
        total, windows = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for x, y in tqdm(self.val_loader, desc="validate", unit="batch", leave=False,
                         disable=self.run_settings.quiet or not self.is_main):
            with autocast(self.run_settings, self.device):
                loss = self.loss_fn(self.candidate, x.to(self.device), y.to(self.device))
            total += loss.double() * len(x)
            windows += len(x)
        return (total / windows).item()

    def _validate_and_save(self) -> None:
        loss = self.validate()
        if self.world_size > 1:
            # every process must make the same decision, to the last bit
            shared = torch.tensor(loss, dtype=torch.float64, device=self.device)
            dist.broadcast(shared, src=0)
            loss = shared.item()
        if self.curves is not None:
            self.curves.add("val/loss", loss, self.step)
        improved = loss < self.best
        if improved:
            self.best, self.bad_rounds = loss, 0
            if self.is_main:
                save_checkpoint(self.folder, self.candidate.state_dict(), self.kept)
        else:
            self.bad_rounds += 1
            self.finished = self.bad_rounds >= self.settings.patience
        if self.is_main:
            tqdm.write(f"step {self.step}: validation loss {loss:.5f}"
                       + (" (best so far, saved)" if improved else f" ({self.bad_rounds} without improvement)")
                       + (", stopping early" if self.finished else ""))
        self._save_resume()

    def _save_resume(self) -> None:
        generators = self._generators_of_all()
        if not self.is_main:
            return
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "average": None if self.average is None else self.average.state_dict(),
                 "scaler": self.scaler.state_dict(), "settings": self.kept, "generators": generators}
        save_tensors(self.folder / RESUME, state | {name: getattr(self, name) for name in COUNTERS})

    def _generators_of_all(self) -> list[dict[str, torch.Tensor | None]]:
        """States of the random generators, process by process: each has dropout and noise of its own."""
        own = {"cpu": torch.get_rng_state(),
               "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None}
        if self.world_size == 1:
            return [own]
        everybody: list[Any] = [None] * self.world_size
        dist.all_gather_object(everybody, own)
        return everybody

    def _restore(self) -> None:
        path = self.folder / RESUME
        if not path.exists():
            log.info("note: --resume found no %s; starting from the beginning", path)
            return
        try:
            state = read_tensors(path)
            problem = self._difference(state["settings"])
            if problem is None:
                self._continue_from(state)
        except Exception as error:  # a damaged state can fail anywhere
            raise UserError(f"{path} is damaged, of another version, or from a machine with other GPUs: delete it or "
                            "drop --resume") from error
        if problem is not None:
            raise UserError(problem)
        log.info("resuming at step %d (epoch %d, batch %d)", self.step, self.epoch + 1, self.batch + 1)

    def _difference(self, settings: dict[str, Any]) -> str | None:
        """Reason why a run with these settings cannot be continued with the present ones; None if it can."""
        found = differing(settings, of_training(self.kept), exactly=True)
        if not found:
            return None
        return (f"--resume: the interrupted run in {self.folder} had {told(found)}: give it the same settings and "
                "files, or name this run with --des to start over")

    def _continue_from(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        usual = self._rates()
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name, kind in COUNTERS.items():
            if not isinstance(state[name], kind):
                raise TypeError(f"{name} is {state[name]}")
            setattr(self, name, state[name])
        moments_fit = all(_fit(moments, parameter) for parameter, moments in self.optimizer.state.items())
        within_epoch = 0 <= self.batch < self.train_loader.batch_sampler.batches_per_epoch
        counted = self.epoch >= 0 and self.step >= 0 and self.best == self.best
        if not (moments_fit and within_epoch and counted and self._rates() == usual):
            raise ValueError("the state of another run")  # it would fail later, or wait for a batch that never comes
        self.finished = ended(state, self.settings)
        own = state["generators"][self.rank]
        torch.set_rng_state(own["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.device)

    def _rates(self) -> list[dict[str, Any]]:
        """The optimizer's settings, but for the rate that every epoch sets anew."""
        return [{name: value for name, value in group.items() if name not in ("params", "lr")}
                for group in self.optimizer.param_groups]


def ended(state: Mapping[str, Any], settings: TrainSettings) -> bool:
    """Whether the run of a state to resume from has nothing left to do.

    One that stopped early is over; one that used up its epochs continues if given more of them.
    """
    return state["finished"] and (state["bad_rounds"] >= settings.patience or state["epoch"] >= settings.train_epochs)


def _fit(moments: dict[str, Any], parameter: torch.Tensor) -> bool:
    """Whether they are Adam's moments of this parameter: dense, and of its shape."""
    wanted = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
    return moments.keys() == wanted.keys() and all(
        isinstance(moment, torch.Tensor) and moment.layout == torch.strided and not moment.is_nested
        and moment.dtype == torch.float32 and moment.shape == wanted[name] for name, moment in moments.items())
