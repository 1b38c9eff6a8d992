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
from exp.sweep.bench import Bench
from exp.sweep.grid import Cell
from utils.errors import UserError

RETRIES = 5
ROOT = Path(__file__).resolve().parents[2]
_NO_CLUSTER = ("--ray_address {}: cannot connect to a Ray cluster ({}); start one with 'ray start --head', or give its "
               "token in RAY_AUTH_MODE and RAY_AUTH_TOKEN, or leave the flag out")


_loaded: list[Any] = []  # arguments of this worker process, and its Bench


def _bench(settings: Settings, windows: int | None, files: dict[str, str], threads: int) -> Bench:
    """Loaded once per worker process."""
    opening = (settings, windows, files, threads)
    if not _loaded or _loaded[0] != opening:
        torch.set_num_threads(threads)
        bench = Bench(settings, windows)
        if bench.files() != files:
            raise UserError("a worker sees different files at the same paths than the machine that started the sweep: "
                            "use a folder shared by all machines")
        _loaded[:] = [opening, bench]
    return _loaded[1]


def _measure(opening: tuple, cell: Cell) -> dict[str, Any]:
    return _bench(*opening).measure(cell)


def run_on_ray(settings: Settings, windows: int | None, files: dict[str, str], cells: list[Cell], workers: int,
               threads: int, address: str | None) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Yields cells and their results in the order they finish, `workers` at a time, with `threads` cores each.

    files: digests that every worker must find (Bench.files). A task whose worker dies is retried up to RETRIES times.
    address: that of a cluster whose machines see project, checkpoints and data at the same paths; None: Ray is started
    on this machine and ends with the sweep.
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
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports
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
    """Raises UserError if nothing listens at the address, where Ray itself would wait for minutes."""
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
        raise UserError(f"{cell} failed, even after {RETRIES} retries ({type(error).__name__}): start again with "
                        "fewer --workers or a smaller --batch_size; finished cells are kept") from None
