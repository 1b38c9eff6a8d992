"""Columns that are no variables: counters of rows, and parts of the calendar (year, month, day, hour, ...).

A name alone decides nothing: a column is one of them only if its values are what such a column holds. Columns come as
names and a DataFrame; times as a DatetimeIndex or PeriodIndex.
"""
from __future__ import annotations

import re

import numpy as np
import pandas as pd

# names in lower case, without punctuation
COUNTERS = frozenset(("", "no", "nr", "id", "index", "idx", "row", "rowid", "rowno", "rownumber", "recordid", "instant",
                      "level0", "t", "step", "timestep", "timeidx", "timeindex"))
# names of columns -> the part, as pandas calls it
PARTS = {name: part for part, names in {
    "year": "year yr", "quarter": "quarter", "month": "month mnth mo", "week": "week weekofyear",
    "day": "day dy dayofmonth", "day_of_year": "dayofyear doy", "day_of_week": "weekday dayofweek dow",
    "hour": "hour hr hourofday", "minute": "minute", "second": "second"}.items() for name in names.split()}
# part -> lowest and highest value; both conventions where there are two, as in hours from 0 to 23 or from 1 to 24
RANGES = {"year": (1700, 2200), "quarter": (1, 4), "month": (1, 12), "week": (1, 53), "day": (1, 31),
          "day_of_year": (1, 366), "day_of_week": (0, 7), "hour": (0, 24), "minute": (0, 59), "second": (0, 59)}
# part -> smallest value after which it starts again: that of the shortest month, of the last business day
LAST = {"quarter": 4, "month": 12, "week": 52, "day": 28, "day_of_year": 365, "day_of_week": 4, "hour": 23,
        "minute": 59, "second": 59}
CYCLES = {"hour": 24, "day_of_week": 7}  # counted from another hour or weekday by some
FINER = ("hour", "minute", "second")
SECONDS = {"hour": 3600, "minute": 60, "second": 1}


def plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def is_unnamed(name: str) -> bool:
    """Whether pandas invented the name, for a header cell that is empty."""
    return re.fullmatch(r"Unnamed: [\d.]+", name) is not None


def part_of(name: str) -> str | None:
    """The part of the calendar that a column of this name would hold."""
    return PARTS.get(plain(name))


def may_count(name: str) -> bool:
    """Whether a column of this name may only count the rows."""
    return is_unnamed(name) or plain(name) in COUNTERS


def counts_rows(name: str, column: pd.Series) -> bool:
    """Whether a column is an index: 0, 1, 2, ... or 1, 2, ...; without a name, whole numbers that all differ."""
    if is_unnamed(name):
        return whole(column) is not None and column.is_unique
    return may_count(name) and _in_ones(whole(column))


def _in_ones(numbers: np.ndarray | None) -> bool:
    """Whether numbers go up or down by 1 in every row."""
    if numbers is None or len(numbers) < 3:
        return False
    steps = np.diff(numbers)
    return bool(abs(steps[0]) == 1 and (steps == steps[0]).all())


def whole(column: pd.Series) -> np.ndarray | None:
    """The numbers of a column that holds nothing but whole numbers, int64; None for others."""
    if not pd.api.types.is_any_real_numeric_dtype(column) or column.isna().any():
        return None
    numbers = column.to_numpy(np.float64)
    return numbers.astype(np.int64) if ((np.abs(numbers) < 2**53) & (numbers == np.floor(numbers))).all() else None


def writes_days(column: pd.Series) -> bool:
    """Whether numbers are days in order, written like 20200131: others of that size are soon no day of a month."""
    first = column.iloc[0]
    if pd.isna(first) or not 17000101 <= first <= 22001231:  # whichever number is first, for speed
        return False
    numbers = whole(column)
    if numbers is None or (np.diff(numbers) < 0).any():
        return False
    days = pd.to_datetime(pd.Series(numbers).astype(str), format="%Y%m%d", errors="coerce")
    return bool(days.notna().all() and days.nunique() > 2)


