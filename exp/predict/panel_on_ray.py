"""The parts of a panel over several processes or machines, by Ray.

Plain actors rather than Ray Data: a part is whole series in the order of the table, with a number that its noise and
`resume` go by, while read_parquet's blocks end within a series and come in any order, and a csv.gz is one block. Every
part ends as a file of its own anyway, so that nothing is left to shuffle or to collect.
"""
from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_provider.panel import PanelTable, Rows
from exp.cluster import RETRIES, NoWorkers, connected, machines_of, shares
from exp.predict.forecaster import Forecaster
from exp.predict.panel import PanelForecaster, left_out
from exp.predict.panel_parts import Parts
from exp.predict.panel_record import still_drawn
from exp.predict.panel_worker import Begun, Done, Opening, Part, PartWorker
from exp.settings import Settings
from utils.scores import QUANTILES

IN_FLIGHT = 2  # parts of a worker: the one that it forecasts, and the next
log = logging.getLogger(__name__)


def ray_of(settings: Settings) -> AbstractContextManager[Any]:
    """The module ray, connected, for a run that has workers; None for others."""
    panel = settings.panel
    if panel.workers is None and panel.ray_address is None:
        return nullcontext()
    workers = panel.workers or 1
    return connected(workers * max(1, torch.get_num_threads() // workers), panel.ray_address)


class Crew:
    """Workers, and the parts that they have. What one had that died is given to others."""

    def __init__(self, ray: Any, opening: Opening, workers: int, gpus: float):
        self.ray, self.opening = ray, opening
        self.kind = ray.remote(PartWorker).options(num_cpus=opening.threads, num_gpus=gpus)
        self.workers: list[Any] = []
        self.free: deque[Any] = deque()  # workers, once for each part that they may still get
        self.waiting: deque[tuple[Part, Any]] = deque()  # parts, and their rows, which Ray holds
        # what runs -> its worker, and the part that it forecasts; None where it loads
        self.running: dict[Any, tuple[Any, tuple[Part, Any] | None]] = {}
        self.deaths: Counter[int | None] = Counter()  # number of a part, or None: while loading
        for _ in range(workers):
            self._hire()

    def forecast(self, parts: Iterator[tuple[Part, Rows]]) -> Iterator[tuple[Part, Done]]:
        """Each part, once, as it is finished. Before it raises, it waits until nobody writes any more."""
        try:
            while self._has_work(parts) or self._busy():
                while self.free and self._has_work(parts):
                    worker, held = self.free.popleft(), self.waiting.popleft()
                    self.running[worker.forecast.remote(*held)] = worker, held
                yield from self._collected()
        except Exception:
            if busy := self._busy():
                self.ray.wait(busy, num_returns=len(busy))
            for worker in self.workers:
                self.ray.kill(worker)
            raise

    def _hire(self) -> None:
        worker = self.kind.remote(self.opening)
        self.workers.append(worker)
        self.running[worker.load.remote()] = worker, None

    def _has_work(self, parts: Iterator[tuple[Part, Rows]]) -> bool:
        """Whether a part waits for a worker; the next one is read where none does, while all work."""
        if not self.waiting and (found := next(parts, None)) is not None:
            self.waiting.append((found[0], self.ray.put(found[1])))
        return bool(self.waiting)

    def _busy(self) -> list[Any]:
        return [task for task, (_, held) in self.running.items() if held is not None]

    def _collected(self) -> Iterator[tuple[Part, Done]]:
        task = self.ray.wait(list(self.running))[0][0]
        worker, held = self.running.pop(task)
        try:
            done = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayError as error:
            self._replace(worker, held, error)
            return
        if held is None:
            self.deaths.pop(None, None)
            self.free.extend([worker] * IN_FLIGHT)
        else:
            self.free.append(worker)
            yield held[0], done

    def _replace(self, worker: Any, held: tuple[Part, Any] | None, error: Exception) -> None:
        """Gives the parts of a worker that has died back, and takes a new one."""
        lost = [held] + [self.running.pop(task)[1] for task, (owner, _) in list(self.running.items())
                         if owner is worker]
        self.free = deque(other for other in self.free if other is not worker)
        self.workers.remove(worker)
        self.ray.kill(worker)  # where only the connection to it broke
        for each in lost:
            number = None if each is None else each[0].number
            self.deaths[number] += 1
            if self.deaths[number] > RETRIES:
                what = "workers cannot start: they" if number is None else f"part {number} of the table: its workers"
                raise NoWorkers(f"{what} have died {self.deaths[number]} times ({type(error).__name__}), perhaps for "
                                "want of memory: start again with --resume, and with fewer --workers or a smaller "
                                "--batch_size; finished parts are kept")
        self.waiting.extendleft(each for each in lost if each is not None)
        log.info("note: a worker has died (%s); parts of it that others do: %d", type(error).__name__,
                 sum(each is not None for each in lost))
        self._hire()


class PanelOnRay:
    """Forecasts a table by workers. This process reads it, fits the law and chooses K on the first part, and keeps the
    records [number of a part]."""

    def __init__(self, ray: Any, forecaster: Forecaster, table: PanelTable, parts: Parts, folder: Path,
                 gathered: bool):
        settings = forecaster.settings
        self.gathered, self.records = gathered, parts.finished
        self.work = PanelForecaster(forecaster, table, settings.panel, settings.data.horizon, QUANTILES)
        self.left: dict[int, Done] = {}
        self.refused = False
        parts.begin()
        workers, threads, gpus = shares(machines_of(ray), settings.panel.workers)
        assert isinstance(table.source, Path)
        opening = Opening(settings, forecaster.checkpoint, table.source, table.columns, parts, folder, os.getcwd(),
                          threads)
        self.crew = Crew(ray, opening, workers, gpus)
        log.info("workers: %d, with %d threads each%s", workers, threads, f" and {gpus:g} GPU" if gpus else "")

    def run(self) -> tuple[PanelForecaster, Mapping[int, dict[str, Any]]]:
        """Raises as `PanelForecaster.walk` does, and NoWorkers."""
        work = self.work
        quiet = work.forecaster.settings.run.quiet
        with tqdm(desc="forecast", unit="series", disable=quiet) as self.bar, closing(self._parts()) as parts:
            for part, done in self.crew.forecast(parts):
                self.left[part.number] = done
                self.refused = self.refused or work.refuses(done.bad, done.gaps)
                if done.record is not None:
                    self.records[part.number] = done.record
                    self.bar.update(done.record["counts"]["series"])
        for _, done in sorted(self.left.items()):
            work.bad += done.bad
            work.gaps += done.gaps
        work.refuse()
        return work, dict(sorted(self.records.items()))

    def _parts(self) -> Generator[tuple[Part, Rows], None, None]:
        """What is left to do, in order."""
        work, records, drawn = self.work, self.records, 0
        plan = next((record["plan"] for record in records.values()), None)
        begun: Begun | None = None
        for number, rows in enumerate(work.table.series(self.gathered)):
            finished = records.get(number)
            pictures = 0 if finished is None else finished["drawn"]
            # here as well, as long as the number of series that can be drawn is needed
            if begun is None or (finished is None and still_drawn(work.forecaster.settings, drawn, rows.ids)):
                prepared = work.examined(rows)
                if begun is None:
                    self.refused = work.refuses(*left_out(prepared))
                    if not self.refused:
                        work.begin(prepared, plan)
                    begun = Begun.of(work, self.gathered)
                if finished is None:
                    pictures = still_drawn(work.forecaster.settings, drawn, prepared.usable)
            if finished is None:
                yield Part(number, work.done, drawn, self.refused, begun), rows
            else:
                self.bar.update(finished["counts"]["series"])
            drawn += pictures
            work.done += len(rows.ids)
            self.bar.total = round(work.done / max(rows.read, 1e-9))
