"""Shared by all programs of this project: how they end, one-line errors, and messages on the terminal.

Exit codes: 0 done; 2 bad input, or a file that cannot be written: one line on stderr; 130 after Ctrl-C and 143 after
SIGTERM: one line on what is kept; 141 where nobody reads the output any more, as after `| head -1`: no line. What is
left, a fault of the program itself, keeps its traceback.
"""
from __future__ import annotations

import ctypes
import errno
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from exp.processes import (
    ended_by_another,
    own_name,
    say_goodbye,
    silent_code,
    started_by_torchrun,
    told_by_another,
)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt; the second is 2**25 at most
OUT_OF_MEMORY = ("out of memory", "allocate memory", "multiplication overflow", "calculation overflowed")
INTERRUPTED, TERMINATED, UNREAD = (128 + number for number in (signal.SIGINT, signal.SIGTERM, 13))
# of a file that cannot be read or written
REMEDIES = {
    errno.ENOSPC: "free some space on that disk, or write elsewhere",
    errno.EDQUOT: "free some of your quota, or write elsewhere",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EACCES: "grant permission, or name another place",
    errno.EPERM: "grant permission, or name another place",
    errno.EROFS: "name another place",
    errno.ELOOP: "a symbolic link leads back to itself, correct it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EEXIST: "something of that name is in the way, move it away",
    errno.EISDIR: "a folder of that name is in the way, move it away",
    errno.ENOTDIR: "a file stands where a folder is needed, move it away",
}
NAMELESS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF), "standard output")
NAMELESS[errno.ENOENT] = "the current folder"
NOTICED = 3.0  # seconds in which the end of a process is noticed by one that has lost its connection to it
AT_ONCE = 1.0  # seconds in which two SIGTERM are one: `timeout` sends it to the process and to its group


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
    """Runs a program and returns its exit code, see above.

    smaller: settings to lower when memory is exhausted; kept: text on what survives an interruption. Parameters that
    errors name are replaced by their flags.
    """
    os.environ["MPLBACKEND"] = "agg"  # all pictures are files; an unknown name would end the import of matplotlib
    _open_streams()
    show_messages()
    keep_memory()
    with _sigterm_like_ctrl_c() as terminated:
        try:
            return _done(work, smaller)
        except KeyboardInterrupt:
            return _interrupted(kept, TERMINATED if terminated else INTERRUPTED)
        finally:
            _release(sys.stdout)
            _release(sys.stderr)
            say_goodbye()


def keep_memory() -> bool:
    """Makes glibc keep freed memory for later passes, instead of giving it back and faulting every page in again.

    Cores then spend their time on the pass: 16 windows of the preset in one pass over context and proposals take 30 ms
    instead of 40, with bf16 weights 22 instead of 39 (CPU time of 1 thread). Returns False where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # Windows, macOS, musl
        return False
    return bool(mallopt(TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(MMAP_THRESHOLD, 2**25))


def _done(work: Callable[[], object], smaller: str) -> int:
    from exp.flags import in_flags  # not at the top: importing torch takes seconds, during which Ctrl-C must work too
    from utils.errors import UserError
    try:
        try:
            work()
        except SystemExit:  # --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except UserError as error:
        return _refused(in_flags(str(error)))
    except OSError as error:
        return _failed(error, smaller)
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)):
            return _fault(error)
        return _refused(f"{_here()}out of memory: lower {smaller}")
    except Exception as error:
        return _fault(error)
    return 0


def _fault(error: Exception) -> int:
    """A fault of the program: raised, but of several processes the first tells of it, and the others end with it."""
    from utils.errors import one_line
    if started_by_torchrun() == 1:
        raise error
    broken = isinstance(error, RuntimeError)  # it may be a connection to one that has ended
    if ended_by_another(say, patience=NOTICED if broken else 0.0) or told_by_another():
        return silent_code()
    say("".join(traceback.format_exception(error)).rstrip())
    say(one_line(f"error: {own_name()} has failed, and the others end with it: {type(error).__name__}: {error}"))
    return 1


def _interrupted(kept: str, code: int) -> int:
    """Of several processes one says it; torchrun also ends them by a signal, if another one has failed."""
    if ended_by_another(say):
        return silent_code()
    if not told_by_another():
        say(f"interrupted: {kept}")
    return code


def _failed(error: OSError, smaller: str) -> int:
    """A file that cannot be read or written. utils.files names all files: what has no name is mostly a stream."""
    if error.errno == errno.EPIPE and error.filename is None:
        return UNREAD
    if error.errno == errno.ENOMEM:
        return _refused(f"{_here()}out of memory: lower {smaller}")
    where = NAMELESS.get(error.errno or 0, "a file without a name") if error.filename is None else error.filename
    remedy = REMEDIES.get(error.errno or 0, "correct its name, or the file")
    return _refused(f"{_here()}{error.strerror or error}: {os.fsdecode(where)}: {remedy}")


def _here() -> str:
    """Of several processes, which has a machine or a device of its own that may lack something."""
    return f"{own_name()}: " if started_by_torchrun() > 1 else ""


def _refused(text: str) -> int:
    """Prints the one line and returns the exit code.

    Of the processes of torchrun one tells of an error and fails, which is enough for torchrun to fail.
    """
    from utils.errors import one_line
    if told_by_another():
        return silent_code()
    say(f"error: {one_line(text)}")
    return 2


def say(text: str) -> None:
    with suppress(OSError):  # nobody reads it
        print(text, file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Streams that take every text, as a path may hold letters that the terminal's encoding lacks. Closed: nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the process ends)
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _release(stream) -> None:
    """Leads a stream that cannot be written to nowhere: the interpreter would try again when it ends, and complain."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):  # no file at all
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[list[float]]:
    """Makes SIGTERM raise KeyboardInterrupt, so that it keeps what Ctrl-C keeps; yields the times at which it came.

    Left alone where signals are not this thread's business, or where whoever started the program decided otherwise.
    """
    came: list[float] = []

    def interrupt(_number, _frame):
        again = bool(came) and time.monotonic() - came[-1] < AT_ONCE
        came.append(time.monotonic())
        if not again:
            raise KeyboardInterrupt
    if threading.current_thread() is not threading.main_thread() \
            or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield came
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
