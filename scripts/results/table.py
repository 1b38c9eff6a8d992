"""docs/results/every_data_set.csv: one row per entry, seed, horizon and method, written atomically."""
from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exp.report.results import write_csv
from scripts.results.entries import BY_NAME, ENTRIES
from utils.errors import UserError, shorten

COMPARISON = ("entry", "data", "seed", "horizon")  # these identify one; `method` a row of it
ERRORS = ("mse", "mae", "mase")
TIMES = tuple(f"{name}{part}" for name in ("ms_batch_1", "ms_batch_n") for part in ("", "_p10", "_p90"))
MEASURED = (*ERRORS, "acceptance_pct", "used_pct", "target_passes", "draft_passes", "rms_in_windows", "rms_from_target",
            "kept_pct", *TIMES, "speedup_batch_1", "speedup_batch_n", "plan_batch_1", "plan_batch_n")
OF_RUN = ("batch_n", "windows", "context", "device", "cores", "threads", "torch")
# of a comparison's decision: the best speculative row; what it recommends, the row of that, and the batch sizes at
# which that is faster than the target
DECISION = ("best_rule", "use", "recommended", "faster_at")
OF_FILES = ("test_windows", "target_sha256", "draft_sha256", "data_sha256")
COLUMNS = [*COMPARISON, "method", *MEASURED, *OF_RUN, *DECISION, *OF_FILES]
NUMBERS = (*MEASURED, "seed", "horizon", "batch_n", "windows", "context")
NEEDED = ("entry", "data", "seed", "horizon", "method", "mse", "mae", "ms_batch_1", "ms_batch_n", "speedup_batch_1",
          "speedup_batch_n", "batch_n", "windows", "device", "torch", "use", "recommended")
REMEDY = "restore the file, or move it away to measure everything again"
Row = dict[str, str]


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a csv with these columns, all values as text; none where there is no file.

    Raises UserError for a file that cannot be read, and for other columns."""
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            named, rows = reader.fieldnames, list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'not text'}): {REMEDY}") from None
    if named != columns:
        raise UserError(f"{path} has other columns than this version writes: {REMEDY}")
    return rows


def read_table(path: Path) -> list[Row]:
    """The rows of docs/results/every_data_set.csv. Raises UserError for a table that is not whole."""
    rows = read_rows(path, COLUMNS)
    for number, row in enumerate(rows, 1):
        damage = _damage(row)
        if damage:
            raise UserError(f"{path}, row {number}: {damage}: {REMEDY}")
    return rows


def _damage(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a row; None if it is whole."""
    if None in row or None in row.values():
        return f"it does not have {len(COLUMNS)} values"
    if row["entry"] not in BY_NAME:
        return f"no entry is called {shorten(row['entry'])}"
    for name in NEEDED:
        if not row[name]:
            return f"it has no {name}"
    for name in NUMBERS:
        if row[name] and not _is_number(row[name]):
            return f"{name} is {shorten(row[name])}, where a number was expected"
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def rows_of(of: Mapping[str, Any], used: Mapping[str, str], metrics: Mapping[str, Any]) -> list[Row]:
    """Rows of one comparison. of: values of COMPARISON; used: of OF_FILES; metrics: what --compare has left."""
    decision = metrics["decision"]
    best = decision["ways"]["speculation"]
    decided = {"best_rule": None if best is None else best["method"], "use": decision["use"],
               "recommended": decision["method"], "faster_at": " ".join(map(str, decision["batch_sizes"]))}
    return [{name: text_of((row | decided | dict(used) | dict(of)).get(name)) for name in COLUMNS}
            for row in metrics["rows"]]


def text_of(value: object) -> str:
    """Six significant digits: further ones depend on the number of threads."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


class Table:
    """The rows in `path`, which is rewritten when a comparison is added."""

    def __init__(self, path: Path):
        self.path, self.rows = path, read_table(path)

    def has(self, of: Mapping[str, Any], used: Mapping[str, str]) -> bool:
        """Whether the comparison is there, made of the same checkpoints, data and windows."""
        found = self._rows_of(of)
        return bool(found) and all(row[name] == value for row in found for name, value in used.items())

    def _rows_of(self, of: Mapping[str, Any]) -> list[Row]:
        return [row for row in self.rows if all(row[name] == str(of[name]) for name in COMPARISON)]

    def put(self, rows: list[Row]) -> None:
        """Puts the rows of a comparison in the place of its former ones: a kill leaves either, never a part."""
        old = self._rows_of(rows[0])
        kept = [row for row in self.rows if row not in old]
        order = [entry.name for entry in ENTRIES]
        self.rows = sorted([*kept, *rows], key=lambda row: (order.index(row["entry"]), row["data"], int(row["seed"]),
                                                            int(row["horizon"])))
        write_csv(self.path, [dict(row) for row in self.rows], COLUMNS)
