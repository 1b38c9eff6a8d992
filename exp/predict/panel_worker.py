"""One of several processes that forecast the parts of a panel, each of which it reads, forecasts and writes alone."""
from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_provider.panel import PanelColumns, PanelTable, Rows
from data_provider.panel_clock import TimeColumn
from exp.cluster import OTHER_FILES, NoWorkers
from exp.exp_basic import choose_device
from exp.ownership import SOURCES
from exp.predict.forecaster import Forecaster
from exp.predict.panel import PanelForecaster, left_out
from exp.predict.panel_parts import Parts
from exp.predict.panel_record import draw, keep, record_of
from exp.program import keep_memory
from exp.settings import Settings
from utils.files import digest
from utils.scores import QUANTILES
from utils.target_law import TargetLaw


@dataclass(frozen=True)
class Opening:
    """What is the same for all workers of a run. cwd: the folder that its relative paths start from."""

    settings: Settings
    checkpoint: Path
    source: Path
    columns: PanelColumns
    parts: Parts
    folder: Path
    cwd: str
    threads: int


@dataclass(frozen=True)
class Begun:
    """What one process fits and chooses on the first part, for all others. times: how the column of times is read."""

    law: TargetLaw | None
    plan: dict[str, int] | None
    times: TimeColumn
    gathered: bool

    @classmethod
    def of(cls, work: PanelForecaster, gathered: bool) -> Begun:
        law = work.law
        if law is not None:  # the others may have no GPU
            law = replace(law, factor=law.factor.cpu(), widths=None if law.widths is None else law.widths.cpu())
        return cls(law, work.chosen, work.table.times, gathered)


@dataclass(frozen=True)
class Part:
    """What to do with the `number`-th part, after `done` series, of which `drawn` have a picture.

    only_examined: the run ends with an error, which names all series that cannot be forecast.
    """

    number: int
    done: int
    drawn: int
    only_examined: bool
    begun: Begun


@dataclass(frozen=True)
class Done:
    """The record of a finished part, None if it was not forecast; bad and gaps: see PanelForecaster."""

    record: dict[str, Any] | None
    bad: list[tuple[Any, str]]
    gaps: list[tuple[Any, int]]


class PartWorker:
    """Loads the models once. What it writes, and in which order, does not depend on what it has done before."""

    def __init__(self, opening: Opening):
        self.opening = opening
        self.work: PanelForecaster | None = None

    def load(self) -> None:
        """Raises NoWorkers where it sees other files than the process that started it."""
        opening = self.opening
        torch.set_num_threads(opening.threads)
        keep_memory()
        sources = opening.parts.identity["used"].get(SOURCES, {})
        try:
            os.chdir(opening.cwd)
            same = all(digest(file["path"]) == file["sha256"] for name, file in sources.items()
                       if name != "data_path")  # whose rows are sent
        except OSError:
            same = False
        if not (same and opening.parts.begun):
            raise NoWorkers(OTHER_FILES)
        forecaster = Forecaster(opening.settings, opening.checkpoint, choose_device(opening.settings.run))
        self.work = PanelForecaster(forecaster, PanelTable(opening.source, opening.columns), opening.settings.panel,
                                    opening.settings.data.horizon, QUANTILES)

    def forecast(self, part: Part, rows: Rows) -> Done:
        """Examines whole series, forecasts them, and writes the forecasts and the record of a part."""
        work, begun = self.work, part.begun
        assert work is not None
        if work.table.times.clock is None:
            work.table.times = begun.times
            if not part.only_examined:
                work.use(begun.law, begun.plan)
        prepared = work.examined(rows)
        bad, gaps = left_out(prepared)
        if part.only_examined or work.refuses(bad, gaps):
            return Done(None, bad, gaps)
        work.done = part.done
        batch = work.forecast(prepared, part.number)
        drawn = draw(self.opening.folder, prepared, batch, work, part.drawn)
        record = record_of(prepared, batch, work, drawn, begun.gathered)
        keep(self.opening.parts, part.number, work, prepared, batch, record)
        return Done(record, bad, gaps)
