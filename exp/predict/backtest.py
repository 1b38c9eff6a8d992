"""--backtest: rolling origins of every series of a panel, scored beside seasonal-naive."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_provider.panel import PanelColumns, PanelTable, Scattered
from data_provider.panel_grid import lengths_of
from exp.flags import in_flags
from exp.predict.decoding import mean_cost
from exp.predict.forecaster import Forecaster
from exp.predict.panel import Batch, PanelForecaster, Prepared, added
from exp.predict.panel_parts import csv_text
from exp.predict.scoring import (
    coverage,
    mase,
    mean_of_known,
    naive_errors,
    rmse,
    scaled_crps,
    seasonal_naive,
    smape,
)
from exp.report.results import format_table
from utils.errors import UserError
from utils.files import write_json, write_text
from utils.scores import QUANTILES

BANDS = {80: (0.1, 0.9), 95: (0.025, 0.975)}  # per cent -> levels of its ends
TABLE, SUMMARY, SKIPPED = "backtest.csv", "backtest.json", "skipped.csv"
NAIVE = "_naive"  # ending of a column that is of seasonal-naive
log = logging.getLogger(__name__)


class PanelBacktest(PanelForecaster):
    """Scores forecasts of every series from origins before its end; the law, too, is of what was known before them.

    Where series are filled in, only values that were there are scored, and none is filled in from after its origin.
    """

    def __init__(self, forecaster: Forecaster, table: PanelTable):
        settings = forecaster.settings
        super().__init__(forecaster, table, settings.panel, settings.data.horizon, QUANTILES)
        self.scores: list[pd.DataFrame] = []
        step, count = settings.panel.step or self.horizon, settings.panel.backtest or 1
        # steps from each origin to the end of a series, the earliest first
        self.origins = [self.horizon + number * step for number in reversed(range(count))]

    def cut(self, whole: Prepared, before: int) -> Prepared:
        """What was known of every series `before` steps before its end, examined."""
        patch, most = self.forecaster.model.patch_len, self.forecaster.settings.data.test_context
        lengths = np.maximum(lengths_of(whole.starts) - before, 0)
        kept = np.arange(len(whole.known)) < np.repeat(whole.starts[:-1] + lengths, lengths_of(whole.starts))
        known, starts = whole.known[kept], np.concatenate([[0], np.cumsum(lengths)])
        part = replace(whole, values=self.filled(known, starts, whole.grids), known=known, starts=starts, contexts=[],
                       bad=dict(whole.bad), context=np.minimum(lengths // patch * patch, most))
        for number in np.flatnonzero(lengths < patch):
            rows = int(lengths_of(whole.starts)[number])
            part.bad.setdefault(int(number), f"is too short for the backtest: {rows} rows, but its first origin is "
                                f"{before} before the end, and a patch takes {patch}")
        super().examine(part)
        return part

    def examine(self, prepared: Prepared) -> None:
        """Adds to `bad` what the context of any origin shows."""
        for before in self.origins:
            prepared.bad |= self.cut(prepared, before).bad

    def begin(self, prepared: Prepared, plan: Mapping[str, int] | None = None) -> None:
        super().begin(self.cut(prepared, self.origins[0]), plan)

    def forecast(self, prepared: Prepared, number: int) -> Batch:
        """Of the newest origin; keeps the scores of all of them, and counts all."""
        every, counts, batch = [], dict[str, int](), None
        for turn, before in enumerate(self.origins):
            if self.paths is not None:
                self.paths.turn = turn
            part = self.cut(prepared, before)
            batch = super().forecast(part, number)
            counts = added(counts, batch.counts)
            every.append(self._scores(prepared, part, batch, before))
        assert batch is not None
        names = list(every[0])
        means = mean_of_known(np.stack([[scores[name] for name in names] for scores in every]))
        self.scores.append(pd.DataFrame({self.table.columns.id: prepared.ids[batch.series], **dict(zip(names, means))}))
        return replace(batch, counts=counts)

    def _scores(self, whole: Prepared, part: Prepared, batch: Batch, before: int) -> dict[str, np.ndarray]:
        """Of one origin: measure -> [S'] of the usable series."""
        some, seasons = batch.series, whole.grids.seasons()
        truth = whole.known[(whole.starts[some + 1] - before)[:, None] + np.arange(self.horizon)]
        scale = naive_errors(part.known, part.starts, seasons)[some]
        naive = seasonal_naive(part.values, part.starts[some + 1], np.minimum(seasons, lengths_of(part.starts))[some],
                               self.horizon)
        found: dict[str, np.ndarray] = {}
        for ending, forecast in (("", batch.values[0]), (NAIVE, naive)):
            found |= {f"mase{ending}": mase(truth, forecast, scale), f"smape{ending}": smape(truth, forecast),
                      f"rmse{ending}": rmse(truth, forecast)}
            if self.levels:
                quantiles = np.broadcast_to(naive, batch.values[1:].shape) if ending else batch.values[1:]
                found[f"scaled_crps{ending}"] = scaled_crps(truth, quantiles, self.levels)
        for band, ends in BANDS.items() if self.levels else ():
            low, high = (batch.values[1 + self.levels.index(end)] for end in ends)
            found[f"coverage_{band}"] = coverage(truth, low, high)
        return found


def backtest(forecaster: Forecaster, path: Path, columns: PanelColumns, folder: Path) -> None:
    """Scores `panel.backtest` forecasts of every series, from origins `panel.step` apart, the newest a horizon before
    its end; writes backtest.csv and backtest.json to `folder`."""
    try:
        work, counts = _scored(forecaster, PanelTable(path, columns), gathered=False)
    except Scattered:
        log.info("note: the rows of a series are not together in %s: the whole table is read first", path)
        work, counts = _scored(forecaster, PanelTable(path, columns), gathered=True)
    scores = pd.concat(work.scores, ignore_index=True)
    if not len(scores):
        raise UserError(f"{path}: no series is left to be scored: lower `backtest`, `step` or `horizon`")
    panel, ids = forecaster.settings.panel, scores.pop(columns.id)
    overall = {name: None if np.isnan(mean) else float(mean)
               for name, mean in zip(scores, mean_of_known(scores.to_numpy()))}
    text = scores.apply(lambda column: column.map(lambda value: "" if np.isnan(value) else f"{value:.6g}"))
    text.insert(0, columns.id, ids.astype(str))
    write_text(folder / TABLE, ",".join(text.columns) + "\n" + csv_text(text))
    if work.bad:
        write_text(folder / SKIPPED, f"{columns.id},reason\n" + csv_text(pd.DataFrame(work.bad).astype(str)))
        work.notes.append(f"{len(work.bad)} series are left out, listed with the reasons in {folder / SKIPPED}")
    notes = [in_flags(note) for note in work.notes_of({name: counts[name] for name in ("unsorted",)})]
    for note in notes:
        log.info("note: %s", note)
    measures = [name for name in scores if not name.endswith(NAIVE)]
    rows = [{"method": method, **{name: overall.get(name + ending) for name in measures}}
            for method, ending in (("forecast", ""), ("seasonal-naive", NAIVE))]
    log.info(format_table(rows, {name: name for name in rows[0]}))
    write_json(folder / SUMMARY, {
        "data_path": str(path), "series": len(scores), "origins": panel.backtest, "step": panel.step or work.horizon,
        "horizon": work.horizon, "overall": {row["method"]: {name: row[name] for name in measures} for row in rows},
        "cost": mean_cost(counts), "notes": notes, "skipped": len(work.bad), "checkpoint": str(forecaster.checkpoint)})
    log.info("backtest: %s: %d series, %d origins each, %d steps ahead", folder / TABLE, len(scores), panel.backtest,
             work.horizon)


def _scored(forecaster: Forecaster, table: PanelTable, gathered: bool) -> tuple[PanelBacktest, dict[str, int]]:
    work, counts = PanelBacktest(forecaster, table), dict[str, int]()
    with tqdm(desc="backtest", unit="series", disable=forecaster.settings.run.quiet) as bar:
        for _, read, prepared, batch in work.walk(gathered):
            assert prepared is not None and batch is not None
            counts = added(counts, batch.counts)
            bar.update(len(prepared.ids))
            bar.total = round(bar.n / max(read, 1e-9))
    return work, counts
