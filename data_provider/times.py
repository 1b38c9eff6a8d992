"""Timestamps of a series: parsed, checked, continued at the series' own frequency; nothing is filled in or sorted."""
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.tseries.frequencies import to_offset

from data_provider.reading import Series
from utils.errors import UserError, shorten

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
    rows = len(series.values)
    if series.dates is None:
        return _counted(0, 1, rows, steps)
    if isinstance(series.dates.dtype, pd.PeriodDtype):
        return _periods(pd.PeriodIndex(series.dates), steps, where)
    if pd.api.types.is_datetime64_any_dtype(series.dates):
        times = _complete(pd.DatetimeIndex(series.dates), series.dates, where)
    else:
        counted = _whole_numbers(series.dates, steps, where)
        if counted is not None:
            return counted
        times = _parsed(series.dates, where)
    frequency = frequency_of(times)
    if frequency is None:
        raise UserError(f"{where}: {_first_irregularity(times)}; {_regular_part(times)}")
    try:
        future = pd.date_range(times[-1], periods=steps + 1, freq=frequency)[1:]
    except (OverflowError, ValueError):
        raise UserError(f"{where}: {steps} steps ({frequency}) after {times[-1]} exceed the range of timestamps: lower "
                        "`horizon`") from None
    return Calendar(times, future, frequency)


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


def _counted(first: int, step: int, rows: int, steps: int) -> Calendar:
    end = first + rows * step
    return Calendar(pd.RangeIndex(first, end, step), pd.RangeIndex(end, end + steps * step, step), f"steps of {step}")


def _periods(times: pd.PeriodIndex, steps: int, where: str) -> Calendar:
    """Continues periods, which know their own length."""
    _complete(times, pd.Series(times), where)
    gaps = times.asi8[1:] - times.asi8[:-1]
    odd = (gaps != 1).nonzero()[0]
    if len(odd):
        raise UserError(f"{where}: {_pair(times, int(odd[0]) + 1)}, which is not the next period of {times.freqstr}; "
                        "nothing is filled in, dropped or sorted here")
    return Calendar(times, pd.period_range(times[-1] + 1, periods=steps, freq=times.freq), times.freqstr)


def _complete(times, cells: pd.Series, where: str):
    """`times`, refused where a cell could not be read as one."""
    unreadable = times.isna().nonzero()[0]
    if len(unreadable):
        row = int(unreadable[0])
        raise UserError(f"{where}, data row {row + 1}: {shorten(cells.iloc[row])} is not a time "
                        f"({len(unreadable)} such cells): write all of them like 2020-12-31 23:00:00")
    return times


def _whole_numbers(dates: pd.Series, steps: int, where: str) -> Calendar | None:
    """Continues a time column of integers (0, 1, 2 or epoch seconds); None for others (20200131 is a date)."""
    if not dates.str.fullmatch(r"-?\d{1,18}").all() or dates.str.fullmatch(r"\d{8}").all():
        return None
    numbers = dates.astype("int64").to_numpy()
    gaps = numbers[1:] - numbers[:-1]
    odd = (gaps != gaps[0]).nonzero()[0] if len(gaps) else gaps
    if not len(gaps) or gaps[0] < 1 or len(odd):
        row = int(odd[0]) + 1 if len(odd) else 1
        raise UserError(f"{where}: {_pair(dates.to_numpy(), row)}, which is not the previous step; the numbers in "
                        "the time column must increase in equal steps")
    return _counted(int(numbers[0]), int(gaps[0]), len(numbers), steps)


def _parsed(dates: pd.Series, where: str) -> pd.DatetimeIndex:
    """Parses text as times, day first if only that makes the times regular; in UTC where the offsets from it differ."""
    if re.match(r"\d{1,2}:\d", str(dates.iloc[0])):
        raise UserError(f"{where}, data row 1: {shorten(dates.iloc[0])} has no date: write date and time of day")
    readings = []
    for how in READINGS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                readings.append(pd.DatetimeIndex(pd.to_datetime(dates, errors="coerce", **how)))
        except (ValueError, TypeError):  # pandas refuses several offsets from UTC, as a change of clocks makes them
            instants = pd.DatetimeIndex(pd.to_datetime(dates, errors="coerce", utc=True, format="ISO8601"))
            return _complete(instants, dates, where)
    regular = [times for times in readings if frequency_of(times) is not None]
    if any((times != regular[0]).any() for times in regular):
        raise UserError(f"{where}: {shorten(dates.iloc[0])} may be day first or month first: write dates like "
                        "2020-12-31")
    times = regular[0] if regular else min(readings, key=lambda times: times.isna().sum())
    return _complete(times, dates, where)


def _pair(times, row: int) -> str:
    return f"data row {row + 1} ({times[row]}) comes after row {row} ({times[row - 1]})"


def _first_irregularity(times: pd.DatetimeIndex) -> str:
    gaps = times[1:] - times[:-1]
    for wrong, words in ((gaps == pd.Timedelta(0), "and repeats its time"), (gaps < pd.Timedelta(0), "but is earlier")):
        if wrong.any():
            return f"{_pair(times, int(wrong.argmax()) + 1)} {words} ({int(wrong.sum())} such rows)"
    if len(times) < 3:
        return f"{len(times)} rows have no frequency: at least 3 are needed"
    row = _longest(lambda length: times[:length], len(times))
    return f"{_pair(times, row)}, which is not one step of {frequency_of(times[:row]) or 'any frequency'}"


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
