"""Series put on their grids, and what takes the place of missing values: nothing, the last one, a line, a season."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

WAYS = ("error", "interpolate", "last", "seasonal")


def on_grid(values: np.ndarray, position: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """values [R] at their positions on the grid -> (values [R'], starts [S + 1], missing cells [S]); NaN in holes.

    A series begins with its first known value: what is missing before has nothing to be filled from, and counts, too.
    One without any value has no rows.
    """
    known = np.isfinite(values)
    series = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    rows = position[starts[1:] - 1] + 1
    before = rows.copy()  # positions before the first known value
    np.minimum.at(before, series[known], position[known])
    length = rows - before
    begins = np.concatenate([[0], np.cumsum(length)])
    filled = np.full(begins[-1], np.nan)
    filled[(begins[:-1] - before)[series[known]] + position[known]] = values[known]
    return filled, begins, rows - np.bincount(series[known], minlength=len(rows))


def fill(values: np.ndarray, starts: np.ndarray, way: str, seasons: np.ndarray) -> np.ndarray:
    """values [R] without NaN; every series begins with a value. seasons [S]: steps per season."""
    known = np.isfinite(values)
    return values if known.all() else _WAYS[way](values, known, starts, seasons)


def _last(values: np.ndarray, known: np.ndarray, starts: np.ndarray, _seasons: np.ndarray) -> np.ndarray:
    return values[_before(known)]


def _interpolated(values: np.ndarray, known: np.ndarray, starts: np.ndarray, _seasons: np.ndarray) -> np.ndarray:
    """On a line between the values around; the last value where none comes after."""
    rows = np.arange(len(values))
    before = _before(known)
    after = len(values) - 1 - _before(known[::-1])[::-1]
    end = np.repeat(starts[1:], np.diff(starts))
    inside = known[after] & (after < end) & ~known
    filled = values[before]
    low, high, at = before[inside], after[inside], rows[inside]
    filled[inside] = values[low] + (values[high] - values[low]) * ((at - low) / (high - low))
    return filled


def _seasonal(values: np.ndarray, known: np.ndarray, starts: np.ndarray, seasons: np.ndarray) -> np.ndarray:
    """The value whole seasons before, else after, the nearest there is; else on a line."""
    filled, left = values.copy(), np.flatnonzero(~known)
    begin, end = np.repeat(starts[:-1], np.diff(starts)), np.repeat(starts[1:], np.diff(starts))
    season = np.repeat(seasons, np.diff(starts))
    for sign in (-1, 1):
        waiting, away = left, 1
        while len(waiting):
            place = waiting + sign * away * season[waiting]
            inside = (place >= begin[waiting]) & (place < end[waiting])
            waiting, place = waiting[inside], place[inside]
            found = known[place]
            filled[waiting[found]] = values[place[found]]
            waiting, away = waiting[~found], away + 1
        left = left[np.isnan(filled[left])]
    return _interpolated(filled, np.isfinite(filled), starts, seasons) if len(left) else filled


def _before(known: np.ndarray) -> np.ndarray:
    """Row of the newest known value up to each row."""
    return np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))


_WAYS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "last": _last, "interpolate": _interpolated, "seasonal": _seasonal}
