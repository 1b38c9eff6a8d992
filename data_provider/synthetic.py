"""An embedded, seeded data set in ETT's format, for machines without the data and without a network.

Seven correlated variables at hourly steps: daily and weekly seasons, slow drift, regime changes, and noise whose
amplitude follows the time of day. It only serves to run the program; figures measured on it say nothing about ETTh1.
"""
from pathlib import Path

import numpy as np
import pandas as pd

from utils.files import replace_when_done

NAMES = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
ROWS = 17420


def synthetic_frame(rows: int = ROWS, seed: int = 2021) -> pd.DataFrame:
    """`rows` hours from 2016-07-01: a 'date' column and the seven ETT names."""
    rng = np.random.default_rng(seed)
    hours = np.arange(rows)
    day, week = 2 * np.pi * hours / 24, 2 * np.pi * hours / 168
    basis = np.stack([np.sin(day), np.cos(day), np.sin(2 * day), np.cos(2 * day), np.sin(week), np.cos(week)])
    mixing = rng.normal(size=(7, 6)) * np.array([2.0, 2.0, 1.0, 1.0, 0.7, 0.7])
    regimes = 1 + 0.4 * _steps(rng, rows, every=900)
    seasonal = (mixing @ basis) * regimes
    drift = np.cumsum(rng.normal(scale=0.03, size=(2, rows)), axis=1)
    level = rng.normal(size=(7, 2)) @ (drift - drift.mean(axis=1, keepdims=True)) + 2 * _steps(rng, rows, every=1500)
    spread = 0.4 + 0.3 * np.abs(np.sin(day / 2))
    correlated = np.linalg.cholesky(0.6 * np.ones((7, 7)) + 0.4 * np.eye(7)) @ rng.normal(size=(7, rows))
    values = rng.uniform(2, 12, size=(7, 1)) + seasonal + level + spread * _smooth(correlated)
    frame = pd.DataFrame(values.T.round(6), columns=NAMES)
    frame.insert(0, "date", pd.date_range("2016-07-01", periods=rows, freq="h").strftime("%Y-%m-%d %H:%M:%S"))
    return frame


def _steps(rng, rows: int, every: int) -> np.ndarray:
    """A level that jumps about once every `every` rows."""
    jumps = rng.random(rows) < 1 / every
    return rng.uniform(-1, 1, size=rows)[np.maximum.accumulate(np.where(jumps, np.arange(rows), 0))]


def _smooth(noise: np.ndarray, memory: float = 0.7) -> np.ndarray:
    out = np.empty_like(noise)
    out[:, 0] = noise[:, 0]
    for t in range(1, noise.shape[1]):
        out[:, t] = memory * out[:, t - 1] + noise[:, t] * np.sqrt(1 - memory**2)
    return out


def write_synthetic(path: str | Path) -> Path:
    """Writes the data set as a csv; the file name should start with ETTh to get ETT's splits."""
    with replace_when_done(Path(path)) as beside:
        synthetic_frame().to_csv(beside, index=False)
    return Path(path)
