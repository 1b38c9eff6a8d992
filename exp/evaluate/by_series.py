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
    """Windows of a data set, by their items, in the order of an evaluation."""

    dataset: SeriesWindows
    items: Sequence[int]

    def variables_of(self, first: int, count: int) -> torch.Tensor:
        """Numbers of the variables of `count` windows from the one at `first` on [count, C]."""
        series = self.dataset.series_of(torch.tensor(self.items[first:first + count]))
        return series[:, None] * self.dataset.variables + torch.arange(self.dataset.variables)

    @property
    def seasons(self) -> torch.Tensor:
        """Steps per season of every window [W]."""
        return self.dataset.seasons[self.dataset.series_of(torch.tensor(self.items))]


class BySeries:
    """Scores of forecasts that come in the order of `walk`; of the last variables, if they do not have all.

    first: the number of the first window.
    """

    def __init__(self, walk: Walk, first: int = 0):
        self.walk, self.labels, self.windows = walk, walk.dataset.labels, first
        self.metrics = SeriesMetrics(walk.dataset.naive_errors)

    def update(self, forecast: torch.Tensor, truth: torch.Tensor) -> None:
        """forecast, truth [B, H, C]"""
        batch, _, scored = truth.shape
        self.metrics.update(forecast, truth, self.walk.variables_of(self.windows, batch)[:, -scored:])
        self.windows += batch

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which has the data set: the sums."""
        return {"metrics": self.metrics}

    def mase(self) -> float | None:
        return _plain(self.metrics.of())["mase"]

    def files(self) -> dict[str, dict[str, float | None]]:
        """MSE, MAE and MASE of every file, by its label."""
        number = {name: number for number, name in enumerate(dict.fromkeys(file for file, _ in self.labels))}
        group = torch.tensor([number[file] for file, _ in self.labels])
        return dict(zip(number, map(_plain, self.metrics.of_groups(group, len(number)))))

    def rows(self) -> list[dict[str, Any]]:
        """One row for every variable of every series that was scored."""
        every = self.metrics.of_groups(torch.arange(len(self.labels)), len(self.labels))
        return [dict(zip(("file", "series"), self.labels[number])) | _plain(every[number])
                for number in self.metrics.scored()]


def _plain(scores: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in scores.items()}
