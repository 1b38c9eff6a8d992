"""Trained pairs of scripts/results.sh, for benchmarks that decode with them in this process."""
from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exp.exp_basic import Exp_Basic
    from exp.settings import Settings
    from models.timer_xl import TimerBackbone

SEED = 2021


@dataclass
class Pair:
    settings: Settings
    experiment: Exp_Basic
    target: TimerBackbone
    draft: TimerBackbone
    target_file: Path


def names_of(out: Path, only: str, known: Collection[str]) -> list[str]:
    """The pairs named by --only. Raises UserError for one that is not known, and for an --out that is no csv."""
    from utils.errors import UserError
    if out.suffix != ".csv":
        raise UserError(f"--out {out} must end in .csv")
    names = [name.strip() for name in only.split(",")]
    if not set(names) <= set(known):
        raise UserError(f"--only {only}: there are {', '.join(known)}")
    return names


def trained_pair(name: str, settings_file: str, flags: Sequence[str]) -> Pair:
    """The pair of a settings file, which is trained where it is missing. flags: of run.py, for a speculative test."""
    from exp.exp_basic import Exp_Basic, load_model
    from scripts.results.measure import train
    from scripts.results.plans import plan_of_seed, settings_of
    plan = plan_of_seed(settings_file, SEED)
    train(plan, name)
    own = ["--use_speculative" if flag == "--compare" else flag for flag in plan.compare]
    settings = settings_of([*own, *flags, "--batch_size", "64"])
    experiment = Exp_Basic(settings)
    target, draft = (load_model(settings, checkpoint, model, experiment.device) for checkpoint, model in (
        (plan.target_file, settings.model.name), (plan.draft_file, settings.run.draft_model)))
    return Pair(settings, experiment, target, draft, plan.target_file)
