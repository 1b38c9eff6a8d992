"""--do_predict for a panel: one long table of forecasts, what was left out, pictures of the first, and provenance."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from data_provider.panel import PanelColumns, PanelTable, Scattered, kind_of, names_of, panel_columns
from data_provider.series import listed
from exp.cluster import NoWorkers
from exp.flags import flat, in_flags
from exp.predict.backtest import backtest
from exp.predict.behind import Behind
from exp.predict.decoding import mean_cost
from exp.predict.files import NO_LAW
from exp.predict.forecaster import Forecaster
from exp.predict.frames import value_names
from exp.predict.panel import PanelForecaster, added
from exp.predict.panel_on_ray import PanelOnRay, ray_of
from exp.predict.panel_parts import Parts, csv_text
from exp.predict.panel_record import draw, keep, record_of
from exp.settings import Settings
from utils.errors import UserError
from utils.files import refuse_unwritable, write_json, write_text
from utils.scores import QUANTILES

SKIPPED, SHORT = "skipped.csv", "short.csv"
Forecasts = tuple[PanelForecaster, Mapping[int, dict[str, Any]]]  # and the records of all parts
log = logging.getLogger(__name__)


def columns_of(settings: Settings, path: Path) -> PanelColumns | None:
    """The columns of a file that is forecast as a panel; None for every other one.

    Raises UserError for settings of a panel that would have no effect.
    """
    panel = settings.panel
    if settings.data.univariate:
        columns = panel_columns(names_of(path), panel.id_col, panel.time_col, panel.target_col, str(path))
        if columns is not None:
            return columns
        why = f"{path} has no columns unique_id, ds and y (`id_col`, `time_col` and `target_col` name others)"
    else:
        why = "the target forecasts all series together (`kind` UnivariateDatasetBenchmark forecasts each by itself)"
    if panel.given() or settings.run.resume:
        raise UserError(f"`{(panel.given() or ['resume'])[0]}` is for long tables whose series are forecast each by "
                        f"itself, but {why}: leave it out")
    return None


def predict_panel(forecaster: Forecaster, path: Path, columns: PanelColumns, folder: Path,
                  used: Mapping[str, Any]) -> None:
    """Forecasts the table `path`; writes forecast.csv or .parquet, or `out`, and the rest to `folder`.

    used: what the results depend on. A run that is ended goes on with `resume`. With `backtest` it scores forecasts
    instead.
    """
    settings = forecaster.settings
    if settings.panel.backtest is not None:
        backtest(forecaster, path, columns, folder)
        return
    kind = "parquet" if kind_of(path) == ".parquet" else "csv"
    out = folder / f"forecast.{kind}" if settings.panel.out is None else Path(settings.panel.out)
    kind = out.suffix.lower()[1:]
    if out.exists() and out.samefile(path):
        raise UserError(f"`out` {out} is the table itself, which the forecasts would replace: name another file")
    if out.is_dir():
        raise UserError(f"`out` {out} is a folder: name a file")
    refuse_unwritable(out.absolute().parent, "--out")
    extra = [name for name in names_of(path) if name not in columns.names]
    with ray_of(settings) as ray:  # before finished parts are looked at: where there is no Ray, they stay
        parts = Parts(folder, kind, used, settings.run.resume)
        if settings.run.resume:
            log.info("resume: %d parts of this table are finished", len(parts.finished))
        work, records = _by_parts(ray, forecaster, PanelTable(path, columns), parts, folder)
    _write(work, parts, records, out, folder, extra)


def _by_parts(ray: Any, forecaster: Forecaster, table: PanelTable, parts: Parts, folder: Path) -> Forecasts:
    """Forecasts what is not finished, by workers of Ray unless that is None."""
    try:
        try:
            return _forecast(ray, forecaster, table, parts, folder, gathered=parts.gathered)
        except Scattered:
            log.info("note: the rows of a series are not together in %s: the whole table is read first", table.source)
            parts.clear()
            return _forecast(ray, forecaster, PanelTable(table.source, table.columns), parts, folder, gathered=True)
    except KeyboardInterrupt:
        log.info("%d finished parts are kept: --resume goes on from them", len(parts.finished))
        raise
    except UserError as error:
        if not (isinstance(error, NoWorkers) and parts.finished):
            parts.clear()
        raise


def _forecast(ray: Any, forecaster: Forecaster, table: PanelTable, parts: Parts, folder: Path,
              gathered: bool) -> Forecasts:
    settings, records = forecaster.settings, parts.finished
    if not records:
        for picture in folder.glob("forecast_*.png"):
            picture.unlink()
    if ray is not None:
        return PanelOnRay(ray, forecaster, table, parts, folder, gathered).run()
    work = PanelForecaster(forecaster, table, settings.panel, settings.data.horizon, QUANTILES)
    plan, drawn = next((record["plan"] for record in records.values()), None), 0
    with tqdm(desc="forecast", unit="series", disable=settings.run.quiet) as bar, Behind() as behind:
        for number, read, prepared, batch in work.walk(gathered, records, plan):
            if prepared is not None and batch is not None:
                now = draw(folder, prepared, batch, work, drawn)
                records[number] = record_of(prepared, batch, work, now, gathered)
                behind.do(keep, parts, number, work, prepared, batch, records[number])
            drawn += records[number]["drawn"]
            bar.update(records[number]["counts"]["series"])
            bar.total = round(bar.n / max(read, 1e-9))  # an estimate, from the share of the file that is read
    return work, dict(sorted(records.items()))


def _write(work: PanelForecaster, parts: Parts, records: Mapping[int, dict[str, Any]], out: Path, folder: Path,
           extra: list[str]) -> None:
    settings, columns = work.forecaster.settings, work.table.columns
    parts.join(out, len(records), [columns.id, columns.time, *value_names(work.levels)])
    counts, frequencies = dict[str, int](), dict[str, int]()
    for record in records.values():
        counts, frequencies = added(counts, record["counts"]), added(frequencies, record["frequencies"])
    notes = work.notes_of(counts)
    if not work.levels:
        notes.append(NO_LAW)
    if extra:
        notes.append(f"left out: {listed(extra)} (of a long table only {', '.join(columns.names)} are used)")
    for name, what, second in ((SKIPPED, "skipped", "reason"), (SHORT, "short", "context")):
        rows = [row for record in records.values() for row in record[what]]
        (folder / name).unlink(missing_ok=True)
        if rows:
            write_text(folder / name, f"{columns.id},{second}\n" + csv_text(pd.DataFrame(rows).astype(str)))
            notes.append(f"{len(rows)} series are left out, listed with the reasons in {folder / name}"
                         if what == "skipped" else f"the series with a shorter context are listed in {folder / name}")
    notes, cost = [in_flags(note) for note in notes], mean_cost(counts)
    for note in notes:
        log.info("note: %s", note)
    flags = flat(settings)
    write_json(folder / "forecast.json", {
        "data_path": str(work.table.source), "out": str(out), "frequencies": frequencies, "counts": counts,
        "horizon": work.horizon, "context": settings.data.test_context, "checkpoint": str(work.forecaster.checkpoint),
        "draft": settings.run.draft_checkpoint, "cost": cost, "notes": notes, "seed": settings.run.seed,
        "num_samples": settings.report.num_samples, "clip_min": settings.report.clip_min,
        "settings": {name: flags[name] for name in flags if name in ("missing", "on_bad") or (
            name.startswith("spec_") and (settings.run.use_speculative or work.levels))}})
    parts.clear()
    words = ", ".join(f"{count} in {name}" for name, count in frequencies.items())
    log.info("forecast: %s: %d of %d series, %d steps%s", out, counts["forecast"], counts["series"], work.horizon,
             f" ({words})" if words else "")
    if cost:
        log.info("target passes: %g, draft passes: %g", cost["target_passes"], cost["draft_passes"])
