"""Cells of the tables: the mean over seeds with its range, and words on what a comparison recommends."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from exp.report.decision import ERRORS, NO_LOSS
from exp.report.results import DRAFT, TARGET
from scripts.results.entries import BY_NAME, ENTRIES, Entry
from scripts.results.table import Row

NONE = "-"
NAIVE, TOLERANCE, PARAREAL, SPECULATIVE = "seasonal-naive", "tolerance", "parareal", "speculative "
Format = Callable[[float], str]


def fixed(digits: int) -> Format:
    return lambda value: f"{value:.{digits}f}"


def significant(value: float) -> str:
    """Two digits or more after the point for small numbers: times, speed-ups."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 \
        else f"{value:.3f}"


@dataclass(frozen=True)
class Method:
    """A row of a table: one row of the csv for each seed."""

    name: str
    rows: Sequence[Row]

    @property
    def short(self) -> str:
        return self.name.removeprefix(SPECULATIVE)

    @property
    def has_model(self) -> bool:
        return any(row["target_passes"] or row["draft_passes"] for row in self.rows)

    def values(self, column: str) -> list[float]:
        return [float(row[column]) for row in self.rows if row[column]]

    def cell(self, column: str, form: Format) -> str:
        """The value; of several seeds the mean, and in brackets the least and the greatest."""
        values = self.values(column)
        if not values:
            return NONE
        low, mean, high = (form(value) for value in (min(values), sum(values) / len(values), max(values)))
        return mean if low == high else f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Comparison:
    """All rows of one entry, on the same data, at one horizon."""

    entry: Entry
    data: str
    horizon: int
    rows: Sequence[Row]

    @property
    def title(self) -> str:
        return self.entry.titled(self.data)

    @property
    def methods(self) -> list[Method]:
        """In the order of the comparison."""
        names = dict.fromkeys(row["method"] for row in self.rows)
        return [Method(name, [row for row in self.rows if row["method"] == name]) for name in names]

    def method(self, start: str) -> Method | None:
        """The method whose name, without the word that it is speculative, starts so."""
        return next((method for method in self.methods if method.short.startswith(start)), None)

    @property
    def seeds(self) -> list[list[Row]]:
        """The rows of each seed."""
        return [list(rows) for _, rows in groupby(self.rows, key=lambda row: row["seed"])]

    def draft_does(self) -> str:
        """Whether the draft alone does as well as the target: in MSE and in MAE."""
        return _votes("yes" if _as_good(rows) else "no" for rows in self.seeds)

    def best_rule(self) -> Method | None:
        """The speculative row that the decision prefers, that of most seeds; None where nothing was proposed."""
        found = Counter(rows[0]["best_rule"] for rows in self.seeds if rows[0]["best_rule"])
        return self.method(found.most_common(1)[0][0].removeprefix(SPECULATIVE)) if found else None

    def recommendation(self) -> str:
        return _votes(_recommended(rows[0]) for rows in self.seeds)


def _as_good(rows: Sequence[Mapping[str, str]]) -> bool:
    target, draft = (next(row for row in rows if row["method"].startswith(name)) for name in (TARGET, DRAFT))
    return all(float(draft[error]) <= float(target[error]) * (1 + NO_LOSS) for error in ERRORS)


def _recommended(row: Row) -> str:
    if row["use"] == "speculation":
        at = f", batch {row['faster_at'].replace(' ', ' and ')}" if row["faster_at"] else ""
        return row["recommended"].removeprefix(SPECULATIVE) + at
    return {"draft": DRAFT, "target": TARGET}.get(row["use"], f"no model: {row['recommended']}")


def _votes(answers: Iterable[str]) -> str:
    """The answer; of seeds that differ each, with how many gave it."""
    found = Counter(answers)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{answer} ({count} of {found.total()} seeds)" for answer, count in found.most_common())


def comparisons_of(rows: Sequence[Row]) -> list[Comparison]:
    """In the order of the entries, then by data and horizon."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["entry"], row["data"], int(row["horizon"])), []).append(row)
    order = [entry.name for entry in ENTRIES]
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1], key[2]))
    return [Comparison(BY_NAME[name], data, horizon, groups[name, data, horizon]) for name, data, horizon in keys]


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]
