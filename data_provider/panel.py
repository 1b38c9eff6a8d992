"""Long tables, a block of rows at a time: csv, csv.gz, parquet and DataFrames -> whole series, in the table's order."""
from __future__ import annotations

import gzip
import re
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from data_provider.columns import numeric_column
from data_provider.panel_clock import TimeColumn
from data_provider.panel_grid import lengths_of
from data_provider.parquet import pyarrow_for
from data_provider.reading import refuse_missing
from data_provider.series import Place
from utils.errors import UserError, shorten

BLOCK = 2**20  # rows that are read at once
MOST_GATHERED = 2**25  # rows of a table whose series are scattered, which is then held in memory: about 1 GiB
# names of the columns of id, time and value that are known without being given: Nixtla's, and GluonTS' and AutoGluon's
KNOWN = (("unique_id", "ds", "y"), ("item_id", "timestamp", "target"))
MISSING = ["", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "-NaN", "NULL", "null", "None", "none", "<NA>", "#N/A"]
KINDS = (".csv", ".csv.gz", ".parquet")
NUMBERED_INDEX = re.compile(r"__index_level_\d+__")  # what pandas calls an index without a name in a parquet file
REPLACED = "\N{REPLACEMENT CHARACTER}"  # in place of bytes that are not UTF-8


@dataclass(frozen=True)
class PanelColumns:
    """The names of the columns of a long table."""

    id: str
    time: str
    target: str

    @property
    def names(self) -> list[str]:
        return [self.id, self.time, self.target]


class Scattered(Exception):
    """The rows of a series are not all together."""


@dataclass
class Rows:
    """Whole series, one after another: ids [S], values [R] with NaN where they are missing, ticks [R], starts [S + 1].

    read: the share of the table that is read so far. unsorted: number of series whose rows were not in order of time.
    """

    ids: pd.Index
    values: np.ndarray
    ticks: np.ndarray
    starts: np.ndarray
    read: float
    unsorted: int = 0


def kind_of(path: Path) -> str:
    """The ending that tells how a file is read: '.csv.gz' of both its endings."""
    two = "".join(path.suffixes[-2:]).lower()
    return two if two in KINDS else path.suffix.lower()


def names_of(path: Path) -> list[str]:
    """The names of the columns of a file that may be a long table; empty for other kinds."""
    refuse_missing(path)
    kind = kind_of(path)
    if kind == ".parquet":
        with _reading(path):
            return [name for name in _parquet(path).schema_arrow.names if not NUMBERED_INDEX.fullmatch(name)]
    if kind not in KINDS:
        return []
    try:
        with _reading(path), _opened(path) as (text, _):
            return [str(name) for name in pd.read_csv(text, nrows=0, encoding_errors="replace",
                                                      skipinitialspace=True).columns]
    except UserError:
        if kind == ".csv":  # the reader of the whole file says more about what is wrong with it
            return []
        raise


def panel_columns(names: Sequence[Hashable], id_col: str | None = None, time_col: str | None = None,
                  target_col: str | None = None, where: str = "") -> PanelColumns | None:
    """The columns of a long table that has these names; None for other tables. Raises UserError for a given name that
    is not there."""
    given = (id_col, time_col, target_col)
    if any(given):
        fitting = [each for each in KNOWN if all(have or name in names for have, name in zip(given, each))]
        known = (fitting or KNOWN)[0]
        wanted = [have or name for have, name in zip(given, known)]
        for setting, name in zip(("id_col", "time_col", "target_col"), wanted):
            if name not in names:
                raise UserError(f"{where}: no column {shorten(name)} for `{setting}`: name one of "
                                f"{', '.join(map(shorten, list(names)[:8]))}")
        if len(set(wanted)) < 3:
            raise UserError(f"{where}: `id_col`, `time_col` and `target_col` must be three columns, not "
                            f"{', '.join(wanted)}")
        return _once(PanelColumns(*wanted), names, where)
    found = next((PanelColumns(*each) for each in KNOWN if set(each) <= set(names)), None)
    return found and _once(found, names, where)


def _once(columns: PanelColumns, names: Sequence[Hashable], where: str) -> PanelColumns:
    """Raises UserError where two columns have one of the names."""
    for name in columns.names:
        if list(names).count(name) > 1:
            raise UserError(f"{where}: two columns are named {shorten(name)}: rename one")
    return columns


