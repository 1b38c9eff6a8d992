"""The processes that torchrun starts: how many there are, which of them reports an error, and how they end."""
from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import NoReturn


def started_by_torchrun() -> int:
    """Number of processes that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def told_by_another() -> bool:
    """True where several processes run and another one has reported an error already: this one can stay silent.

    Bad input fails in every process, and an error of one of them soon ends the others. The first to fail reports it,
    not rank 0, which may be waiting for the one that failed. The processes share a store, which torchrun keeps.
    """
    if started_by_torchrun() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return False
    try:
        from torch.distributed import TCPStore
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False,
                         timeout=timedelta(seconds=10), wait_for_workers=False)
        return store.add(f"error_told_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) > 1
    except Exception:  # no store, no agreement: better told twice than not at all
        return False


def leave(code: int) -> NoReturn:
    """Ends the process; what it printed must have been flushed (exp.program.exit_code does).

    Of several processes, each leaves without the interpreter's own ending. The threads of a process group outlive
    destroy_process_group where DistributedDataParallel has used it, and one that lets go of a Python tensor during that
    ending aborts the process (pytorch/pytorch#190489), so that torchrun reports a finished training as failed.
    """
    if started_by_torchrun() > 1:
        os._exit(code)
    sys.exit(code)
