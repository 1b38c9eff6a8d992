"""Caveats that go with a forecast, and the limit below which it may not fall (`clip_min`).

A note names parameters in backticks, which the program shows as flags.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from data_provider.series import Series, listed
from exp.settings import Settings
from exp.speculation import LOSSLESS
from models.registry import APART
from utils.errors import UserError

if TYPE_CHECKING:
    from exp.predict.forecaster import Forecast

MOST_CONTEXTS = 2  # horizons of more contexts than this are mostly forecast from forecasts
MOST_NAMES = 3  # series named in one note


def refuse_clip(series: Series, clip_min: float | None, where: str) -> None:
    """Raises UserError where `clip_min` would leave nothing of a forecast but itself."""
    if clip_min is None:
        return
    above = [name for name, highest in zip(series.names, series.values.max(axis=0)) if highest < clip_min]
    if above:
        raise UserError(f"{where}: `clip_min` {clip_min:g} is above every value of {listed(above, MOST_NAMES)}: lower "
                        "it, or leave it out")


def add_caveats(forecast: Forecast, series: Series, settings: Settings) -> None:
    """Adds the notes that a reader of this forecast needs, and raises its values to `clip_min`."""
    spec, data = settings.spec, settings.data
    together = len(series.names) > 1 and not data.univariate and settings.model.name not in APART
    if together and not settings.model.config.covariate:
        forecast.notes.append(f"the {len(series.names)} series are forecast together: the values of each, and the "
                              "order of the columns, change the forecasts of all; `kind` UnivariateDatasetBenchmark "
                              "forecasts each by itself")
    horizon = len(forecast.calendar.future)
    if horizon > MOST_CONTEXTS * data.test_context:
        forecast.notes.append(f"the horizon of {horizon} steps is more than {MOST_CONTEXTS} contexts of "
                              f"{data.test_context}: for most of them the context holds nothing but earlier "
                              "forecasts, and the forecast tends to fade to a flat line; test such a horizon before "
                              "you rely on it")
    if settings.run.use_speculative and spec.rule in LOSSLESS:
        forecast.notes.append(f"`rule` {spec.rule} preserves no law here, because a mean is forecast: where a proposal "
                              "is accepted, the draft's mean stays in the context, as with a tolerance")
    columns = [series.names.index(name) for name in forecast.names]
    _clip(forecast, series.values[:, columns].min(axis=0), settings.report.clip_min)


def _clip(forecast: Forecast, lowest, clip_min: float | None) -> None:
    """lowest [C]: the smallest value of each series' history."""
    if clip_min is not None:
        under = [name for name, low in zip(forecast.names, lowest) if low < clip_min]
        if under:
            forecast.notes.append(f"the history of {listed(under, MOST_NAMES)} goes below `clip_min` {clip_min:g}; the "
                                  "forecast may not")
        raised = forecast.values < clip_min
        forecast.values[raised] = clip_min
        if raised.any():
            forecast.notes.append(f"{raised.sum()} of {raised.size} values, quantiles included, were below `clip_min` "
                                  f"and are raised to {clip_min:g}")
    below = [name for name, low, values in zip(forecast.names, lowest, forecast.values.swapaxes(0, 2))
             if low >= 0 and values.min() < 0]
    if below:
        remedy = "prevents that" if lowest.min() >= 0 else \
            "would prevent that, but it holds for all series, and others do fall below 0: forecast them in a call of " \
            "their own"
        forecast.notes.append(f"{listed(below, MOST_NAMES)} never fell below 0, but the forecast or one of its "
                              f"quantiles does: `clip_min` 0 {remedy}")
