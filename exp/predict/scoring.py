"""Scores of forecasts of a panel, one a series, over what is known of the truth: formulas of Nixtla's utilsforecast.

Truths are [S, H], NaN where a value is missing; forecasts [S, H]; quantiles [Q, S, H]. All scores are [S], NaN for a
series that has none.
"""
from __future__ import annotations

import warnings

import numpy as np


def mase(truth: np.ndarray, forecast: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Mean absolute error over `scale` [S], that of the seasonal-naive forecast one step ahead on the history; NaN
    where that is 0."""
    return _mean(np.abs(truth - forecast)) / np.where(scale > 0, scale, np.nan)


def smape(truth: np.ndarray, forecast: np.ndarray) -> np.ndarray:
    """mean(|f - y| / (|f| + |y|)), between 0 and 1; 0 where both are 0."""
    spread = np.abs(truth) + np.abs(forecast)
    return _mean(np.abs(truth - forecast) / np.where(spread == 0, 1.0, spread))


def rmse(truth: np.ndarray, forecast: np.ndarray) -> np.ndarray:
    return np.sqrt(_mean(np.square(truth - forecast)))


def scaled_crps(truth: np.ndarray, quantiles: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Twice the mean quantile loss over the levels, by the mean absolute truth (Rangapuram et al., 2021)."""
    level, gap = np.array(levels)[:, None, None], truth - quantiles
    loss = _mean(np.maximum(level * gap, (level - 1) * gap).mean(axis=0))
    known = np.isfinite(truth).sum(axis=1)
    return 2 * loss * known / (np.nansum(np.abs(truth), axis=1) + np.finfo(np.float64).eps)


def coverage(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Share of the truths within the band, its ends included."""
    return _mean(np.where(np.isnan(truth), np.nan, (low <= truth) & (truth <= high)))


def seasonal_naive(values: np.ndarray, ends: np.ndarray, seasons: np.ndarray, horizon: int) -> np.ndarray:
    """[S, H]: the values a season before, again and again; histories end before rows `ends` [S] of values [R]."""
    steps = np.arange(horizon) % seasons[:, None]
    return values[(ends - seasons)[:, None] + steps]


def naive_errors(values: np.ndarray, starts: np.ndarray, seasons: np.ndarray) -> np.ndarray:
    """Mean absolute difference to a season before, over the history [R] of every series; NaN where it has no season."""
    series = np.repeat(np.arange(len(seasons)), np.diff(starts))
    at = np.arange(len(values))
    before = at - seasons[series]
    inside = before >= starts[:-1][series]
    gaps, series = np.abs(values[at[inside]] - values[before[inside]]), series[inside]
    known = np.isfinite(gaps)
    count = np.bincount(series[known], minlength=len(seasons))
    total = np.bincount(series[known], gaps[known], minlength=len(seasons))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    return mean_of_known(values, axis=1)


def mean_of_known(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """The mean without NaN; NaN where there is nothing else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)
