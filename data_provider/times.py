"""Timestamps of a series: parsed, checked, continued at the series' own frequency; nothing is filled in or sorted."""
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from data_provider.series import Series
from utils.errors import UserError, shorten

MONTH = r"(?:1[7-9]|2[01])\d\d(?:0[1-9]|1[0-2])"  # 202001
NO_TIMES_SEASON = 24  # steps: hourly values are the most common of those without times
READ_FOR_SEASON = 1000  # rows: a few more than a day of minutes
# longest step, in days -> steps per season; a step below a day has a season of a day
SEASONS = ((1.5, 7), (8.0, 52), (32.0, 12), (93.0, 4))
Times: TypeAlias = pd.DatetimeIndex | pd.PeriodIndex | np.ndarray
Number = Callable[[int], int]
# ways to parse a column of text, in order of preference
READINGS: tuple[dict[str, Any], ...] = ({}, {"dayfirst": True}, {"format": "ISO8601"})


@dataclass
class Calendar:
    """history [T] and future [H]: times, or whole numbers where the series has none; frequency as pandas writes it."""

    history: pd.Index
    future: pd.Index
    frequency: str


def continued(series: Series, steps: int, where: str) -> Calendar:
    """The times of `series` and of the `steps` after its last row.

    Without dates rows are numbered from 0. Raises UserError that names the row where a cell is not a time, or where
    times repeat, run backwards or break the frequency.
    """
    if series.dates is None:
        return _counted(0, 1, len(series.values), steps)
    number = series.row_number
    times = parsed(series.dates, where, number)
    if isinstance(times, np.ndarray):
        return _numbered(times, steps, where, number)
    if isinstance(times, pd.PeriodIndex):
        return _periods(times, steps, where, number)
    frequency = frequency_of(times)
    if frequency is None:
        raise UserError(f"{where}: {_first_irregularity(times, number)}; {_regular_part(times)}")
    try:
        future = pd.date_range(times[-1], periods=steps + 1, freq=frequency, unit=times.unit)[1:]
    except (OverflowError, ValueError):
        raise UserError(f"{where}: {steps} steps ({frequency}) after {times[-1]} exceed the range of timestamps: lower "
                        "`horizon`") from None
    return Calendar(times, future, frequency)


def parsed(dates: pd.Series, where: str, number: Number = lambda step: step + 1) -> Times:
    """Cells as times: stamps, periods, or whole numbers [T]. number: step from 0 -> number of its row, for errors."""
    if isinstance(dates.dtype, pd.PeriodDtype):
        return _complete(pd.PeriodIndex(dates), dates, where, number)
    if pd.api.types.is_datetime64_any_dtype(dates):
        return _complete(pd.DatetimeIndex(dates), dates, where, number)
    _complete(dates, dates, where, number)
    if dates.str.fullmatch(MONTH).all() and len(dates) > 12:  # fewer may count: 200001 to 200012
        return pd.DatetimeIndex(pd.to_datetime(dates, format="%Y%m"))
    # 20200131 is a date; other whole numbers count steps, or seconds
    if dates.str.fullmatch(r"-?\d{1,18}").all() and not dates.str.fullmatch(r"\d{8}").all():
        return dates.astype("int64").to_numpy()
    return _read(dates, where, number)


def frequency_of(times: pd.DatetimeIndex) -> str | None:
    """The frequency that yields exactly these times; None for irregular ones, and for fewer than 3."""
    if len(times) < 3 or not (times.is_unique and times.is_monotonic_increasing):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas 3 announces that pandas 4 will return an offset
        frequency = pd.infer_freq(times)
    if frequency is None:
        return None
    frequency = to_offset(frequency).freqstr
    again = pd.date_range(times[0], periods=len(times), freq=frequency)
    return frequency if (again == times).all() else None  # pandas guesses wrong for business hours, for example


def season_of(dates: pd.Series | None, where: str) -> int:
    """Steps per season: a day, or of daily values a week, of longer steps a year. By the usual step between the times;
    24 where there are none that can be read."""
    if dates is None:
        return NO_TIMES_SEASON
    try:
        times = parsed(dates.iloc[:READ_FOR_SEASON], where)
    except UserError:
        return NO_TIMES_SEASON
    if isinstance(times, np.ndarray) or len(times) < 3:
        return NO_TIMES_SEASON
    stamps = times.to_timestamp() if isinstance(times, pd.PeriodIndex) else times
    step = float(np.median((stamps[1:] - stamps[:-1]) / pd.Timedelta(days=1)))
    return NO_TIMES_SEASON if step <= 0 else season_of_step(step)


def season_of_step(days: float) -> int:
    """Steps per season, of a step of so many days."""
    return max(1, round(1 / days)) if days <= 0.5 else next((season for most, season in SEASONS if days <= most), 1)


def _counted(first: int, step: int, rows: int, steps: int) -> Calendar:
    end = first + rows * step
    return Calendar(pd.RangeIndex(first, end, step), pd.RangeIndex(end, end + steps * step, step), f"steps of {step}")


