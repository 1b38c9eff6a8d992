"""Writes what documents say of every data set, between two comments, from the rows of the csv."""
from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from exp.report.decision import NO_LOSS
from exp.report.results import DRAFT, TARGET
from scripts.results.cells import (
    NONE,
    PARAREAL,
    TOLERANCE,
    Comparison,
    Method,
    comparisons_of,
    fixed,
    markdown,
    significant,
)
from scripts.results.entries import TOGETHER
from scripts.results.table import Row
from utils.errors import UserError
from utils.files import write_text

EMPTY = "Not measured yet: `bash scripts/results.sh` trains every pair, measures it, and fills this section."
WIDTH = 120


@dataclass(frozen=True)
class Marks:
    """The two comments between which lines of a document are made by `command` from the file `source`."""

    what: str
    command: str
    source: str

    @property
    def begin(self) -> str:
        return f"<!-- {self.what}: made by `{self.command}` from {self.source} -->"

    @property
    def end(self) -> str:
        return f"<!-- the end of {self.what} -->"


EVERY_DATA_SET = Marks("every data set", "bash scripts/results.sh --table", "docs/results/every_data_set.csv")
POOL_DRAFTS = Marks("pool drafts", "bash scripts/distillation/pool_drafts.sh --table", "docs/results/pool_drafts.csv")
PARAREAL_DRAFTS = Marks("parareal drafts", "bash scripts/distillation/parareal_drafts.sh",
                        "docs/results/parareal_drafts.csv")
SELF_DRAFT = Marks("heads as a draft", "bash scripts/distillation/self_draft.sh", "docs/results/self_draft.csv")
FRONTIER, LOSSLESS = (Marks(what, "bash scripts/benchmark/frontier.sh", "docs/results/frontier.csv")
                      for what in ("parareal's passes", "coupling's passes"))
PROMISE = Marks("promises", "bash scripts/benchmark/promise.sh", "docs/results/promise.csv")
BANDS_AT_EVERY_LEAD = Marks("bands at every lead", "bash scripts/benchmark/bands.sh", "docs/results/bands.csv")
GUIDE = "docs/STOCHASTIC_DRAFT_GUIDE.md"
SUCCESS = "docs/STOCHASTIC_DRAFT_SUCCESS.md"
MSE, TIME, PASSES, PER_CENT, RMS, K = fixed(4), significant, fixed(2), fixed(1), fixed(3), fixed(0)


def conditions(comparisons: Sequence[Comparison]) -> list[str]:
    """What was measured on what, in lines."""
    rows = [row for comparison in comparisons for row in comparison.rows]
    machines = dict.fromkeys(f"{row['device']}, cores: {row['cores']}, threads: {row['threads']}, torch {row['torch']}"
                             for row in rows)
    windows: dict[str, list[str]] = {}
    for comparison in comparisons:
        count = comparison.rows[0]["test_windows"]
        windows.setdefault(count, []).append("the pool" if " " in comparison.data else comparison.data)
    spread = ", ".join(f"{count} ({', '.join(dict.fromkeys(names))})" for count, names in windows.items())
    text = (f"Machine: {'; '.join(machines)}. Batch: {_batch(rows)}. Test windows per series, evenly spread: {spread}. "
            "Every rule is at its default. Standardised series. Where a pair was trained with several seeds, a cell "
            "has the mean and, in brackets, the range. Speed-ups are over the target alone.")
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def _batch(rows: Sequence[Row]) -> str:
    return ", ".join(sorted({row["batch_n"] for row in rows}, key=int))


def _pair(method: Method | None) -> str:
    return NONE if method is None else f"{method.cell('mse', MSE)} / {method.cell('mae', MSE)}"


def _of(method: Method | None, column: str, form: Callable[[float], str]) -> str:
    return NONE if method is None else method.cell(column, form)


def _passes(method: Method | None, comparison: Comparison) -> str:
    """'1.94 of 8': the target alone takes one pass per patch."""
    if method is None or not method.values("target_passes"):
        return NONE
    target = comparison.method(TARGET)
    return f"{method.cell('target_passes', PASSES)} of {_of(target, 'target_passes', K)}"


