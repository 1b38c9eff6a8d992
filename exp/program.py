"""Shared by all programs of this project: exit codes, one-line errors, and messages on the terminal."""
from __future__ import annotations

import logging
import sys
from collections.abc import Callable

OUT_OF_MEMORY = ("out of memory", "allocate memory", "multiplication overflow", "calculation overflowed")


class Terminal(logging.Handler):
    """Prints log messages to standard output, unformatted."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def show_messages(level: int = logging.INFO) -> None:
    """Sends the messages of all parts of this program to the terminal; called by a program, never by a library."""
    for name in ("exp", "data_provider", "models", "scripts"):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [Terminal()]


def exit_code(work: Callable[[], object], smaller: str, kept: str) -> int:
    """Runs a program and returns its exit code: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    smaller: settings to lower when memory is exhausted; kept: text on what survives an interruption. Parameters that
    errors name are replaced by their flags.
    """
    show_messages()
    try:
        return _done(work, smaller)
    except KeyboardInterrupt:
        print(f"interrupted: {kept}", file=sys.stderr)
        return 130


def _done(work: Callable[[], object], smaller: str) -> int:
    from exp.flags import in_flags  # not at the top: importing torch takes seconds, during which Ctrl-C must work too
    from utils.errors import UserError
    try:
        work()
    except UserError as error:
        return _told(in_flags(str(error)))
    except OSError as error:  # a full disk, a folder without permission
        return _told(f"{error.strerror or error}: {error.filename or 'unknown file'}")
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)):
            raise
        return _told(f"out of memory: lower {smaller}")
    return 0


def _told(text: str) -> int:
    """Prints the one line and returns the exit code.

    Of the processes of torchrun one tells of an error and fails, which is enough for torchrun to fail. The others end
    silently and with 0: torchrun prints six lines for each process that failed.
    """
    from exp.processes import told_by_another
    if told_by_another():
        return 0
    print(f"error: {text}", file=sys.stderr)
    return 2
