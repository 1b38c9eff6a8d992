"""Ray, on this machine or on a cluster: how to reach it, and what of its machines each worker gets."""
from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError

RETRIES = 5  # of work whose worker has died
ROOT = Path(__file__).resolve().parents[1]
OTHER_FILES = "a worker sees different files at the same paths than the machine that started it: use a folder " \
    "shared by all machines"
_NO_CLUSTER = ("--ray_address {}: cannot connect to a Ray cluster ({}); start one with 'ray start --head', or give its "
               "token in RAY_AUTH_MODE and RAY_AUTH_TOKEN, or leave the flag out")


class NoWorkers(UserError):
    """Workers cannot have, or have not survived, what they were given. What is finished can be used."""


@contextmanager
def connected(cores: int, address: str | None) -> Iterator[Any]:
    """Yields the module ray, connected to the cluster at `address`; None: to one on this machine, with so many cores,
    which ends with the block. Raises UserError without Ray or a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
    try:
        import ray
    except ImportError:
        raise UserError("Ray, which --workers and --ray_address need, is missing: pip install -r "
                        "requirements-ray.txt, or leave them out") from None
    if address:
        _refuse_silence(address)
    ending = signal.getsignal(signal.SIGTERM)
    local: dict[str, Any] = {} if address else {"num_cpus": cores, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                 runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, **local)
    except ConnectionError as error:
        raise UserError(_NO_CLUSTER.format(address, str(error).splitlines()[0])) from None
    try:
        if ending is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ending)  # with Ray's own, the process would end at once and without a word
        yield ray
    finally:
        ray.shutdown()


def _refuse_silence(address: str) -> None:
    """Raises UserError if nothing listens at the address, where Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # 'auto', which Ray looks up
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(_NO_CLUSTER.format(address, error.strerror or error)) from None


def machines_of(ray: Any) -> list[tuple[int, int]]:
    """(cores, GPUs) of every machine."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources]


def shares(machines: Sequence[tuple[int, int]], workers: int | None) -> tuple[int, int, float]:
    """Of workers that stay where they are: their number, the cores of each, and its GPUs or the part of one.

    machines: (cores, GPUs) of each; those without a GPU are left alone if others have one. workers: how many; default:
    one for each GPU, or each machine. Each gets as many cores as leave a place for all of them. Raises NoWorkers for
    more than there are cores.
    """
    gpus = sum(own for _, own in machines)
    used = [(cores, own) for cores, own in machines if cores and (own or not gpus)]
    wanted = workers or gpus or len(used)
    on_one = -(-wanted // gpus) if gpus else 0  # workers on one GPU

    def places(threads: int) -> int:
        return sum(min(cores // threads, own * on_one) if gpus else cores // threads for cores, own in used)
    most = max((cores for cores, _ in used), default=0)
    threads = next((each for each in range(most, 0, -1) if places(each) >= wanted), 0)
    if not threads or not wanted:
        raise NoWorkers(f"{wanted} workers need as many cores, but the cluster has "
                        f"{places(1) if used else 0}{' beside its GPUs' if gpus else ''}: give fewer --workers")
    # Ray counts in 1/10000
    return wanted, threads, 1.0 if on_one == 1 else 10**4 // on_one / 10**4 if on_one else 0.0
