"""The time column of a long table, block by block, as whole numbers, and what these mean (`Clock`)."""
from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype

from data_provider.columns import dates_of
from data_provider.series import Place
from utils.errors import UserError, shorten

TEXT_UNIT = "us"  # of time stamps that come as text
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
WHOLE = re.compile(r"-?\d{1,18}")
ISO = re.compile(r"\d{4}(?P<mark>[-/.])\d\d(?P=mark)\d\d"
                 r"(?:(?P<between>[T ])\d\d:\d\d(?P<seconds>:\d\d(?P<part>\.\d+)?)?)?(?P<zone>Z|[+-]\d\d:?\d\d)?")
Number = Callable[[int], int]  # place of a cell among those that are read -> number of its row, from 0
FULL = "%Y-%m-%d %H:%M:%S"
OF_NUMBERS = {8: "%Y%m%d", 6: "%Y%m"}  # digits of whole numbers that may be dates -> how they are written
YEARS = (1700, 2200)
ENOUGH_MONTHS = 12  # distinct ones: so many or fewer may count from 200001 to 200012


@dataclass(frozen=True)
class Clock:
    """What the whole numbers of a time column mean.

    unit: of time stamps, as numpy names it; None for numbers that just count, and for the ordinals of periods. zone: of
    stamps with one, whose numbers are of UTC. period: the frequency of periods.
    """

    unit: str | None = None
    zone: tzinfo | None = None
    period: Any = None

    @property
    def day(self) -> int:
        """Ticks a day; 0 where there are no days."""
        return 86400 * PER_SECOND[self.unit] if self.unit else 0

    def wall(self, ticks: np.ndarray) -> np.ndarray:
        """What the clocks of the zone show."""
        return ticks if self.zone is None else self.index(ticks).tz_localize(None).asi8

    def instants(self, wall: np.ndarray) -> np.ndarray:
        """The reverse, of any shape. A time that the zone has twice is the first; one that it skips comes after the
        gap."""
        if self.zone is None:
            return wall
        local = pd.DatetimeIndex(wall.ravel().view(f"M8[{self.unit}]"))
        return local.tz_localize(self.zone, ambiguous=np.ones(wall.size, dtype=bool),
                                 nonexistent="shift_forward").asi8.reshape(wall.shape)

    def index(self, ticks: np.ndarray) -> pd.Index:
        """Times, periods or numbers [T] as pandas has them."""
        ticks = np.ascontiguousarray(ticks)
        if self.period is not None:
            return pd.PeriodIndex.from_ordinals(ticks, freq=self.period)
        if self.unit is None:
            return pd.Index(ticks)
        stamps = pd.DatetimeIndex(ticks.view(f"M8[{self.unit}]"))
        return stamps if self.zone is None else stamps.tz_localize("UTC").tz_convert(self.zone)


