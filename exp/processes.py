"""The processes that torchrun starts: how many there are, which of them reports an error, and how they end together.

They share a store, which torchrun keeps. In it each says where it runs and, at its end, that it leaves; and the first
that reports an error says so. The first to fail reports it, not rank 0, which may be waiting for the one that failed.
One that dies without a word, killed or out of memory, is missed by the others, and one of them names it.
"""
from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

EVERY = 0.5  # seconds between two looks at the others
GRACE = 8.0  # seconds for a process to end by itself where its run is over; torchrun kills it after 30
_stores: list[Any] = []


def started_by_torchrun() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def told_by_another() -> bool:
    """True where several processes run and one has reported an error already: this one can stay silent.

    Otherwise the error is this one's to report: bad input fails in every process.
    """
    store = _store()
    try:
        return store is not None and store.add(_key("error_told"), 1) > 1
    except Exception:  # no store, no agreement: better told twice than not at all
        return False


def ended_by_another(tell: Callable[[str], None], patience: float = 0.0) -> bool:
    """True where the run is over because another process has reported an error or died, which `tell` then says.

    patience: seconds to wait for signs of it; a connection breaks before its end can be seen.
    """
    store, deadline = _store(), time.monotonic() + patience
    while store is not None:
        with suppress(Exception):
            if store.check([_key("error_told")]):
                return True
            lost = _lost(store)
            if lost is not None:
                if not told_by_another():
                    tell(lost)
                return True
        if time.monotonic() >= deadline:
            break
        time.sleep(EVERY / 10)
    return False


def silent_code() -> int:
    """Exit code of a process that leaves the word to another one.

    0: torchrun prints six lines for each process that failed, and one that fails is enough; but each machine needs one.
    """
    return 0 if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE") else 1


def watch_others(tell: Callable[[str], None]) -> None:
    """Ends this process soon after another has died, or a signal came, also where it waits and cannot notice either."""
    store = _store()
    if store is None:
        return
    store.set(_key("process", int(os.environ["RANK"])), f"{os.getpid()} {socket.gethostname()}")
    came, wake = os.pipe()
    os.set_blocking(wake, False)
    if threading.current_thread() is threading.main_thread():  # no other may
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(store, came, tell), daemon=True).start()


def say_goodbye() -> None:
    """Tells the others that this process leaves, and is not to be missed."""
    store = _store()
    if store is not None:
        with suppress(Exception):
            store.set(_key("left", int(os.environ["RANK"])), "")


def _watch(store: Any, came: int, tell: Callable[[str], None]) -> None:
    deadline = float("inf")
    while time.monotonic() < deadline:
        if select.select([came], [], [], EVERY)[0] and {signal.SIGINT, signal.SIGTERM} & set(os.read(came, 4096)):
            deadline = min(deadline, time.monotonic() + GRACE)
        try:
            lost = _lost(store)
        except Exception:  # torchrun has ended
            return
        if lost is not None:
            if not told_by_another():
                tell(lost)
            deadline = min(deadline, time.monotonic() + GRACE)
    with suppress(Exception):
        late = [rank for rank in range(started_by_torchrun()) if not store.check([_key("process", rank)])]
        if late and not told_by_another():
            tell(f"interrupted: {_name(late[0])} has not come, this one has waited for it")
    os._exit(1)


def _lost(store: Any) -> str | None:
    """Which process of this machine has died without having said that it leaves, in words; None where none has."""
    for rank in range(started_by_torchrun()):
        where = _key("process", rank)
        if rank == int(os.environ["RANK"]) or not store.check([where]):
            continue
        pid, _, host = store.get(where).decode().partition(" ")
        if host == socket.gethostname() and not is_running(int(pid)) and not store.check([_key("left", rank)]):
            return (f"error: {_name(rank)} has died, killed or out of memory (pid {pid} on {host}): the others end as "
                    "well; --resume continues a training")
    return None


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs; not one that has ended and is still to be collected by its parent."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (ProcessLookupError, IndexError):
        return False
    except OSError:  # another user's, or a system without /proc
        return True


def own_name() -> str:
    """This process, in words."""
    return _name(int(os.environ.get("RANK", 0)))


def _name(rank: int) -> str:
    return f"process {rank + 1} of {started_by_torchrun()} (rank {rank})"


def _key(what: str, rank: int | None = None) -> str:
    """Name in the store, of this start of the processes."""
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
    return f"{what}_{restart}" + ("" if rank is None else f"_{rank}")


def _store() -> Any:
    """The store that torchrun keeps; None where this process is the only one, or there is none."""
    if started_by_torchrun() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    if not _stores:
        try:
            from torch.distributed import TCPStore
            _stores.append(TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                                    timeout=timedelta(seconds=10), wait_for_workers=False))
        except Exception:
            return None
    return _stores[0]


def leave(code: int) -> NoReturn:
    """Ends the process; what it printed must have been flushed (exp.program.exit_code does).

    Of several processes, each leaves without the interpreter's own ending. The threads of a process group outlive
    destroy_process_group where DistributedDataParallel has used it, and one that lets go of a Python tensor during that
    ending aborts the process (pytorch/pytorch#190489), so that torchrun reports a finished training as failed.
    """
    if started_by_torchrun() > 1:
        os._exit(code)
    sys.exit(code)