def _parts(frame: pd.DataFrame) -> dict[str, tuple[str, np.ndarray]]:
    """part -> name and numbers of the first column that holds it, within its range."""
    found: dict[str, tuple[str, np.ndarray]] = {}
    for name in frame.columns:
        part, numbers = part_of(name), whole(frame[name])
        if part is not None and part not in found and numbers is not None:
            low, high = RANGES[part]
            if low <= numbers.min() and numbers.max() <= high:
                found[part] = (name, numbers)
    return found


def times_of(frame: pd.DataFrame) -> tuple[pd.Series, list[str]] | None:
    """Times that the columns of a frame make together, and the names of those columns; None if they make none.

    year, month, day, hour, ... or year and quarter; years alone if they increase by equal steps.
    """
    found = _parts(frame)
    if "year" not in found:
        return None
    years, used = found["year"][1], ["year"]
    if "month" in found:
        used += ["month", *(["day"] if "day" in found else [])]
        months = found["month"][1]
    elif "quarter" in found:
        used += ["quarter"]
        months = 3 * found["quarter"][1] - 2
    else:
        steps = np.diff(years)
        regular = len(steps) and steps[0] > 0 and (steps == steps[0]).all()
        return (pd.Series(years).astype(str), [found["year"][0]]) if regular else None
    days = found["day"][1] if "day" in used else np.ones_like(months)
    dates = pd.to_datetime(pd.DataFrame({"year": years, "month": months, "day": days}), errors="coerce")
    finer = _finer(found) if "day" in used else []
    return dates + _offset(found, finer), [found[part][0] for part in used + finer]


def refined(times: pd.DatetimeIndex, frame: pd.DataFrame) -> tuple[pd.DatetimeIndex, list[str]] | None:
    """Dates that repeat, made times of their own by columns hour, minute, second; None where they are not."""
    found = _parts(frame)
    finer = _finer(found)
    if not finer or not times.has_duplicates or times.hasnans or (times != times.normalize()).any() or times.tz:
        return None
    together = times + pd.TimedeltaIndex(_offset(found, finer))
    return None if together.has_duplicates else (together, [found[part][0] for part in finer])


def _finer(found: dict) -> list[str]:
    """hour, minute, second, as far as they are there."""
    return [part for i, part in enumerate(FINER) if all(coarser in found for coarser in FINER[:i + 1])]


def _offset(found: dict, finer: list[str]) -> pd.Series:
    seconds = sum((found[part][1] * SECONDS[part] for part in finer), np.int64(0))
    return pd.to_timedelta(pd.Series(seconds), unit="s") if finer else pd.Timedelta(0)


def repeats(name: str, column: pd.Series, times: pd.DatetimeIndex | pd.PeriodIndex) -> bool:
    """Whether a column is that part of the times which its name says."""
    part, numbers = part_of(name), whole(column)
    if part is None or numbers is None or times.hasnans:
        return False
    if isinstance(times, pd.PeriodIndex):
        times = times.to_timestamp()
    true = times.isocalendar()["week"] if part == "week" else getattr(times, part)
    gaps = numbers - np.asarray(true, dtype=np.int64)
    cycle = CYCLES.get(part)
    return bool((gaps % cycle == gaps[0] % cycle).all() if cycle else (gaps == 0).all())


def runs_like_a_clock(name: str, column: pd.Series) -> bool:
    """Whether whole numbers go on as that part of the calendar does: upwards, and from its end back to its start."""
    part, numbers = part_of(name), whole(column)
    if part is None or numbers is None or len(numbers) < 3:
        return False
    low, high = RANGES[part]
    steps = np.diff(numbers)
    most, back = steps.max(), np.flatnonzero(steps < 0)
    if _in_ones(numbers):
        return True
    if numbers.min() < low or numbers.max() > high or not 0 < most <= (high - low + 1) / 3:
        return False
    if part == "year":
        return not len(back)
    return bool((numbers[back] + most > LAST[part]).all() and (numbers[back + 1] <= most).all())
