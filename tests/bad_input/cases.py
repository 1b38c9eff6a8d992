"""Bad input: exit code 2, one line on stderr that says what, where and what to do, and nothing written."""
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from helpers import save_pair, save_small

TEST = "--is_training 0 --checkpoints given --test_dir target"
DRAFT = "given/draft/checkpoint.pth"
SPECULATIVE = f"{TEST} --use_speculative --spec_draft_ckpt {DRAFT}"
PREDICT = "--do_predict --checkpoints given --test_dir target"


def nothing():
    pass


@dataclass
class Case:
    """flags are added to SMALL and win over it; words must all stand in the one line on stderr."""

    name: str
    flags: str
    words: list = field(default_factory=list)
    prepare: Callable = nothing


def name_of(case):
    return case.name


def just_target():
    save_small("given/target")


def pair(**draft_changes):
    return lambda: save_pair(**draft_changes)


def tree(folder):
    """Every file and folder below, with content."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


def assert_one_error_line(text, words):
    assert re.fullmatch(r"error: [^\n]+\n", text), text
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"
    assert "`" not in text  # a parameter of Python's: on the command line it has a flag
