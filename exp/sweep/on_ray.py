"""The cells of a sweep as Ray tasks: on the cores of this machine, or on a cluster."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from exp.cluster import OTHER_FILES, RETRIES, connected
from exp.settings import Settings
from exp.sweep.bench import Bench
from exp.sweep.grid import Cell
from utils.errors import UserError

_loaded: list[Any] = []  # arguments of this worker process, and its Bench


def _bench(settings: Settings, windows: int | None, files: dict[str, str], threads: int) -> Bench:
    """Loaded once per worker process."""
    opening = (settings, windows, files, threads)
    if not _loaded or _loaded[0] != opening:
        torch.set_num_threads(threads)
        bench = Bench(settings, windows)
        if bench.files() != files:
            raise UserError(OTHER_FILES)
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
    with connected(workers * threads, address) as ray:
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


def _result(ray, finished, cell: Cell) -> dict:
    try:
        return ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise UserError(f"{cell} failed, even after {RETRIES} retries ({type(error).__name__}): start again with "
                        "fewer --workers or a smaller --batch_size; finished cells are kept") from None
