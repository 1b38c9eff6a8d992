"""Panels that come as DataFrames, and go as DataFrames: `Forecaster.predict`."""
from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_provider.frames import FRAME, table_in
from data_provider.panel import PanelColumns, PanelTable, Scattered, panel_columns
from exp.panels import PanelSettings
from exp.predict.decoding import Sampler
from exp.predict.panel import Batch, PanelForecaster, Prepared, added
from exp.settings import Settings
from utils.errors import UserError, shorten

if TYPE_CHECKING:
    from exp.predict.forecaster import Forecaster

log = logging.getLogger("exp.predict.forecaster")


@dataclass
class LongFrame:
    frame: pd.DataFrame
    columns: PanelColumns


def long_frame(df: object, settings: Settings, panel: PanelSettings | None) -> LongFrame | None:
    """A long table to forecast series by series; None for any other, and for a target that forecasts them together.

    Raises UserError where `panel` is given, but df is no such table.
    """
    if panel is not None and not settings.data.univariate:
        raise UserError("`panel` has no effect on a target that forecasts all series together: load it with `kind` "
                        "UnivariateDatasetBenchmark, or leave it out")
    frame = table_in(df) if settings.data.univariate else None
    names = panel or PanelSettings()
    columns = None if frame is None else panel_columns(list(frame.columns), names.id_col, names.time_col,
                                                       names.target_col, FRAME)
    if frame is None or columns is None:
        if panel is not None:
            raise UserError(f"{FRAME} has no columns unique_id, ds and y: name them by `id_col`, `time_col` and "
                            "`target_col`, or leave out `panel`")
        return None
    return LongFrame(frame, columns)


def predict_frame(forecaster: Forecaster, long: LongFrame, horizon: int, levels: tuple[float, ...],
                  sampler: Sampler | None, panel: PanelSettings) -> pd.DataFrame:
    """The forecasts of a long table, in its own order and types. Raises UserError for series that cannot be
    forecast."""
    for setting in ("out", "backtest", "workers", "ray_address"):
        if vars(panel)[setting] is not None:
            raise UserError(f"`{setting}` has no effect on a DataFrame: leave it out")
    def work() -> PanelForecaster:
        return PanelForecaster(forecaster, PanelTable(long.frame, long.columns), panel, horizon, levels, sampler)
    try:
        return _predicted(work(), gathered=False)
    except Scattered:
        return _predicted(work(), gathered=True)


def _predicted(work: PanelForecaster, gathered: bool) -> pd.DataFrame:
    parts, counts = list[pd.DataFrame](), dict[str, int]()
    with tqdm(desc="forecast", unit="series", disable=work.forecaster.settings.run.quiet) as bar:
        for _, _, prepared, batch in work.walk(gathered):
            assert prepared is not None and batch is not None
            counts = added(counts, batch.counts)
            parts.append(frame_of(work, prepared, batch))
            bar.update(len(prepared.ids))
    for note in work.notes_of(counts):
        log.warning("note: %s", note)
    if work.bad:
        name, reason = work.bad[0]
        log.warning("note: %d series are left out, see attrs['skipped']: %s %s%s", len(work.bad), shorten(name), reason,
                    ", ..." if len(work.bad) > 1 else "")
    whole = pd.concat(parts, ignore_index=True)
    whole.attrs["skipped"] = dict(work.bad)
    return whole


def frame_of(work: PanelForecaster, prepared: Prepared, batch: Batch, as_text: bool = False) -> pd.DataFrame:
    """Long format, series by series: id and time as the table has and calls them, mean, and a column per level.

    as_text: times as the table would write them.
    """
    columns, times, horizon = work.table.columns, work.table.times, work.horizon
    future = prepared.grids.times(batch.series, np.arange(1, horizon + 1)).ravel()
    found: dict[str, Any] = {columns.id: prepared.ids[batch.series].repeat(horizon),
                             columns.time: times.text(future) if as_text else times.index(future)}
    for name, values in zip(value_names(work.levels), batch.values):
        found[name] = values.ravel()
    return pd.DataFrame(found)


def value_names(levels: tuple[float, ...]) -> list[str]:
    return ["mean", *(f"q{level:g}" for level in levels)]