def _speedup(method: Method | None, batch: str) -> str:
    return NONE if method is None or not method.has_model else method.cell(f"speedup_batch_{batch}", TIME)


def _sentence(*texts: str) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False)] + [""]


def summary(comparisons: Sequence[Comparison]) -> list[str]:
    """One line per data set and horizon."""
    columns = ["data", "horizon", "target MSE / MAE", "draft MSE / MAE", "draft as good", "best rule", "its MSE / MAE",
               "its target passes", "kept %", "speed-up, batch 1", f"batch {_batch(comparisons[0].rows)}",
               "recommended"]
    rows = []
    for comparison in comparisons:
        best = comparison.best_rule()
        rows.append([comparison.title, str(comparison.horizon), _pair(comparison.method(TARGET)),
                     _pair(comparison.method(DRAFT)), comparison.draft_does(), NONE if best is None else best.short,
                     _pair(best), _passes(best, comparison), _of(best, "kept_pct", PER_CENT), _speedup(best, "1"),
                     _speedup(best, "n"), comparison.recommendation()])
    return markdown(columns, rows)


def full(comparisons: Sequence[Comparison]) -> list[str]:
    """All methods of one entry on the same data, at every horizon, folded up."""
    first = comparisons[0]
    batch = _batch([row for comparison in comparisons for row in comparison.rows])
    columns = ["horizon", "method", "MSE", "MAE", "MASE", "accepted %", "target passes", "RMS in windows", "kept %",
               "ms, batch 1", "speed-up", f"ms, batch {batch}", "speed-up", "planner's K, batch 1", f"batch {batch}"]
    rows = [[str(comparison.horizon), method.short, *(method.cell(error, MSE) for error in ("mse", "mae", "mase")),
             method.cell("acceptance_pct", PER_CENT), _passes(method, comparison), method.cell("rms_in_windows", RMS),
             method.cell("kept_pct", PER_CENT), method.cell("ms_batch_1", TIME), _speedup(method, "1"),
             method.cell("ms_batch_n", TIME), _speedup(method, "n"), method.cell("plan_batch_1", K),
             method.cell("plan_batch_n", K)] for comparison in comparisons for method in comparison.methods]
    seeds = ", ".join(dict.fromkeys(row["seed"] for row in first.rows))
    named = f"<details><summary>{first.title}: every method (seeds: {seeds})</summary>"
    return [named, "", *markdown(columns, rows), "", "</details>", ""]


def of_the_pool(comparisons: Sequence[Comparison]) -> list[str]:
    """The targets of a single file, of the pool, and of the pool without that file, on the same windows."""
    kinds = {name: {(comparison.data, comparison.horizon): comparison for comparison in comparisons
                    if comparison.entry.name == name} for name in ("pool_files", "zeroshot")}
    rows = []
    for single in comparisons:
        where = single.data, single.horizon
        if single.entry.files != TOGETHER or where not in kinds["pool_files"]:
            continue
        unseen = kinds["zeroshot"].get(where)
        rows.append([single.data, str(single.horizon), _pair(single.method(TARGET)),
                     _pair(kinds["pool_files"][where].method(TARGET)),
                     NONE if unseen is None else _pair(unseen.method(TARGET))])
    if not rows:
        return []
    return ["### One target for all files, or one for each", "",
            *_sentence("Target alone, MSE / MAE, on the same windows. The pool without a file has not seen it in "
                       "training: zero-shot."),
            *markdown(["data", "horizon", "trained on this file", "trained on the pool", "on the pool without it"],
                      rows), ""]