class PanelTable:
    """A long table that is read from its beginning every time. ids keep their type, those of a csv are text."""

    def __init__(self, source: Path | pd.DataFrame, columns: PanelColumns, block: int | None = None):
        self.source, self.columns, self.block = source, columns, block or BLOCK
        self.place = Place("the DataFrame" if isinstance(source, pd.DataFrame) else str(source))
        self.times = TimeColumn(columns.time, self.place)

    @property
    def is_text(self) -> bool:
        return not isinstance(self.source, pd.DataFrame) and kind_of(self.source) != ".parquet"

    def series(self, gathered: bool = False) -> Iterator[Rows]:
        """All series, those of about a block at a time.

        gathered: reads the whole table first, and puts the rows of every series together. Raises Scattered where that
        is needed, and UserError for cells that cannot be used.
        """
        blocks = self._gathered() if gathered else self._parsed()
        seen: set[Hashable] = set()
        held: Rows | None = None  # the last series, which may go on
        for rows in blocks:
            if held is not None:
                rows = _joined(held, rows)
            names = rows.ids.tolist()
            if not rows.ids.is_unique or not seen.isdisjoint(names):
                raise Scattered
            seen.update(names[:-1])
            held = _part(rows, len(names) - 1, len(names))
            if len(names) > 1:
                yield _sorted(_part(rows, 0, len(names) - 1))
        if held is None:
            raise UserError(f"{self.place.name}: no rows: at least one series is needed")
        held.read = 1.0
        yield _sorted(held)

    def _parsed(self) -> Iterator[Rows]:
        first = 0
        for frame, read in self._frames():
            if not len(frame):
                continue
            codes = self._codes(frame.iloc[:, 0], first)
            ticks = self.times.read(frame.iloc[:, 1], first)
            values = numeric_column(self.columns.target, frame.iloc[:, 2],
                                    Place(self.place.name, first)).astype(np.float64, copy=False)
            runs = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]]))
            names = frame.iloc[runs, 0].astype(str) if self.is_text else frame.iloc[runs, 0]
            yield Rows(pd.Index(names, dtype=names.dtype), values, ticks, np.append(runs, len(frame)), read)
            first += len(frame)

    def _codes(self, ids: pd.Series, first: int) -> np.ndarray:
        """Which id each row [R] has; first: number of the first row, from 0."""
        try:
            codes, names = pd.factorize(ids)
        except TypeError:
            raise UserError(f"{self.place.row(first)}: {self.columns.id} is {shorten(str(ids.iloc[0]))}, a list or "
                            "another kind of container: name series by text or numbers") from None
        empty = (codes < 0) | np.asarray(names == "")[codes] if self.is_text else codes < 0
        if empty.any():
            raise UserError(f"{self.place.row(first + int(empty.argmax()))}: {self.columns.id} is missing: fill it "
                            "or drop the row")
        if self.is_text:
            garbled = np.array([REPLACED in str(name) for name in names])[codes]
            if garbled.any():  # two of them might look alike
                row = int(garbled.argmax())
                raise UserError(f"{self.place.row(first + row)}: {self.columns.id} {shorten(str(ids.iloc[row]))} has "
                                "bytes that are not UTF-8: save the file in UTF-8")
        return codes

    def _gathered(self) -> Iterator[Rows]:
        """The rows of each series together, series in the order of their first rows."""
        numbers: dict[Hashable, int] = {}
        ids, codes, ticks, values, total = list[pd.Index](), [], [], [], 0
        for rows in self._parsed():
            total += len(rows.values)
            if total > MOST_GATHERED and not isinstance(self.source, pd.DataFrame):
                raise UserError(f"{self.place.name}: the rows of a series are not together, and more than "
                                f"{MOST_GATHERED} rows are not put together here: sort the table by "
                                f"{self.columns.id} and {self.columns.time}")
            ids.append(rows.ids[[name not in numbers for name in rows.ids]].unique())
            numbers |= {name: number for number, name in enumerate(ids[-1], len(numbers))}
            of_runs = np.fromiter((numbers[name] for name in rows.ids), np.int32, len(rows.ids))
            codes.append(np.repeat(of_runs, lengths_of(rows.starts)))
            ticks.append(rows.ticks)
            values.append(rows.values)
        if not total:
            return
        code, names = np.concatenate(codes), _appended(ids)
        order = np.argsort(code, kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(code))])
        del codes, code
        all_ticks, all_values = np.concatenate(ticks)[order], np.concatenate(values)[order]
        whole = Rows(names, all_values, all_ticks, starts, 1.0)
        first = 0
        while first < len(names):
            end = max(first + 1, int(np.searchsorted(starts, starts[first] + self.block, side="right")) - 1)
            yield _part(whole, first, end)
            first = end

    def _frames(self) -> Iterator[tuple[pd.DataFrame, float]]:
        """Blocks of the three columns, and the share of the table that they end at."""
        names = self.columns.names
        if isinstance(self.source, pd.DataFrame):
            for first in range(0, len(self.source), self.block):
                end = min(first + self.block, len(self.source))
                yield self.source[names].iloc[first:end].reset_index(drop=True), end / len(self.source)
            return
        with _reading(self.source):
            yield from (self._of_parquet if kind_of(self.source) == ".parquet" else self._of_csv)(self.source)

    def _of_parquet(self, path: Path) -> Iterator[tuple[pd.DataFrame, float]]:
        file, done = _parquet(path), 0
        for batch in file.iter_batches(batch_size=self.block, columns=self.columns.names):
            done += len(batch)
            # without what pandas keeps about an index, which may be one of the three columns
            yield batch.to_pandas(ignore_metadata=True)[self.columns.names], done / max(1, file.metadata.num_rows)

    def _of_csv(self, path: Path) -> Iterator[tuple[pd.DataFrame, float]]:
        names, size = self.columns.names, max(1, path.stat().st_size)
        with _opened(path) as (text, raw):
            # all columns: with a choice of them pandas would not see surplus cells, such as those of decimal commas
            blocks = pd.read_csv(text, chunksize=self.block, encoding_errors="replace", skipinitialspace=True,
                                 dtype=dict.fromkeys(names[:2], object), keep_default_na=False,
                                 na_values={names[2]: MISSING}, low_memory=False, index_col=False)
            while (frame := _next(blocks, path)) is not None:
                yield frame[names].reset_index(drop=True), min(raw.tell() / size, 1.0)


