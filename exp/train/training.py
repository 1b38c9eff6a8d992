"""One training: its data, its model and its objective, as the settings have them."""
from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from data_provider.data_factory import ordered_loader, spread_windows, train_loader
from data_provider.samplers import BatchSampler
from exp.exp_basic import Exp_Basic, load_model
from exp.laws import calibrated, forget
from exp.memory import Shape, refuse_unfitting_training
from exp.settings import TrainSettings
from exp.train.head_loss import HeadLoss
from exp.train.losses import DistillationLoss, RolloutLoss, SupervisedLoss, SupervisedNLL
from exp.train.target_forecasts import TargetForecasts
from exp.train.trainer import Trainer
from models.checkpoint import CHECKPOINT, load_into, read_state
from models.longer_heads import LongerHeads
from models.registry import APART, DRAFTS, FRESH, MODELS, checkpoint_in
from utils.errors import UserError
from utils.target_law import TargetLaw

VALIDATION_SEED = 1_000_000_007  # offset: sampled forecasts of the validation split have separate noise
log = logging.getLogger(__name__)


def train(experiment: Exp_Basic, folder: Path, kept: dict[str, Any]) -> None:
    """Trains one model; its best checkpoint is in `folder`. kept: contents of args.json."""
    settings, data, seed = experiment.settings, experiment.settings.data, experiment.settings.run.seed
    windows = experiment.dataset("train")
    if settings.train.self_draft is None:  # heads keep nothing of the target's passes
        rows, variables = min(data.batch_size, len(windows)), windows.variables
        if settings.model.name in APART:
            rows, variables = rows * variables, 1
        refuse_unfitting_training(Shape(rows, variables, data.context, 0), experiment.device, settings.model.config)
    model = initial_model(experiment)
    loss = loss_of(experiment)
    if experiment.rank:  # equal initial weights, but separate dropout and noise in every process
        torch.manual_seed(seed + 1_000_003 * experiment.rank)
    train = taught(experiment, windows, loss, settings.train.teacher_dropout, seed)
    val = taught(experiment, validated(experiment), loss, 0.0, seed + VALIDATION_SEED)
    parameters = sum(p.numel() for p in model.parameters())
    log.info("training %s (%s parameters) on %s: %s", settings.model.name if settings.train.self_draft is None else
             f"longer heads of {settings.train.target_checkpoint}", f"{parameters:,}", experiment.device, folder)
    batches = train_loader(train, data.batch_size, seed, experiment.rank, experiment.world_size, data.num_workers,
                           windows.counts if data.by_series else None)
    if experiment.world_size > 1 and isinstance(batches.batch_sampler, BatchSampler):
        log.info("%s", shares_line(batches.batch_sampler))
    validation = ordered_loader(val, data.batch_size, None, data.num_workers)
    trainer = Trainer(model, loss, batches, validation, settings, folder, kept | {"parameters": parameters},
                      experiment.device, experiment.rank, experiment.world_size)
    best = trainer.run()
    if experiment.is_main:
        forget(folder / CHECKPOINT)
    log.info("best validation loss %.5f: %s", best, folder / CHECKPOINT)


def shares_line(sampler: BatchSampler) -> str:
    """What several processes do with a batch, and with the last of an epoch."""
    size, last = sampler.joint_size, sampler.windows_in(sampler.batches_per_epoch - 1)
    line = (f"{sampler.world_size} processes with {sampler.batch_size} windows each take the steps of one with "
            f"--batch_size {size}")
    return line if last == size else (f"{line}; the last batch of an epoch has {last} window{'s' * (last > 1)}, "
                                      "shared as evenly as it goes, each of which counts the same")


def validated(experiment: Exp_Basic) -> Dataset:
    """The windows that validations go over."""
    dataset, count = experiment.dataset("val"), experiment.settings.data.val_windows
    return dataset if count is None else Subset(dataset, spread_windows(dataset, count, "val_windows"))