def results_block(rows: Sequence[Row]) -> list[str]:
    """Of SUCCESS."""
    comparisons = comparisons_of(rows)
    if not comparisons:
        return [EMPTY]
    lines = ["Every row: [csv](results/every_data_set.csv).", "", *conditions(comparisons), ""]
    lines += _sentence(
        f"*Draft as good*: alone, its MSE and its MAE are at most {100 * NO_LOSS:g} % above the target's. *Kept*: "
        "where the target's MAE is better than the draft's by more than that, the share of its advantage that a rule "
        "keeps (of several seeds, those in which it is). *Best rule*: the fastest that loses nothing, else the one "
        "that loses least; rows that emit samples are left out. At a horizon of one patch nothing is proposed.")
    lines += [*summary(comparisons), "", *of_the_pool(comparisons), "### Every method", "",
              *_sentence("RMS in windows: the deviation from the forecast of the target alone, in standard deviations "
                         "of each window. The planner's K is what `--spec_k auto` chooses; 0 is plain decoding.")]
    for _, group in groupby(comparisons, key=lambda comparison: comparison.title):
        lines += full(list(group))
    return lines[:-1]


def readme_block(rows: Sequence[Row]) -> list[str]:
    """Of README.md: at the last horizon, the pool's table, and the MAE of every data set."""
    comparisons = comparisons_of(rows)
    if not comparisons:
        return [EMPTY]
    last = [comparison for comparison in comparisons
            if comparison.horizon == max(other.horizon for other in comparisons)]
    lines = ["[Every row](docs/results/every_data_set.csv), "
             "[every horizon](docs/STOCHASTIC_DRAFT_SUCCESS.md#every-data-set).", "", *conditions(last), ""]
    for pool in (comparison for comparison in last if comparison.entry.name == "pool"):
        lines += [f"One pair for {len(pool.data.split())} files, H = {pool.horizon}:", ""]
        columns = ["method", "MSE", "MAE", "RMS in windows", "accepted %", "target passes", "kept %",
                   "speed-up, batch 1", f"batch {_batch(pool.rows)}"]
        lines += [*markdown(columns, [_short_row(method, pool) for method in pool.methods]), ""]
    lines += _sentence(f"MAE at H = {last[0].horizon}, with the target passes and the RMS in windows (the distance "
                       "from the target alone, in standard deviations of each window) of `tolerance` and `parareal`:")
    columns = ["data", "target", "draft", "tolerance", "its passes", "its RMS", "parareal", "parareal's passes",
               "parareal's RMS", "recommended"]
    return [*lines, *markdown(columns, [_mae_row(comparison) for comparison in last])]


def _short_row(method: Method, pool: Comparison) -> list[str]:
    return [method.short, method.cell("mse", MSE), method.cell("mae", MSE), method.cell("rms_in_windows", RMS),
            method.cell("acceptance_pct", PER_CENT), _passes(method, pool), method.cell("kept_pct", PER_CENT),
            _speedup(method, "1"), _speedup(method, "n")]


def _mae_row(comparison: Comparison) -> list[str]:
    target, draft, *ways = (comparison.method(start) for start in (TARGET, DRAFT, TOLERANCE, PARAREAL))
    cells = [cell for way in ways for cell in (_of(way, "mae", MSE), _passes(way, comparison),
                                               _of(way, "rms_in_windows", RMS))]
    return [comparison.title, _of(target, "mae", MSE), _of(draft, "mae", MSE), *cells, comparison.recommendation()]


BLOCKS = {"README.md": readme_block, SUCCESS: results_block}


def replaced(text: str, lines: Sequence[str], name: str, marks: Marks) -> str:
    """The text with `lines` between the two comments. Raises UserError unless it has both, once, in this order."""
    before, begin, rest = text.partition(marks.begin)
    old, end, after = rest.partition(marks.end)
    if not begin or not end or marks.begin in rest or marks.end in before + after:
        raise UserError(f"{name} needs the lines {marks.begin} and {marks.end}, once, in this order: put them where "
                        "the tables shall stand")
    return "\n".join([f"{before}{begin}", *lines, f"{end}{after}"])


def write_block(root: Path, name: str, marks: Marks, lines: Sequence[str]) -> None:
    """Puts `lines` between the two comments of a document below `root`."""
    old = (root / name).read_text(encoding="utf-8")
    new = replaced(old, lines, name, marks)
    if new != old:
        write_text(root / name, new)


def write_documents(root: Path, rows: Sequence[Row]) -> None:
    for name, block in BLOCKS.items():
        write_block(root, name, EVERY_DATA_SET, block(rows))
