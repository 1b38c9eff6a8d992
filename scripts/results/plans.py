"""What scripts/common.sh would run for a settings file: the command lines of the trainings and of the comparison."""
from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from exp.flags import flat, given_flags
from exp.options import settled
from exp.own_heads import heads_beside
from exp.ownership import SOURCES, differing, of_training, sources
from exp.settings import Settings, TrainSettings
from exp.stored import setting_name
from exp.train.trainer import RESUME, ended
from models.checkpoint import CHECKPOINT, read_settings, read_tensors
from models.registry import checkpoint_in
from scripts.results.entries import BATCH, EACH, TOGETHER, Entry, windows_of
from utils.errors import UserError
from utils.files import digest

ROOT = Path(__file__).resolve().parents[2]
# `run` prints what it would run: a name, the number of values, the values, each ended by a NUL
ASK = r"""
. scripts/common.sh "$1" --quiet
tell() { printf '%s\0' "$1" "$(($# - 1))" "${@:2}"; }
run() { tell "$what" "${data[@]}" "$@" "${extra[@]}"; }
need() { :; }
what=target; train_target --seed "$2"
what=draft; distil "$draft_name" --seed "$2"
what=heads; train_heads --seed "$2"
what=compare; with_draft "$draft_name" --compare --seed "$2"
tell horizons $horizons
tell files "${files[@]}"
tell unseen $unseen_files
tell dataset_root "$dataset_root"
tell checkpoints "$target_checkpoint" "$(draft_checkpoint "$draft_name")"
"""


@dataclass(frozen=True)
class Plan:
    """target, draft, heads, compare: flags of run.py; files: names below the data's folder; target_file, draft_file:
    the checkpoints that the trainings of the pair leave."""

    target: list[str]
    draft: list[str]
    heads: list[str]
    compare: list[str]
    horizons: list[int]
    files: list[str]
    unseen: list[str]
    dataset_root: str
    target_file: Path
    draft_file: Path

    def comparisons(self, entry: Entry) -> list[tuple[list[str], int, list[str]]]:
        """(files, horizon, flags of run.py) of every comparison of an entry, in order."""
        if entry.files == TOGETHER:
            parts = [(self.files, list[str]())]
        else:
            chosen = self.files if entry.files == EACH else self.unseen
            parts = [([file], ["--root_path", self.dataset_root, "--data_path", file]) for file in chosen]
        return [(files, horizon, [*self.compare, *place, *_sizes(files, horizon)])
                for files, place in parts for horizon in self.horizons]


def _sizes(files: list[str], horizon: int) -> list[str]:
    windows = windows_of(files)
    return ["--test_pred_len", str(horizon), "--batch_size", str(BATCH),
            *([] if windows is None else ["--test_windows", str(windows)])]


def plan_of(settings: str, seed: int, checkpoints: Path) -> Plan:
    """Raises UserError where the scripts cannot: no such settings file, no data."""
    done = subprocess.run(["bash", "-c", ASK, str(ROOT / "scripts" / "results.sh"), settings, str(seed)], cwd=ROOT,
                          env=os.environ | {"PYTHON": sys.executable, "CHECKPOINTS": str(checkpoints)},
                          capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or f"bash ended with {done.returncode}").splitlines()[-1]
        raise UserError(last.removeprefix("error: "))
    told = _read(done.stdout)
    target, draft = map(Path, told["checkpoints"])
    return Plan(told["target"], told["draft"], told["heads"], told["compare"],
                [int(horizon) for horizon in told["horizons"]], told["files"], told["unseen"], told["dataset_root"][0],
                target, draft)


def plan_of_seed(settings: str, seed: int) -> Plan:
    """`plan_of` with the models in the folder seed_N of $CHECKPOINTS."""
    return plan_of(settings, seed, ROOT / (os.environ.get("CHECKPOINTS") or "checkpoints") / f"seed_{seed}")


def _read(text: str) -> dict[str, list[str]]:
    words, found = text.split("\0")[:-1], {}
    while words:
        name, count = words[0], int(words[1])
        found[name], words = words[2:2 + count], words[2 + count:]
    return found


def settings_of(flags: list[str]) -> Settings:
    """The settings that run.py makes of `flags`, without its notes, which it prints itself."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        return settled(given_flags(flags))
    finally:
        logging.disable(before)


def missing(flags: list[str]) -> list[str] | None:
    """The flags by which run.py has still to train what `flags` train: None if the training has ended.

    --resume is among them unless the data or the target have changed since, after which a training starts over. Where
    the checkpoint is another's, run.py says so. A checkpoint without the resume.pth that says that its training ended
    is trained again.
    """
    settings = settings_of(flags)
    folder = Path(settings.run.checkpoints) / setting_name(settings.run, settings.model.name)
    if settings.train.self_draft is not None:
        folder = heads_beside(checkpoint_in(str(settings.train.target_checkpoint))).parent
    stored = read_settings(folder / CHECKPOINT) if (folder / CHECKPOINT).is_file() else None
    if stored is None:
        return [*flags, "--resume"]
    read = sources(settings.data.files, distill_target_ckpt=settings.train.target_checkpoint)
    if differing(stored, of_training(flat(settings) | {SOURCES: read, "processes": 1}), exactly=True):
        return flags
    return None if _has_ended(folder / RESUME, settings.train) else [*flags, "--resume"]


def _has_ended(resume: Path, settings: TrainSettings) -> bool:
    """False also for a damaged file, of which run.py tells."""
    try:
        return resume.is_file() and ended(read_tensors(resume), settings)
    except (UserError, LookupError, TypeError):
        return False


def used_by(plan: Plan, flags: list[str]) -> dict[str, str]:
    """Columns of the table that a comparison with `flags` would have: its rows are of these, or have to be made again.

    Digests are those of the files' content, shortened.
    """
    data = settings_of(flags).data
    read = {"target": [plan.target_file], "draft": [plan.draft_file], "data": [file.path for file in data.files]}
    return {"test_windows": "all" if data.test_windows is None else str(data.test_windows)} | {
        f"{name}_sha256": digest(*paths)[:12] for name, paths in read.items()}
