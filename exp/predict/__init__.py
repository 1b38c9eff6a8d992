"""Forecasts beyond the end of a series: `Forecaster` for a notebook, `files` for the command line."""
from exp.predict.forecaster import Forecaster

__all__ = ["Forecaster"]
