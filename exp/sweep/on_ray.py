"""The cells of a sweep as Ray tasks: on the cores of this machine, or on a cluster."""
from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from exp.settings import Settings
from exp.sweep.bench import Bench, Cell
from utils.errors import UserError

RETRIES = 5
ROOT = Path(__file__).resolve().parents[2]
_NO_CLUSTER = ("--ray_address {}: no Ray cluster lets us in there ({}); start one with 'ray start --head', or give its "
               "token in RAY_AUTH_MODE and RAY_AUTH_TOKEN, or leave the flag out")


_loaded: list[Any] = []  # what this worker process has opened, and the Bench


def _bench(settings: Settings, windows: int | None, files: dict[str, str], threads: int) -> Bench:
    """Loaded once per worker process."""
    opening = (settings, windows, files, threads)
    if not _loaded or _loaded[0] != opening:
        torch.set_num_threads(threads)
        bench = Bench(settings, windows)
        if bench.files() != files:
            raise UserError("a worker finds other files under the same paths than the machine that started the sweep: "
                            "give all machines one shared folder")
        _loaded[:] = [opening, bench]
    return _loaded[1]


def _measure(opening: tuple, cell: Cell) -> dict[str, Any]:
    return _bench(*opening).measure(cell)


def run_on_ray(settings: Settings, windows: int | None, files: dict[str, str], cells: list[Cell], workers: int,
               threads: int, address: str | None) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells with what was measured, in the order they finish; `workers` of them at a time, `threads` cores each.

    files: digests that every worker must find (Bench.files). A task whose worker dies is tried again, RETRIES times.
    address: of a cluster, whose machines see the project, the checkpoints and the data under the same paths; None: Ray
    is started on this machine and ends with the sweep.
    """
    ray = _connect(workers * threads, address)
    try:
        gpus = min(1, ray.cluster_resources().get("GPU", 0) / workers)
        task = ray.remote(_measure).options(num_cpus=threads, num_gpus=gpus, max_retries=RETRIES)
        opening = settings, windows, files, threads
        waiting = list(reversed(cells))
        running: dict[Any, Cell] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.pop()
                running[task.remote(opening, cell)] = cell
            finished = ray.wait(list(running))[0][0]
            cell = running.pop(finished)
            yield cell, _result(ray, finished, cell)
    finally:
        ray.shutdown()


def _connect(cores: int, address: str | None):
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a sweep reports to nobody
    try:
        import ray
    except ImportError:
        raise UserError("--workers above 1 and --ray_address need Ray: pip install -r requirements-ray.txt, or leave "
                        "them out") from None
    if address:
        _refuse_silence(address)
    local: dict[str, Any] = {} if address else {"num_cpus": cores, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                 runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, **local)
    except ConnectionError as error:
        raise UserError(_NO_CLUSTER.format(address, str(error).splitlines()[0])) from None
    return ray


def _refuse_silence(address: str) -> None:
    """Ray itself waits for minutes at an address where nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # 'auto', which Ray looks up
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(_NO_CLUSTER.format(address, error.strerror or error)) from None


def _result(ray, finished, cell: Cell) -> dict:
    try:
        return ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise UserError(f"{cell} was not measured, not in {RETRIES} retries either ({type(error).__name__}): start "
                        "again, with fewer --workers or a smaller --batch_size; what is done is kept") from None