class TimeColumn:
    """Reads blocks of one column on one clock, which the first block decides, and writes times in the same way."""

    def __init__(self, name: str, place: Place):
        self.name, self.place = name, place
        self.clock: Clock | None = None
        self.pattern: str | None = None  # how text was written, and whole numbers that are dates
        self.as_numbers, self.options = False, dict[str, Any]()

    def read(self, cells: pd.Series, first: int = 0) -> np.ndarray:
        """Ticks [T]; first: number of the first row, from 0. Raises UserError that names a cell that is no time."""
        if isinstance(cells.dtype, pd.CategoricalDtype | pd.StringDtype) or cells.dtype == object:
            places, found = pd.factorize(cells)  # each distinct text is read once
            if len(places) and places.min() < 0:
                raise self._unreadable(cells, places < 0, lambda row: first + row)
            kinds = found.categories.take(found.codes) if isinstance(found, pd.CategoricalIndex) else found
            distinct = pd.Series(kinds)
            return self._read(distinct, lambda row: first + int((places == row).argmax()))[places]
        return self._read(cells, lambda row: first + row)

    def _read(self, cells: pd.Series, number: Number) -> np.ndarray:
        if not is_integer_dtype(cells.dtype) and not isinstance(cells.dtype, pd.StringDtype):
            cells = dates_of(cells)
        absent = cells.isna().to_numpy()
        if absent.any():
            raise self._unreadable(cells, absent, number)
        if isinstance(cells.dtype, pd.PeriodDtype):
            return self._settled(Clock(period=cells.dtype.freq), cells, number, pd.PeriodIndex(cells).asi8)
        if isinstance(cells.dtype, pd.DatetimeTZDtype) or cells.dtype.kind == "M":
            stamps = pd.DatetimeIndex(cells)
            stamps = stamps.as_unit(self.clock.unit) if self.clock and self.clock.unit else stamps
            return self._settled(Clock(stamps.unit, stamps.tz), cells, number, stamps.asi8)
        if is_integer_dtype(cells.dtype):
            return self._of_numbers(cells, number, as_text=False)
        if WHOLE.fullmatch(str(cells.iloc[0])):
            return self._of_numbers(cells, number, as_text=True)
        return self._of_text(cells, number)

    def index(self, ticks: np.ndarray) -> pd.Index:
        """As the table has its times; text becomes time stamps."""
        assert self.clock is not None
        return pd.Index(self.text(ticks).astype(np.int64)) if self.as_numbers and self.pattern else \
            self.clock.index(ticks)

    def text(self, ticks: np.ndarray) -> np.ndarray:
        """As the table writes its times: strings [T]."""
        assert self.clock is not None
        places, distinct = pd.factorize(ticks)
        times = self.clock.index(distinct)
        if not isinstance(times, pd.DatetimeIndex):
            return np.array([str(time) for time in times], dtype=object)[places]
        return np.array(self._written(times), dtype=object)[places]

    def _written(self, times: pd.DatetimeIndex) -> list[str]:
        midnight = bool((times == times.normalize()).all())
        full = FULL + (".%f" if (times.microsecond != 0).any() else "") + ("" if times.tz is None else "%:z")
        pattern = self.pattern or ("%Y-%m-%d" if midnight and times.tz is None else full)
        if "%H" not in pattern and not midnight:
            pattern = full
        found = list(times.strftime(pattern.replace("%:z", "%z")))
        return [f"{text[:-2]}:{text[-2:]}" for text in found] if pattern.endswith("%:z") else found

    def _settled(self, clock: Clock, cells: pd.Series, number: Number, ticks: np.ndarray) -> np.ndarray:
        if self.clock is None:
            self.clock = clock
        elif self.clock != clock:
            raise UserError(f"{self.place.row(number(0))}, column {shorten(self.name)}: {shorten(str(cells.iloc[0]))} "
                            "is another kind of time than the first rows have: write all of them alike")
        return ticks

    def _of_numbers(self, cells: pd.Series, number: Number, as_text: bool) -> np.ndarray:
        """Whole numbers: 20200131 and 202001 are dates where all of them are, others count."""
        try:
            numbers = cells.to_numpy().astype(np.int64) if not as_text else cells.astype("int64").to_numpy()
        except (ValueError, TypeError, OverflowError):
            raise self._unreadable(cells, ~cells.astype(str).str.fullmatch(WHOLE.pattern).to_numpy(bool), number) \
                from None
        if self.clock is None:
            self.pattern = _pattern_of(numbers)
            self.as_numbers = not as_text
        if self.pattern is None:
            return self._settled(Clock(), cells, number, numbers)
        stamps = pd.to_datetime(pd.Series(numbers).astype(str), format=self.pattern, errors="coerce")
        if stamps.isna().any():
            raise self._unreadable(cells, stamps.isna().to_numpy(), number)
        return self._settled(Clock(TEXT_UNIT), cells, number, pd.DatetimeIndex(stamps).as_unit(TEXT_UNIT).asi8)

    def _of_text(self, cells: pd.Series, number: Number) -> np.ndarray:
        if self.clock is None:
            self.options = self._options(cells, number)
            self.pattern = _pattern(str(cells.iloc[0]))
        stamps = _stamps(cells, self.options)
        wrong = stamps.isna()
        if wrong.any():
            raise self._unreadable(cells, wrong, number)
        zone = stamps.tz if self.clock is None else self.clock.zone
        if (stamps.tz is None) != (zone is None):
            raise self._unreadable(cells, np.ones(len(cells), dtype=bool), number)
        return self._settled(Clock(TEXT_UNIT, zone), cells, number, stamps.as_unit(TEXT_UNIT).asi8)

    def _options(self, cells: pd.Series, number: Number) -> dict[str, Any]:
        """How to read this text; refused where days and months may be told apart in two ways."""
        iso: dict[str, Any] = {"format": "ISO8601"}
        if re.match(r"\d{4}", str(cells.iloc[0])) or not _stamps(cells, iso).isna().any():
            return iso
        ways = [(how, _stamps(cells, how)) for how in ({}, {"dayfirst": True})]
        whole = [(how, stamps) for how, stamps in ways if not stamps.isna().any()]
        if len(whole) == 2 and (whole[0][1] != whole[1][1]).any():
            raise UserError(f"{self.place.row(number(0))}: {shorten(str(cells.iloc[0]))} may be day first or month "
                            "first: write dates like 2020-12-31")
        return whole[0][0] if whole else iso

    def _unreadable(self, cells: pd.Series, wrong: np.ndarray, number: Number) -> UserError:
        row = int(np.argmax(wrong))
        cell = cells.iloc[row]
        said = "missing" if pd.isna(cell) or cell == "" else f"{shorten(str(cell))}, not a time like the others"
        return UserError(f"{self.place.row(number(row))}, column {shorten(self.name)}: {said} ({int(wrong.sum())} such "
                         "cells nearby): write all of them like 2020-12-31 23:00:00")


def _stamps(cells: pd.Series, options: dict[str, Any]) -> pd.DatetimeIndex:
    """Text as times, NaT where it is none; in UTC where the offsets differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pd.DatetimeIndex(pd.to_datetime(cells, errors="coerce", **options))
        except (ValueError, TypeError):
            if cells.str.contains(r"(?:Z|[+-]\d\d:?\d\d)$").all():
                return pd.DatetimeIndex(pd.to_datetime(cells, errors="coerce", utc=True, **options))
            return pd.DatetimeIndex([pd.NaT] * len(cells))


def _pattern(text: str) -> str | None:
    """How ISO text is written; None for other text, which is written anew."""
    match = ISO.fullmatch(text)
    if match is None:
        return "%Y-%m" if re.fullmatch(r"\d{4}-\d\d", text) else None
    date = match["mark"].join(("%Y", "%m", "%d"))
    clock = "" if match["between"] is None else match["between"] + "%H:%M" + (":%S" if match["seconds"] else "")
    if match["part"]:
        clock += ".%f"
    zone = match["zone"] or ""
    return date + clock + (zone if zone in ("", "Z") else "%:z" if ":" in zone else "%z")


def _pattern_of(numbers: np.ndarray) -> str | None:
    """How whole numbers are written if they are dates; None if they count."""
    digits = len(str(abs(int(numbers[0]))))
    pattern = OF_NUMBERS.get(digits)
    if pattern is None or (digits == 6 and len(numbers) <= ENOUGH_MONTHS):
        return None
    years = numbers // 10**(digits - 4)
    if not ((years >= YEARS[0]) & (years < YEARS[1])).all():
        return None
    days = pd.to_datetime(pd.Series(numbers).astype(str), format=pattern, errors="coerce")
    return None if days.isna().any() else pattern