def initial_model(experiment: Exp_Basic) -> torch.nn.Module:
    settings, config = experiment.settings, experiment.settings.model.config
    if settings.train.self_draft is not None:
        return LongerHeads(config.d_model, config.input_token_len, settings.train.self_draft - 1).to(experiment.device)
    model = MODELS[settings.model.name](settings.model.config).to(experiment.device)
    if settings.train.adaptation:
        path = checkpoint_in(str(settings.train.pretrain_model_path))
        new = load_into(model, read_state(path), path, fresh=FRESH)
        log.info("adapting the weights of %s", path)
        if new:
            log.info("note: not in that checkpoint, so these start afresh: %s", ", ".join(new))
    return model


def taught(experiment: Exp_Basic, dataset, loss, dropout: float, seed: int):
    """The data set with the target's own forecasts in place of its labels, where the loss is on-policy."""
    if not isinstance(loss, RolloutLoss):
        return dataset
    law = loss.law if experiment.settings.train.teacher_noise == "calibrated" else None
    quiet = experiment.settings.run.quiet or not experiment.is_main
    forecasts = TargetForecasts(dataset, loss.teacher, loss.rollout * loss.teacher.patch_len, experiment.device,
                                dropout, law, seed, quiet, bool(loss.along))
    workers = experiment.settings.data.num_workers
    if forecasts.kept is None and workers:
        raise UserError(f"`num_workers` {workers}: the target's forecasts cannot be cached (teacher dropout, or "
                        "too many), and workers cannot make them: use 0")
    return forecasts


def loss_of(experiment: Exp_Basic):
    """The objective of the settings."""
    train, config = experiment.settings.train, experiment.settings.model.config
    selection: dict[str, Any] = dict(patch_len=experiment.patch_len, covariate=config.covariate,
                                     last_token=train.last_token, valid_last=train.valid_last,
                                     skip=train.skip_patches)
    if train.self_draft is not None:
        path = checkpoint_in(str(train.target_checkpoint))
        target = load_model(experiment.settings, path, experiment.settings.model.name, experiment.device)
        return HeadLoss(target, train.rollout, config.covariate)
    if not train.distill:
        if config.draft_stochastic and experiment.settings.model.name in DRAFTS:
            return SupervisedNLL(train.variance_reg, **selection)
        return SupervisedLoss(**selection)
    path = checkpoint_in(str(train.target_checkpoint))
    teacher = load_model(experiment.settings, path, train.target_model, experiment.device, train.target_sizes)
    _refuse_without_insight(train, teacher)
    noise: Any = train.teacher_noise
    if noise == "calibrated":
        law = experiment.team.once(lambda: calibrated(experiment, teacher, path))
        noise = law.law_of("one")  # which a variance can learn
    elif noise > 0 and train.noise_unit == "window":
        noise = replace(TargetLaw.fixed(noise), relative=True)
    if train.rollout:
        return RolloutLoss(teacher, train.variance_reg, noise, train.rollout, config.covariate, train.rollout_context,
                           train.answer, train.hinge)
    return DistillationLoss(teacher, train.variance_reg, noise, train.teacher_dropout, SupervisedLoss(**selection))


def _refuse_without_insight(train: TrainSettings, teacher: Any) -> None:
    """A teacher that is known by its forecasts alone teaches what comes after a window, nothing within it."""
    if hasattr(teacher, "stats_of") and teacher.token_len == teacher.patch_len:
        return
    who = f"`target_model` {train.target_model} is known by its forecasts, which come after a window"
    if not train.rollout:
        raise UserError(f"{who}: add `rollout` N, the number of patches after each window to learn")
    if train.rollout_context:
        raise UserError(f"{who}: leave out `rollout_context`, which is about those within it")
    if train.teacher_dropout:
        raise UserError(f"{who}, and its layers are not: leave out `teacher_dropout`")
