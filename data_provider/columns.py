"""The columns of a frame or of a csv file -> a Series: every one is a time, a variable, or left out with a note."""
from __future__ import annotations

import datetime
import re
import sys
import warnings
from decimal import Decimal
from fractions import Fraction
from numbers import Real

import numpy as np
import pandas as pd
from pandas.api.types import (
    is_bool_dtype,
    is_complex_dtype,
    is_datetime64_any_dtype,
    is_float_dtype,
    is_integer_dtype,
    is_numeric_dtype,
    is_object_dtype,
    is_string_dtype,
)

from data_provider.calendar_columns import (
    counts_rows,
    is_unnamed,
    may_count,
    part_of,
    refined,
    repeats,
    runs_like_a_clock,
    times_of,
    writes_days,
)
from data_provider.series import Place, Series, listed, refuse_gaps
from data_provider.times import parsed
from utils.errors import UserError, shorten

DATE_NAMES = ("date", "time", "timestamp", "ds", "datetime")
LONG = ["unique_id", "ds", "y"]
LARGEST = int(sys.float_info.max)
TIMES = (str, datetime.date, datetime.time, np.datetime64, pd.Period)  # datetime.datetime is a date


def of_columns(frame: pd.DataFrame, place: Place, notes: list[str]) -> Series:
    """Long (unique_id, ds, y) or wide (one numeric column per variable; times in a column). Column names are strings.

    Raises UserError for unusable content. notes: what is known already of the columns.
    """
    if frame.empty:
        raise UserError(f"{place.name}: no rows, or no columns: at least one window of data is needed")
    if not frame.columns.is_unique:
        raise UserError(f"{place.name}: two columns are named {shorten(frame.columns[frame.columns.duplicated()][0])}: "
                        "rename one")
    if "unique_id" in frame.columns:
        return _of_long(frame, place, notes)
    empty = [name for name in frame.columns if is_unnamed(name) and frame[name].isna().all()]
    frame = frame.drop(columns=empty)
    counters = [name for name in frame.columns if may_count(name) and counts_rows(name, frame[name])]
    times = _time_columns(frame.drop(columns=counters), place)
    dates, used, parts = _times_and_parts(frame, place, times, counters)
    others = [name for name in frame.columns if name not in {*times, *used}]
    if not others:
        raise UserError(f"{place.name}: unknown column layout: a date column and no numeric column; "
                        "expected 'date' followed by one numeric column per variable")
    left = {*counters, *parts}
    names = [name for name in others if name not in left] or others  # a lone column is what is to be forecast
    if empty:
        notes = notes + [f"left out as empty: {listed(empty)}"]
    for some, what in ((counters, "counters of rows"), (parts, "parts of the calendar")):
        if some and names is not others:
            notes = notes + [f"left out as {what}: {listed(some)} (rename a column to forecast it)"]
    surprising = [name for name in times if is_integer_dtype(frame[name]) and name.lower() not in DATE_NAMES]
    if len(times) > 1 or used or surprising:
        notes = notes + [f"the times are those of {listed([*times, *used])}"]
    values = _numbers(frame[names], place)
    refuse_gaps(place, values, names)
    return Series(values, names, dates, notes)


def _times_and_parts(frame: pd.DataFrame, place: Place, times: list[str],
                     counters: list[str]) -> tuple[pd.Series | None, list[str], list[str]]:
    """Times or None, the parts of the calendar that went into them, and those that only repeat them."""
    dates = _joined(frame[times]) if times else None
    parts = [name for name in frame.columns if part_of(name) is not None and name not in {*times, *counters}]
    if not parts:
        return dates, [], []
    used: list[str] = []
    known = _readable(dates, place)
    if dates is None:
        together = times_of(frame[parts])
        dates, used = together or (None, [])
    elif isinstance(known, pd.DatetimeIndex) and (finer := refined(known, frame[parts])):
        dates, used = pd.Series(finer[0]), finer[1]
    known = _readable(dates, place)
    rest = [name for name in parts if name not in used]
    return dates, used, [name for name in rest if (repeats(name, frame[name], known) if known is not None
                                                   else runs_like_a_clock(name, frame[name]))]


