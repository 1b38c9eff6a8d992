"""Forecasts of a panel: time, memory, and the share of the time that the target's own passes take.

    python -m scripts.benchmark.panel --checkpoints FOLDER --test_dir TARGET [--series 20000] [--rows 1000]

Makes a long table of ragged series: half of them have all `--rows` rows, a quarter are shorter, a quarter have holes,
one in a hundred is constant. Forecasts it by --do_predict in a process of its own, from a csv and from a parquet file,
and then decodes the same windows, already in memory, by the target alone in batches of the same size. `ratio` is the
time of those bare passes by that of the forecast, from the loaded models to the written table; `memory_mib` is what the
forecast takes beyond the models. The table is removed at the end. Linux, CPU.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.dates import ConciseDateFormatter

from data_provider.panel import PanelTable
from exp.exp_basic import choose_device, seed_everything
from exp.flags import Parser, reader
from exp.limits import COUNT
from exp.options import read_command_line
from exp.ownership import sources
from exp.predict.forecaster import Forecaster
from exp.predict.panel import PanelForecaster
from exp.predict.panel_files import columns_of, predict_panel
from exp.program import exit_code
from exp.report.plots import BLACK, BLUE, save_figure, subplots
from exp.report.results import format_table, write_csv
from exp.stored import tested_checkpoint
from scripts.benchmark.decode_memory import peak_mib
from utils.speculative_decoder import decode_alone
from utils.timing import hardware

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["kind", "series", "forecast", "rows", "horizon", "batch_size", "seconds", "bare_s", "ratio", "series_per_s",
           "memory_mib", "models_mib"]
PART = 2000  # series that are made at once
FLAGS = "--quiet --do_predict --root_path . --pictures 0 --missing interpolate --on_bad skip"


def make_panel(path: Path, series: int, rows: int, seed: int = 0) -> int:
    """Writes a long table, csv or parquet by its ending, and returns the number of its rows."""
    written, writer = 0, None
    for first in range(0, series, PART):
        frame = _part(first, min(PART, series - first), rows, seed)
        written += len(frame)
        if path.suffix == ".csv":
            frame.to_csv(path, index=False, mode="a", header=first == 0)
            continue
        import pyarrow
        import pyarrow.parquet
        table = pyarrow.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return written


def _part(first: int, count: int, rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng((seed, first))
    number = np.arange(first, first + count)
    lengths = np.where(number % 4 == 1, rng.integers(max(3, rows // 20), rows + 1, count), rows)
    of_row = np.repeat(np.arange(count), lengths)
    step = np.arange(len(of_row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    wave = np.sin(2 * np.pi * (step / 24 + rng.random(count)[of_row])) * rng.gamma(2, 2, count)[of_row]
    values = wave + rng.normal(size=len(step)).cumsum() / 10 + 50
    values[(number % 100 == 99)[of_row]] = 7.0
    holed = (number % 4 == 3)[of_row] & (rng.random(len(step)) < 0.05) & (step > 0)
    gone = holed & (rng.random(len(step)) < 0.5)
    values[holed & ~gone] = np.nan
    begin = np.datetime64("2020-01-01", "s") + rng.integers(0, 10000, count)[of_row].astype("m8[h]")
    frame = pd.DataFrame({"unique_id": np.array([f"series{i:06d}" for i in number], dtype=object)[of_row],
                          "ds": begin + step.astype("m8[h]"), "y": values.round(3)})
    return frame[~gone]


def measure(flags: list[str]) -> dict[str, float]:
    """Forecasts in this process, and then decodes the same windows alone."""
    settings = read_command_line(flags)
    seed_everything(settings.run.seed)
    checkpoint, path = tested_checkpoint(settings.run, settings.model.name), settings.data.files[0].path
    forecaster = Forecaster(settings, checkpoint, choose_device(settings.run))
    columns, folder = columns_of(settings, path), Path("results")
    assert columns is not None
    folder.mkdir()
    models, begun = peak_mib(), time.perf_counter()
    predict_panel(forecaster, path, columns, folder, {"sources": sources(settings.data.files, checkpoint=checkpoint)})
    seconds, memory = time.perf_counter() - begun, peak_mib() - models
    counts = json.loads((folder / "forecast.json").read_text())["counts"]
    bare = bare_seconds(PanelForecaster(forecaster, PanelTable(path, columns), settings.panel, settings.data.horizon,
                                        ()))
    return {"series": counts["series"], "forecast": counts["forecast"], "horizon": settings.data.horizon,
            "batch_size": settings.data.batch_size, "seconds": round(seconds, 2), "bare_s": round(bare, 2),
            "ratio": round(bare / seconds, 3), "series_per_s": round(counts["series"] / seconds, 1),
            "memory_mib": round(memory, 1), "models_mib": round(models, 1)}


def bare_seconds(work: PanelForecaster) -> float:
    """Seconds of the target's own passes over the windows of a panel, in batches of equal context."""
    seconds, model, batch = 0.0, work.forecaster.model, work.forecaster.settings.data.batch_size
    for rows in work.table.series():
        prepared = work.prepare(rows)
        work.examine(prepared)
        for contexts in prepared.contexts:
            begun = time.perf_counter()
            for part in contexts.values.to(work.forecaster.device).split(batch):
                decode_alone(model, part, work.horizon)
            seconds += time.perf_counter() - begun
    return seconds


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=reader(COUNT), default=20000, help="number of series (default: %(default)s)")
    parser.add_argument("--rows", type=reader(COUNT), default=1000, help="of a whole series (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=["csv", "parquet"], default=["csv", "parquet"])
    parser.add_argument("--checkpoints", required=True, help="folder of checkpoints")
    parser.add_argument("--test_dir", required=True, help="folder of the target in it")
    parser.add_argument("--flags", default="", help="further flags of run.py, in one word: '--test_pred_len 192'")
    parser.add_argument("--folder", help="where to make the table (default: the system's folder of temporary files)")
    parser.add_argument("--out", default="benchmark/panel.csv")
    parser.add_argument("--picture", metavar="FILE.png", help="draw the first four series there")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help="measure one forecast with these flags of run.py, "
                        "in this process")
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--measure"]:
        return exit_code(lambda: print(json.dumps(measure(arguments[1:]))), "--series", "nothing is kept")
    return exit_code(lambda: run(parser.parse_args(arguments)), "--series", "nothing is kept")


