"""Metrics of every series and every file of a walk over windows."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from data_provider.data_loader import SeriesWindows
from utils.scores import SeriesMetrics


@dataclass(frozen=True)
class Walk:
    """Windows in the order of an evaluation. first [W]: number of the first variable of each; labels: file and name of
    every variable of every series; naive_errors: see `utils.scores.SeriesMetrics`; seasons [W]: steps per season;
    variables: of a window."""

    first: torch.Tensor
    labels: list[tuple[str, str]]
    naive_errors: torch.Tensor
    seasons: torch.Tensor
    variables: int

    @classmethod
    def over(cls, dataset: SeriesWindows, items: Sequence[int]) -> Walk:
        series = dataset.series_of(torch.as_tensor(items))
        return cls(series * dataset.variables, dataset.labels, dataset.naive_errors, dataset.seasons[series],
                   dataset.variables)


class BySeries:
    """Scores of forecasts that come in the order of `walk`; of the last variables, if they do not have all."""

    def __init__(self, walk: Walk):
        self.walk, self.windows = walk, 0
        self.metrics = SeriesMetrics(walk.naive_errors)

    def update(self, forecast: torch.Tensor, truth: torch.Tensor) -> None:
        """forecast, truth [B, H, C]"""
        batch, _, scored = truth.shape
        first = self.walk.first[self.windows:self.windows + batch, None]
        self.metrics.update(forecast, truth, first + torch.arange(self.walk.variables - scored, self.walk.variables))
        self.windows += batch

    def mase(self) -> float | None:
        return _plain(self.metrics.of())["mase"]

    def files(self) -> dict[str, dict[str, float | None]]:
        """MSE, MAE and MASE of every file, by its label."""
        names = [file for file, _ in self.walk.labels]
        return {name: _plain(self.metrics.of(torch.tensor([file == name for file in names])))
                for name in dict.fromkeys(names)}

    def rows(self) -> list[dict[str, Any]]:
        """One row for every variable of every series that was scored."""
        numbers = torch.arange(len(self.walk.labels))
        return [{"file": self.walk.labels[number][0], "series": self.walk.labels[number][1]}
                | _plain(self.metrics.of(numbers == number)) for number in self.metrics.scored()]


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
