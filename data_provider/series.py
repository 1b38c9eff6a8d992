"""What every reader returns, and how errors name a place in what was read."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError, shorten

MOST_NAMED = 5


@dataclass
class Series:
    """values [T, C] float64 in data units; names of the C variables; dates: time stamps, periods, text or None.

    notes: what became of columns that are no variables. rows: the data row (from 0) that each time is found in; None:
    the same one.
    """

    values: np.ndarray
    names: list[str]
    dates: pd.Series | None
    notes: list[str] = field(default_factory=list)
    rows: np.ndarray | None = None

    def row_number(self, step: int) -> int:
        """The data row of time `step`, both counted as users see them: the first row is 1, the first step 0."""
        return int(step if self.rows is None else self.rows[step]) + 1


class Place:
    """A frame or a file in errors. Data rows are counted from 1, without the header."""

    def __init__(self, name: str, first: int = 0):
        self.name, self.first = name, first

    def row(self, row: int) -> str:
        """row: counted from 0, and from `first`."""
        return f"{self.name}, data row {self.first + row + 1}"


class CsvPlace(Place):
    """Names the line of the file, too, which an editor can jump to."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path = path

    def row(self, row: int) -> str:
        with open(self.path, encoding="utf-8", errors="replace") as lines:  # pandas skips blank lines
            filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
        line = f" (line {filled[row + 1]})" if row + 1 < len(filled) else ""
        return super().row(row) + line


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """The names, shortened to what fits a line; of more than `most` the others are counted."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shorten, names[:most])) + more


def refuse_gaps(place: Place, values: np.ndarray, names: list[str]) -> None:
    """Refuses values [T, C] that are missing or infinite."""
    missing = ~np.isfinite(values)
    if not missing.any():
        return
    column = int(missing.any(axis=0).argmax())
    gaps = missing[:, column]
    start = int(gaps.argmax())
    length = int((~gaps[start:]).argmax()) or len(gaps) - start
    raise UserError(f"{place.row(start)}, column {shorten(names[column])}: missing or infinite value (a run of "
                    f"{length}; {int(missing.sum())} such cells in all): fill the gap or cut it out, nothing is filled "
                    "in here")