def run(args) -> None:
    folder, rows = Path(tempfile.mkdtemp(prefix="panel_", dir=args.folder)), []
    try:
        for kind in args.kinds:
            made = make_panel(folder / f"panel.{kind}", args.series, args.rows)
            rows.append({"kind": kind, "rows": made} | measured(folder, kind, args))
            write_csv(Path(args.out), rows, COLUMNS)
            if args.picture and kind == args.kinds[-1]:
                draw_four(Path(args.picture), folder, kind, args.rows)
            (folder / f"panel.{kind}").unlink()
    finally:
        shutil.rmtree(folder)
    print(format_table(rows, {key: key for key in COLUMNS}))
    print(f"table: {args.out}; {hardware(torch.device('cpu'))}")


def draw_four(path: Path, folder: Path, kind: str, rows: int) -> None:
    """The end of the first four series that are whole, shorter, whole and with holes, and what continues them."""
    names = [f"series{number:06d}" for number in range(4)]
    if kind == "csv":
        table, found = (pd.read_csv(file, nrows=4 * rows, parse_dates=["ds"]) for file in (
            folder / "panel.csv", folder / "results" / "forecast.csv"))
    else:
        only = [("unique_id", "in", names)]
        table, found = (pd.read_parquet(file, filters=only) for file in (
            folder / "panel.parquet", folder / "results" / "forecast.parquet"))
    figure, axes = subplots(2, 2, figsize=(12, 5.5), layout="constrained")
    for axis, name in zip(axes.flat, names):
        past, future = table[table.unique_id == name], found[found.unique_id == name]
        shown = past.iloc[-min(len(past), 2 * len(future)):]
        axis.plot(shown.ds, shown.y, color=BLACK, lw=0.9, label="history")
        axis.plot(future.ds, future["mean"], color=BLUE, lw=1.4, label="forecast")
        axis.set_title(f"{name}: {len(past)} rows, {past.y.isna().sum()} empty", fontsize=10)
        axis.xaxis.set_major_formatter(ConciseDateFormatter(axis.xaxis.get_major_locator()))
    axes[0, 0].legend(fontsize=8)
    save_figure(figure, path)


def measured(folder: Path, kind: str, args) -> dict:
    """A row of the table, from a process of its own."""
    flags = [*FLAGS.split(), "--data_path", f"panel.{kind}", "--checkpoints", str(Path(args.checkpoints).resolve()),
             "--test_dir", args.test_dir, *args.flags.split()]
    shutil.rmtree(folder / "results", ignore_errors=True)
    alone = [sys.executable, "-m", "scripts.benchmark.panel", "--measure", *flags]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    said = subprocess.run(alone, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE,
                          text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