def _readable(dates: pd.Series | None, place: Place) -> pd.DatetimeIndex | pd.PeriodIndex | None:
    """Dates as times; None where they are none, or cannot be read: whoever continues them will say so."""
    try:
        times = None if dates is None else parsed(dates, place.name)
    except UserError:
        return None
    return times if isinstance(times, (pd.DatetimeIndex, pd.PeriodIndex)) else None


def _time_columns(frame: pd.DataFrame, place: Place) -> list[str]:
    """The column of times, or two: of dates, and of times of day."""
    kinds = dict(zip(frame.columns, frame.dtypes))
    found = [name for i, (name, kind) in enumerate(kinds.items()) if holds_times(kind) or (
        looks_like_dates(frame[name]) if i == 0 and name.lower() not in DATE_NAMES else
        name.lower() in DATE_NAMES and (i == 0 or not _has_fractions(frame[name])))]
    found = found or [name for name, kind in kinds.items() if (is_integer_dtype(kind) and writes_days(frame[name]))
                      or (not is_numeric_dtype(kind) and looks_like_dates(frame[name]))]
    of_day = [name for name in found if _is_time_of_day(frame[name])]
    if len(found) == 2 and len(of_day) == 1:
        return [name for name in found if name not in of_day] + of_day
    if len(found) > 1:
        raise UserError(f"{place.name}: {shorten(found[0])} and {shorten(found[1])} are both time columns: keep one")
    return found


def holds_times(kind) -> bool:
    """Whether cells of this dtype are time stamps or periods already: made text, they would lose zone or length."""
    return is_datetime64_any_dtype(kind) or isinstance(kind, pd.PeriodDtype)


def _has_fractions(column: pd.Series) -> bool:
    """Whether a column that is called a time can only be a variable."""
    return is_float_dtype(column.dtype) and bool((column.dropna() % 1 != 0).any())


def looks_like_dates(column: pd.Series) -> bool:
    """Whether nearly all of the first cells can be read as times; numbers only if they are written like 20200131."""
    if holds_times(column.dtype):
        return True
    head = _without_categories(column).dropna().head(50)
    if is_numeric_dtype(head.dtype) or not len(head) or not head.map(lambda cell: isinstance(cell, TIMES)).all():
        return False
    text = head.astype(str)
    if pd.to_numeric(text, errors="coerce").notna().any() and not text.str.fullmatch(r"\d{8}").all():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bool(pd.to_datetime(text, errors="coerce", utc=True).notna().mean() > 0.9)


