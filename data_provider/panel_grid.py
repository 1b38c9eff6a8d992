"""The grid that each of many series stands on, holes included, and the times before and after its last row.

Series come one after another: their rows are [R], starts [S + 1] says where each begins. Everything is counted for all
of them at once; only what no rule here explains is left to pandas, one series at a time.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timezone

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from data_provider.panel_clock import Clock
from data_provider.times import NO_TIMES_SEASON, frequency_of, season_of_step
from utils.errors import UserError

# kinds of grid: equal steps; equal steps of what the clocks of a zone show; months; days from Monday to Friday; one
# that pandas knows
NONE, STEPS, WALL, MONTHS, BUSINESS, OTHER = range(6)
LEAST_ROWS = 3  # of a series with a frequency
SHORTEST_MONTH = 28  # days
BUSINESS_SEASON = 5
LATEST = 2.0**63 - 2.0**40  # ticks


@dataclass
class Grids:
    """kind, step, rows [S]; position [R] on the grid, 0 for the first row; last [S]: ticks of the last row.

    step is in ticks, months or business days. at_end [S]: months by their last day. problems: number of a series ->
    why it has no grid. others: number -> frequency, for kind OTHER.
    """

    clock: Clock
    kind: np.ndarray
    step: np.ndarray
    at_end: np.ndarray
    last: np.ndarray
    position: np.ndarray
    holes: np.ndarray
    problems: dict[int, str] = field(default_factory=dict)
    others: dict[int, str] = field(default_factory=dict)

    def times(self, series: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Ticks [S', K] of some series at `offsets` [K] steps from the last row: negative ones are before it.

        Raises UserError where they exceed the range of time stamps.
        """
        ticks = np.empty((len(series), len(offsets)), dtype=np.int64)
        for kind in np.unique(self.kind[series]):
            some = self.kind[series] == kind
            ticks[some] = self._times(int(kind), series[some], offsets)
        return ticks

    def _times(self, kind: int, series: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        last, clock = self.last[series], self.clock
        steps = self.step[series, None] * offsets
        longest = {MONTHS: 31, BUSINESS: 2}.get(kind, 0) * clock.day or 1  # ticks a step
        if (np.abs(last[:, None].astype(float) + steps.astype(float) * longest) > LATEST).any():
            raise UserError(f"{len(offsets)} steps after the last row exceed the range of time stamps: lower `horizon`")
        if kind == STEPS:
            return last[:, None] + steps
        if kind == OTHER:
            return np.stack([self._of_pandas(int(number), offsets) for number in series])
        wall = clock.wall(last)
        if kind == WALL:
            return clock.instants(wall[:, None] + steps)
        day, rest = np.divmod(wall, clock.day)
        days = _by_months(day[:, None], steps, self.at_end[series, None]) if kind == MONTHS else \
            np.busday_offset(_dates(day)[:, None], steps).view(np.int64)
        return clock.instants(days * clock.day + rest[:, None])

    def _of_pandas(self, number: int, offsets: np.ndarray) -> np.ndarray:
        last, step = self.clock.index(self.last[number:number + 1])[0], to_offset(self.others[number])
        first = min(int(offsets.min()), 0)
        start = pd.date_range(end=last, periods=1 - first, freq=step)[0]
        every = pd.date_range(start, periods=1 - first + max(int(offsets.max()), 0), freq=step)
        return every.as_unit(self.clock.unit).asi8[offsets - first]

    def frequencies(self, series: np.ndarray) -> dict[str, int]:
        """Frequency in words -> number of these series [S'] that have it."""
        named = series[self.kind[series] != NONE]
        keys, counts = np.unique(np.stack([self.kind, self.step, self.at_end])[:, named], axis=1, return_counts=True)
        found = {self._name(int(kind), int(step), bool(at_end)): int(count)
                 for (kind, step, at_end), count in zip(keys.T, counts) if kind != OTHER}
        for frequency in (self.others[number] for number in named.tolist() if number in self.others):
            found[frequency] = found.get(frequency, 0) + 1
        return found

    def _name(self, kind: int, step: int, at_end: bool) -> str:
        if kind == MONTHS:
            return f"{step} month{'s' if step > 1 else ''}{', last day' if at_end else ''}"
        if kind == BUSINESS:
            return f"{step} business day{'s' if step > 1 else ''}"
        if self.clock.period is not None:
            return f"{step} x {pd.tseries.frequencies.to_offset(self.clock.period).freqstr}"
        if self.clock.unit is None:
            return f"steps of {step}"
        days, rest = divmod(step, self.clock.day)
        return to_offset(pd.Timedelta(step, unit=self.clock.unit)).freqstr if rest else f"{days if days > 1 else ''}D"

    def seasons(self) -> np.ndarray:
        """Steps per season [S]: a day, or of daily values a week, of longer steps a year; see `times.season_of`."""
        found = np.full(len(self.kind), NO_TIMES_SEASON)
        if self.clock.unit is None and self.clock.period is None:
            return found
        month = 365.25 / 12
        unit = {STEPS: 1 / (self.clock.day or 1), WALL: 1 / (self.clock.day or 1), MONTHS: month, OTHER: month}
        if self.clock.period is not None:
            one = pd.period_range("2001-01-01", periods=2, freq=self.clock.period).to_timestamp()
            unit[STEPS] = (one[1] - one[0]) / pd.Timedelta(days=1)
        for kind, step in np.unique(np.stack([self.kind, self.step]), axis=1).T:
            same = (self.kind == kind) & (self.step == step)
            if kind == BUSINESS:
                found[same] = max(1, BUSINESS_SEASON // step)
            elif kind in unit:
                found[same] = season_of_step(float(step) * unit[int(kind)])
        return found


def lengths_of(starts: np.ndarray) -> np.ndarray:
    return starts[1:] - starts[:-1]


def grids_of(ticks: np.ndarray, starts: np.ndarray, clock: Clock) -> Grids:
    """The grids of series whose rows [R] are in order of time.

    Of several grids that fit, one has the fewest holes. A grid that is less than half filled is none.
    """
    rows, last = lengths_of(starts), ticks[starts[1:] - 1]
    S = len(rows)
    grids = Grids(clock, np.zeros(S, dtype=np.int8), np.ones(S, dtype=np.int64), np.zeros(S, dtype=bool), last,
                  np.zeros(len(ticks), dtype=np.int64), np.zeros(S, dtype=np.int64))
    several = np.flatnonzero(rows >= LEAST_ROWS)
    shortest = _place(grids, STEPS, ticks, starts, several)
    repeated = several[shortest == 0]
    for number in repeated:
        own = ticks[starts[number]:starts[number + 1]]
        twice = clock.index(own[1:][own[1:] == own[:-1]][:1])[0]
        grids.problems[int(number)] = f"has two values at {twice}"
    if clock.day:
        left = several[shortest > 0]
        _place_by_calendar(grids, ticks, starts, left, shortest[shortest > 0])
        for number in left[grids.kind[left] == NONE]:
            own = clock.index(ticks[starts[number]:starts[number + 1]])
            frequency = frequency_of(own)
            if frequency is not None:
                grids.kind[number], grids.others[int(number)] = OTHER, frequency
                grids.position[starts[number]:starts[number + 1]] = np.arange(rows[number])
    for number in several[(grids.kind[several] == NONE)]:
        if int(number) not in grids.problems:
            grids.problems[int(number)] = _irregular(clock.index(ticks[starts[number]:starts[number + 1]]))
    return grids


def _place_by_calendar(grids: Grids, ticks: np.ndarray, starts: np.ndarray, series: np.ndarray,
                       shortest: np.ndarray) -> None:
    """Tries, for series [S'] whose shortest gap is known, steps of a zone's clocks, months and business days."""
    clock = grids.clock
    wall = clock.wall(ticks)
    if clock.zone is not None:
        _place(grids, WALL, wall, starts, series)
    day, rest = np.divmod(wall, clock.day)
    change = clock.day // 12  # of clocks: an hour or two
    monthly = series[shortest >= SHORTEST_MONTH * clock.day - change]
    if len(monthly):
        month, in_month, is_last = _months(day)
        for at_end in (False, True):
            anchored = _same(is_last if at_end else in_month, starts, monthly) & _same(rest, starts, monthly)
            anchored &= is_last[starts[monthly]] if at_end else in_month[starts[monthly]] < SHORTEST_MONTH
            _place(grids, MONTHS, month, starts, monthly[anchored], at_end)
    gapped = series[(grids.holes[series] > 0) & (abs(shortest - clock.day) <= change)]
    if len(gapped):
        working = np.is_busday(_dates(day))
        all_work = _same(working, starts, gapped) & working[starts[gapped]] & _same(rest, starts, gapped)
        if all_work.any():
            _place(grids, BUSINESS, np.busday_count("1970-01-01", _dates(day)), starts, gapped[all_work])


def _place(grids: Grids, kind: int, ordinals: np.ndarray, starts: np.ndarray, series: np.ndarray,
           at_end: bool = False) -> np.ndarray:
    """Puts series [S'] on a grid of equal steps of `ordinals` [R] where that fits better; their shortest gaps [S']."""
    if not len(series):
        return np.zeros(0, dtype=np.int64)
    rows = lengths_of(starts)[series]
    at = _rows_of(starts, series)
    own = ordinals[at]
    begins = np.concatenate([[0], np.cumsum(rows)])
    inner = np.ones(len(own) - 1, dtype=bool)
    inner[begins[1:-1] - 1] = False
    gaps = np.diff(own)[inner]
    firsts = np.concatenate([[0], np.cumsum(rows - 1)[:-1]])
    step = np.minimum.reduceat(gaps, firsts)
    divisor = np.maximum(step, 1)
    wanted = np.repeat(divisor, rows - 1)
    longer = np.flatnonzero(gaps != wanted)  # few: division is slow
    odd = np.zeros(len(series), dtype=bool)
    odd[np.searchsorted(firsts, longer[gaps[longer] % wanted[longer] != 0], side="right") - 1] = True
    holes = (own[begins[1:] - 1] - own[begins[:-1]]) // divisor - (rows - 1)
    fits = (step > 0) & ~odd & (holes < rows)
    known, before = grids.kind[series] != NONE, grids.holes[series]
    # where two fit alike, a calendar is what was meant, unless a day is no whole number of steps
    whole_days = (step % grids.clock.day == 0) if kind == WALL and grids.clock.day else np.ones(len(step), dtype=bool)
    better = fits & (~known | (holes < before) | ((holes == before) & (kind != BUSINESS) & whole_days))
    chosen = series[better]
    grids.kind[chosen], grids.step[chosen], grids.holes[chosen] = kind, step[better], holes[better]
    grids.at_end[chosen] = at_end
    position = np.arange(len(own)) - np.repeat(begins[:-1], rows)
    gapped = np.flatnonzero(np.repeat(better & (holes > 0), rows))
    origin = np.repeat(own[begins[:-1]], rows)[gapped]
    position[gapped] = (own[gapped] - origin) // np.repeat(divisor, rows)[gapped]
    part = np.repeat(better, rows)
    grids.position[at[part]] = position[part]
    return step


def _rows_of(starts: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Numbers of all rows of some series, in order."""
    rows = lengths_of(starts)[series]
    ends = np.cumsum(rows)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[series] - (ends - rows), rows)


def _same(marks: np.ndarray, starts: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Whether all rows of a series have the mark of its first one: [S']."""
    rows = lengths_of(starts)[series]
    differs = marks[_rows_of(starts, series)] != np.repeat(marks[starts[series]], rows)
    return ~np.logical_or.reduceat(differs, np.concatenate([[0], np.cumsum(rows)[:-1]]))


def _dates(day: np.ndarray) -> np.ndarray:
    return day.view("M8[D]")


def _months(day: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Days since 1970 -> months since then, days into the month from 0, whether the month ends with that day."""
    month = _dates(day).astype("M8[M]")
    return month.view(np.int64), day - month.astype("M8[D]").view(np.int64), _dates(day + 1).astype("M8[M]") != month


def _by_months(day: np.ndarray, steps: np.ndarray, at_end: np.ndarray) -> np.ndarray:
    """Days `steps` months from `day`: the same day of the month, or its last one."""
    month, in_month, _ = _months(np.ascontiguousarray(day))
    wanted = month + steps

    def begin(months: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(months).view("M8[M]").astype("M8[D]").view(np.int64)
    return np.where(at_end, begin(wanted + 1) - 1, begin(wanted) + in_month)


def _irregular(times: pd.Index) -> str:
    """Where the gap first differs from the one before it."""
    ticks = times.asi8 if hasattr(times, "asi8") else times.to_numpy()
    gaps = np.diff(ticks)
    row = int((gaps != gaps[0]).argmax()) if len(gaps) else 0
    said = f"is irregular: {times[row + 1]} comes after {times[row]}, which is no step like the one before"
    if isinstance(getattr(times, "tz", None), timezone):  # of text like 2020-12-31 00:00+01:00
        said += " (offsets do not tell when the clocks change: write local times without them, or a zone in parquet)"
    return said
