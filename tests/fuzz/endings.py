"""What all fuzz tests share: how many cases there are, and the only two ways in which one may end.

A bare pytest runs about USUAL cases in all, always the same; `pytest tests/fuzz --fuzz 5000` as many as are asked for,
at random. A failure that was found becomes an @example of its test, or a test of its own.
"""
from __future__ import annotations

import contextlib
import io
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bad_input.cases import tree
from hypothesis import HealthCheck, currently_in_test_context, event, settings

from utils.errors import UserError

USUAL = 300
ASKED = os.environ.get("FUZZ_CASES")  # set by --fuzz
CASES = int(ASKED or USUAL)
PARTS = 129  # those of all tests together


def share(parts: float) -> settings:
    """Settings of a test that gets so many of PARTS parts of all cases."""
    return settings(max_examples=max(1, round(CASES * parts / PARTS)), derandomize=ASKED is None, deadline=None,
                    database=None, print_blob=True, suppress_health_check=list(HealthCheck))


def ends_well(call: Callable[[], Any]) -> Any:
    """What the call returns, or None where it raises a UserError of one line; any other exception is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = call()
        except UserError as error:
            text = str(error)
            assert text.strip() and "\n" not in text and len(text) < 3000, text
            _count("refused")
            return None
    _count("works")
    return value


def _count(ending: str) -> None:
    """For --hypothesis-show-statistics."""
    if currently_in_test_context():
        event(ending)


def program_ends_well(main: Callable[[Sequence[str]], int], argv: Sequence[str], folder: Path) -> int:
    """Exit code of a program: 0, or 2 with one line on stderr, after which everything below `folder` is as before."""
    before, said, complaint = tree(folder), io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        warnings.simplefilter("ignore")
        code = main(list(argv))
    if code == 0:
        _count("works")
        return 0
    assert code == 2, code
    assert re.fullmatch(r"error: [^\n]{3,3000}\n", complaint.getvalue()), complaint.getvalue()
    assert tree(folder) == before
    _count("refused")
    return 2