def _periods(times: pd.PeriodIndex, steps: int, where: str, number: Number) -> Calendar:
    """Continues periods, which know their own length."""
    odd = (times.asi8[1:] - times.asi8[:-1] != 1).nonzero()[0]
    if len(odd):
        raise UserError(f"{where}: {_pair(times, int(odd[0]) + 1, number)}, which is not the next period of "
                        f"{times.freqstr}; nothing is filled in, dropped or sorted here")
    return Calendar(times, pd.period_range(times[-1] + 1, periods=steps, freq=times.freq), times.freqstr)


def _complete(times, cells: pd.Series, where: str, number: Number):
    """`times`, refused where a cell could not be read as one."""
    unreadable = np.flatnonzero(times.isna())
    if len(unreadable):
        row = int(unreadable[0])
        raise UserError(f"{where}, data row {number(row)}: {shorten(cells.iloc[row])} is not a time "
                        f"({len(unreadable)} such cells): write all of them like 2020-12-31 23:00:00")
    return times


def _numbered(numbers: np.ndarray, steps: int, where: str, number: Number) -> Calendar:
    """Continues a time column of integers: 0, 1, 2, years, or epoch seconds."""
    gaps = numbers[1:] - numbers[:-1]
    odd = (gaps != gaps[0]).nonzero()[0] if len(gaps) else gaps
    if not len(gaps) or gaps[0] < 1 or len(odd):
        row = int(odd[0]) + 1 if len(odd) else 1
        raise UserError(f"{where}: {_pair(numbers, row, number)}, which is not the previous step; the numbers in "
                        "the time column must increase in equal steps")
    return _counted(int(numbers[0]), int(gaps[0]), len(numbers), steps)


def _read(dates: pd.Series, where: str, number: Number) -> pd.DatetimeIndex:
    """Reads text as times, day first if only that makes the times regular; in UTC where the offsets from it differ."""
    if re.match(r"\d{1,2}:\d", str(dates.iloc[0])):
        raise UserError(f"{where}, data row {number(0)}: {shorten(dates.iloc[0])} has no date: write date and time of "
                        "day")
    readings = []
    year_first = re.match(r"\d{4}", str(dates.iloc[0])) is not None
    for how in READINGS:
        if year_first and "dayfirst" in how:  # pandas would read 2020-01-02 as the first of February
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                readings.append(pd.DatetimeIndex(pd.to_datetime(dates, errors="coerce", **how)))
        except (ValueError, TypeError):  # pandas refuses several offsets from UTC, as a change of clocks makes them
            return _instants(dates, where, number)
    regular = [times for times in readings if frequency_of(times) is not None]
    if any((times != regular[0]).any() for times in regular):
        raise UserError(f"{where}: {shorten(dates.iloc[0])} may be day first or month first: write dates like "
                        "2020-12-31")
    times = regular[0] if regular else min(readings, key=lambda times: times.isna().sum())
    return _complete(times, dates, where, number)


def _instants(dates: pd.Series, where: str, number: Number) -> pd.DatetimeIndex:
    """Reads text whose offset from UTC changes. A cell without one would be taken for UTC: refused."""
    instants = _complete(pd.DatetimeIndex(pd.to_datetime(dates, errors="coerce", utc=True, format="ISO8601")), dates,
                         where, number)
    local = ~dates.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$").to_numpy(bool)
    if local.any():
        row = int(local.argmax())
        raise UserError(f"{where}, data row {number(row)}: {shorten(dates.iloc[row])} has no offset from UTC, but "
                        "other rows have one: write all of them alike")
    return instants


def _pair(times, row: int, number: Number) -> str:
    return f"data row {number(row)} ({times[row]}) comes after row {number(row - 1)} ({times[row - 1]})"


def _first_irregularity(times: pd.DatetimeIndex, number: Number) -> str:
    gaps = times[1:] - times[:-1]
    for wrong, words in ((gaps == pd.Timedelta(0), "and repeats its time"), (gaps < pd.Timedelta(0), "but is earlier")):
        if wrong.any():
            return f"{_pair(times, int(wrong.argmax()) + 1, number)} {words} ({int(wrong.sum())} such rows)"
    if len(times) < 3:
        return f"{len(times)} rows have no frequency: at least 3 are needed"
    row = _longest(lambda length: times[:length], len(times))
    return f"{_pair(times, row, number)}, which is not one step of {frequency_of(times[:row]) or 'any frequency'}"


def _regular_part(times: pd.DatetimeIndex) -> str:
    length = _longest(lambda length: times[-length:], len(times))
    tail = f" (the last {length} are: cut the file to them, or resample it)" if length > 3 else ""
    return f"the rows must be equally spaced{tail}; nothing is filled in, dropped or sorted here"


def _longest(part, rows: int) -> int:
    """Largest number of rows, at least 2, for which `part` is regular; it is then regular for fewer, too."""
    low, high = 2, rows
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if frequency_of(part(middle)) is not None else (low, middle)
    return low
