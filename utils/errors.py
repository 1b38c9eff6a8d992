"""The one kind of error a user is meant to see: a line that says what, where and what to do. Exit code 2."""
import sys
from collections.abc import Callable

OUT_OF_MEMORY = ("out of memory", "allocate memory", "multiplication overflow", "calculation overflowed")


def shorten(value, most: int = 40) -> str:
    """repr(value), cut where it would make the line of an error unreadable."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


class UserError(Exception):
    """Raised for bad input; `run.py` prints the message without a traceback and exits with code 2."""


def exit_code(work: Callable[[], None], smaller: str, kept: str) -> int:
    """Does the work of a program: 0 done, 2 bad input (one line on stderr), 130 interrupted.

    smaller: what to lower when memory is exhausted; kept: what an interruption leaves.
    """
    try:
        work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder without permission
        print(f"error: {error.strerror or error}: {error.filename or 'no file named'}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)):
            raise
        print(f"error: out of memory: lower {smaller}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {kept}", file=sys.stderr)
        return 130
    return 0