def _is_time_of_day(column: pd.Series) -> bool:
    head = column.dropna().head(50)
    return not is_numeric_dtype(head.dtype) and len(head) > 0 and bool(
        head.map(lambda cell: re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?(\.\d+)?", str(cell)) is not None).all())


def _without_categories(column: pd.Series) -> pd.Series:
    categorical = isinstance(column.dtype, pd.CategoricalDtype)
    return column.astype(column.cat.categories.dtype) if categorical else column


def _joined(frame: pd.DataFrame) -> pd.Series:
    """The cells of a column of times; of two, dates and times of day, as text."""
    dates = dates_of(frame.iloc[:, 0])
    if frame.shape[1] == 1:
        return dates
    days = dates.dt.strftime("%Y-%m-%d") if holds_times(dates.dtype) else dates
    both = days + " " + frame.iloc[:, 1].astype(str)
    return both.where(frame.notna().all(axis=1), None)


def dates_of(column: pd.Series) -> pd.Series:
    """Time stamps and periods as they are, numbers and text as text; missing cells stay missing."""
    column = _without_categories(column)
    if holds_times(column.dtype):
        return column
    kind = pd.api.types.infer_dtype(column, skipna=True)
    try:
        if kind == "period":
            return pd.Series(pd.PeriodIndex(column))
        if kind in ("datetime", "datetime64", "date"):
            return pd.Series(pd.to_datetime(column))
    except (ValueError, TypeError):  # several zones: read as text, which names the row that differs
        pass
    if is_float_dtype(column.dtype) and not _has_fractions(column):
        column = column.astype("Int64")
    return column.astype(object).where(column.notna(), None).map(str, na_action="ignore")


def _numbers(frame: pd.DataFrame, place: Place) -> np.ndarray:
    """[T, C] float64, its rows contiguous: sums over it, and with them a scale, depend on that to the last bit."""
    if all(isinstance(kind, np.dtype) and kind.kind in "iuf" for kind in frame.dtypes):
        return np.ascontiguousarray(frame.to_numpy(np.float64))
    return np.stack([numeric_column(name, frame[name], place) for name in frame.columns], axis=1)


def numeric_column(name: str, column: pd.Series, place: Place) -> np.ndarray:
    """[T] float64, NaN where a cell is missing."""
    kind = column.dtype
    if is_bool_dtype(kind) or (is_numeric_dtype(kind) and not is_complex_dtype(kind)):  # True and False are 1 and 0
        return column.to_numpy(np.float64, na_value=np.nan)
    if not (is_object_dtype(kind) or is_string_dtype(kind)) or isinstance(kind, pd.CategoricalDtype):
        raise UserError(f"{place.name}, column {shorten(name)}: {kind} is not a type of numbers: convert it, or "
                        "drop the column")
    numbers = pd.to_numeric(column.where(column.map(_may_be_a_number), "?"), errors="coerce")
    numbers = numbers.to_numpy(np.float64, na_value=np.nan)
    wrong = np.flatnonzero(np.isnan(numbers) & column.notna().to_numpy())
    if len(wrong):
        raise UserError(f"{place.row(wrong[0])}, column {shorten(name)}: {shorten(column.iloc[wrong[0]])} is not a "
                        f"number ({len(wrong)} such cells in this column): correct the cell or drop the column"
                        + ("; several series below each other need the columns unique_id, ds and y"
                           if len(wrong) == len(column) else ""))
    return numbers


def _may_be_a_number(cell: object) -> bool:
    """Excludes what pandas would take for one: bytes, durations (as nanoseconds), numbers with an imaginary part."""
    kinds = (str, Real, np.bool_, Decimal, type(None), type(pd.NA))
    if isinstance(cell, (int, Fraction)) and not -LARGEST <= cell <= LARGEST:  # pandas fails on it
        return False
    return isinstance(cell, kinds) and not isinstance(cell, np.timedelta64)  # which numpy calls a whole number


def _of_long(frame: pd.DataFrame, place: Place, notes: list[str]) -> Series:
    """Series in the order of their first rows, times in the order of theirs."""
    absent = [name for name in LONG if name not in frame.columns]
    if absent:
        raise UserError(f"{place.name}: 'unique_id', but no {' and no '.join(map(repr, absent))}: the long format has "
                        "the columns unique_id, ds and y, the wide format no unique_id")
    extra = [name for name in frame.columns if name not in LONG]
    if extra:
        notes = notes + [f"left out: {listed(extra)} (of a long table only unique_id, ds and y are used)"]
    nameless = frame[["unique_id", "ds"]].isna().any(axis=1).to_numpy()
    if nameless.any():
        raise UserError(f"{place.row(int(nameless.argmax()))}: unique_id or ds is missing: fill it or drop the row")
    y = numeric_column("y", frame["y"], place)
    refuse_gaps(place, y[:, None], ["y"])
    dates = dates_of(frame["ds"])
    of_series, ids = pd.factorize(_without_categories(frame["unique_id"]).astype(str))
    of_time, times = pd.factorize(dates)
    names = [str(name) for name in ids]
    twice = pd.DataFrame({"series": of_series, "time": of_time}).duplicated().to_numpy()
    if twice.any():
        row = int(twice.argmax())
        raise UserError(f"{place.row(row)}: {shorten(names[of_series[row]])} has two values at {dates.iloc[row]}: "
                        "keep one")
    rows = np.bincount(of_series)
    if rows.min() < len(times):
        short = int((rows < len(times)).argmax())
        raise UserError(f"{place.name}: {shorten(names[short])} has {rows[short]} of {len(times)} times: all series "
                        "must cover the same times; forecast series with other times in a separate call, or each by "
                        "itself (`kind` UnivariateDatasetBenchmark)")
    values = np.empty((len(times), len(names)))
    values[of_time, of_series] = y
    first = np.unique(of_time, return_index=True)[1]
    return Series(values, names, pd.Series(times), notes, first)
