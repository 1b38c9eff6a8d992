"""What becomes of the forecasts of one part of a panel: its table, its record, and pictures of the first series."""
from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from exp.predict.files import bands_of, picture_name
from exp.predict.frames import frame_of
from exp.predict.panel import Batch, PanelForecaster, Prepared
from exp.predict.panel_parts import Parts
from exp.report.plots import prediction_figure
from exp.settings import SERIES_DRAWN, Settings


def keep(parts: Parts, number: int, work: PanelForecaster, prepared: Prepared, batch: Batch,
         record: Mapping[str, Any]) -> None:
    parts.write(number, frame_of(work, prepared, batch, as_text=parts.kind == "csv"), record)


def record_of(prepared: Prepared, batch: Batch, work: PanelForecaster, drawn: int, gathered: bool) -> dict[str, Any]:
    """What is kept of a part, as JSON."""
    short = batch.series[prepared.context[batch.series] < work.forecaster.settings.data.test_context]
    return {"counts": batch.counts, "plan": work.chosen, "drawn": drawn, "gathered": gathered,
            "frequencies": prepared.grids.frequencies(batch.series),
            "skipped": [[str(prepared.ids[i]), prepared.bad[i]] for i in sorted(prepared.bad)],
            "short": [[str(prepared.ids[i]), int(prepared.context[i])] for i in short]}


def still_drawn(settings: Settings, drawn: int, series: Sized) -> int:
    """Of how many of the series there will be pictures, where there are `drawn` already."""
    wanted = SERIES_DRAWN if settings.report.pictures is None else settings.report.pictures
    return min(max(wanted - drawn, 0), len(series))


def draw(folder: Path, prepared: Prepared, batch: Batch, work: PanelForecaster, drawn: int) -> int:
    """Pictures of the first series, of which `drawn` are there; returns how many were added."""
    patch, count = work.forecaster.model.patch_len, still_drawn(work.forecaster.settings, drawn, batch.series)
    clock, horizon = work.table.times.clock, work.horizon
    assert clock is not None
    for place, number in enumerate(batch.series[:count]):
        rows = min(max(horizon, 2 * patch), int(prepared.starts[number + 1] - prepared.starts[number]))
        one = np.array([number])
        history = clock.index(prepared.grids.times(one, np.arange(1 - rows, 1))[0])
        future = clock.index(prepared.grids.times(one, np.arange(1, horizon + 1))[0])
        if isinstance(history, pd.PeriodIndex):
            history, future = history.to_timestamp(), future.to_timestamp()
        name = str(prepared.ids[number])
        prediction_figure(folder / picture_name(drawn + place, name), name, history,
                          prepared.windows(one, rows)[0], future, batch.values[0, place],
                          bands_of(work.levels, batch.values[1:, place]),
                          None if batch.origin is None else batch.origin[place], patch,
                          f"{horizon} steps after {history[-1]}")
    return count