def _next(blocks: Iterator[pd.DataFrame], path: Path) -> pd.DataFrame | None:
    """The next block. With surplus cells pandas would shift the columns under wrong names: refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return next(blocks, None)
        except pd.errors.ParserWarning:
            raise UserError(f"{path}: rows have more cells than the header has names: name every column, separate "
                            "cells by commas, and use a decimal point") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """What to read a csv file from, and the file itself, whose position tells how far that is."""
    with open(path, "rb") as raw:
        if kind_of(path) == ".csv.gz":
            with gzip.open(raw) as text:
                yield text, raw  # type: ignore[misc]
        else:
            yield raw, raw


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (UserError, PermissionError, FileNotFoundError, Scattered):
        raise
    except (ValueError, OSError, EOFError, pd.errors.ParserError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as {kind_of(path)[1:]} ({first_line}): is the file "
                        "damaged?") from error


def _parquet(path: Path) -> Any:
    return pyarrow_for(path, "give a csv").parquet.ParquetFile(path)


def _appended(ids: Sequence[pd.Index]) -> pd.Index:
    return ids[0].append(list(ids[1:])).astype(ids[0].dtype) if len(ids) > 1 else ids[0]


def _part(rows: Rows, first: int, end: int) -> Rows:
    """Series from `first` to before `end`."""
    at = slice(rows.starts[first], rows.starts[end])
    return Rows(rows.ids[first:end], rows.values[at], rows.ticks[at], rows.starts[first:end + 1] - rows.starts[first],
                rows.read)


def _joined(held: Rows, rows: Rows) -> Rows:
    """One series, and rows after it, which may begin with more of it."""
    goes_on = int(held.ids[0] == rows.ids[0])
    starts = np.concatenate([[0], rows.starts[goes_on:] + len(held.values)])
    return Rows(_appended([held.ids, rows.ids[goes_on:]]), np.concatenate([held.values, rows.values]),
                np.concatenate([held.ticks, rows.ticks]), starts, rows.read)


def _sorted(rows: Rows) -> Rows:
    """The rows of every series in order of time."""
    gaps = np.diff(rows.ticks)
    gaps[rows.starts[1:-1] - 1] = 0
    if (gaps >= 0).all():
        return rows
    series = np.repeat(np.arange(len(rows.ids)), lengths_of(rows.starts))
    order = np.lexsort((rows.ticks, series))
    return Rows(rows.ids, rows.values[order], rows.ticks[order], rows.starts, rows.read,
                len(np.unique(series[1:][gaps < 0])))
