"""Forecasts beyond the end of a series, in its own units: what --do_predict and a notebook use.

    from exp.forecaster import Forecaster
    Forecaster.load("checkpoints/TARGET", draft="checkpoints/DRAFT").predict(df, horizon=96)
"""
import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from data_provider.data_loader import standardised
from data_provider.reading import FRAME, Series, from_frame
from data_provider.times import Calendar, continued
from exp.evaluation import AloneMethod, make_speculative
from exp.exp_basic import Exp_Basic
from exp.laws import law_of_history
from exp.options import parse_args
from exp.sampling import PlainSampler
from utils.checkpoint import CHECKPOINT, read_settings
from utils.errors import UserError, shorten
from utils.metrics import SpeculationMetrics
from utils.precision import autocast
from utils.probabilistic import QUANTILES, quantile
from utils.target_law import TargetLaw

ENOUGH_PATHS = 39  # the outermost two lie at 1/40 and 39/40
# context [B, L, C] and horizon -> sampled paths [B, S, H, C], both standardised
Sampler = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass
class Forecast:
    """H steps of C variables, in the units of the series.

    values [1 + Q, H, C]: the mean, and the quantiles at `levels` where a law was sampled; origin [C, n] (see
    utils.speculative_decoder) and cost, None without a draft; notes: what a reader of the forecast has to know.
    """

    names: list[str]
    calendar: Calendar
    values: np.ndarray
    levels: tuple[float, ...] = ()
    origin: np.ndarray | None = None
    cost: dict | None = None
    notes: list[str] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """Long format, series by series: unique_id, ds, mean, and q0.025, q0.1, ... where a law was sampled."""
        future, variables = self.calendar.future, len(self.names)
        columns = {"unique_id": np.repeat(np.array(self.names, dtype=object), len(future)),
                   "ds": future.append([future] * (variables - 1))}
        for name, values in zip(("mean", *(f"q{level:g}" for level in self.levels)), self.values):
            columns[name] = values.T.ravel()
        return pd.DataFrame(columns)


def quantiles_of(paths: torch.Tensor, levels: tuple[float, ...]) -> torch.Tensor:
    """Sampled paths [B, S, H, C] -> [Q, B, H, C]: of every step for itself."""
    ordered = paths.sort(dim=1).values
    return torch.stack([quantile(ordered, level) for level in levels])


class Forecaster:
    """A trained target, alone or with its draft.

    Every variable is standardised by mean and standard deviation of all its rows: nothing after them exists, so
    nothing leaks. The mean is that of the target, decoded as the flags say (rule, tolerance, K).
    """

    def __init__(self, experiment: Exp_Basic, checkpoint: Path):
        self.experiment, self.args, self.checkpoint = experiment, experiment.args, checkpoint
        self.model, self.draft = experiment.load_pair(checkpoint)

    @classmethod
    def load(cls, folder: str | Path, draft: str | Path | None = None, **flags) -> "Forecaster":
        """The model in `folder`; draft: folder or checkpoint of its draft; flags: those of run.py, without '--'.

        Raises UserError for what run.py would refuse.
        """
        folder = Path(folder).absolute()
        settings = read_settings(folder / CHECKPOINT) or {}
        own = {"model": settings.get("model", "timer_xl"), "checkpoints": folder.parent, "test_dir": folder.name}
        flags = own | flags
        if draft is not None:
            flags["spec_draft_ckpt"] = Path(draft) / CHECKPOINT if Path(draft).is_dir() else draft
        argv = ["--do_predict", *(f"--{name}" if value is True else f"--{name}={value}"
                                  for name, value in flags.items() if value is not False)]
        experiment = Exp_Basic(parse_args(argv))
        return cls(experiment, experiment.tested_checkpoint(experiment.args.test_dir))

    def predict(self, df: pd.DataFrame, horizon: int, sampler: Sampler | None = None,
                levels: tuple[float, ...] = QUANTILES) -> pd.DataFrame:
        """df: long (unique_id, ds, y) or wide (a numeric column a variable; times in a column or as index).

        Returns the long format: unique_id, ds, mean and a column a level, with a sampler or where the flag num_samples
        was given to `load`. Raises UserError for missing values, irregular times and too few rows.
        """
        forecast = self.forecast(from_frame(df), horizon, FRAME, sampler, levels)
        for note in forecast.notes:
            self.experiment.say(f"note: {note}")
        return forecast.frame()

    def forecast(self, series: Series, horizon: int, where: str, sampler: Sampler | None = None,
                 levels: tuple[float, ...] = QUANTILES) -> Forecast:
        """`where`: what errors call the series."""
        if horizon < 1:
            raise UserError(f"a horizon of {horizon} steps: at least 1 is needed")
        self._refuse_short(len(series.values), where)
        calendar = continued(series, horizon, where)
        scaler = StandardScaler()
        history = standardised(where, scaler, series.values, series.values)
        context, notes = history[-self.args.test_seq_len:], []
        law = None if self.args.num_samples is None else self._law(history, where, notes)
        if sampler is None and law is not None:
            sampler = self._sampler(law, horizon)
        levels = levels if sampler else ()
        with autocast(self.args, self.experiment.device):
            values, origin, cost = self._decode(context.to(self.experiment.device), horizon, sampler, levels, law)
        if not np.isfinite(values).all():
            raise UserError(f"{where}: the forecast overflowed: leave out --amp, or train the model again")
        in_units = np.stack([scaler.inverse_transform(part) for part in values])
        forecast = Forecast(series.names, calendar, in_units, levels, origin, cost, notes)
        self._settle_constants(forecast, series)
        return self._of_covariates(forecast) if self.args.covariate else forecast

    def _law(self, history: torch.Tensor, where: str, notes: list[str]) -> TargetLaw:
        """That of the target's errors on this history, or of --spec_sigma."""
        args, law = self.args, TargetLaw.fixed(self.args.spec_sigma)
        if args.spec_sigma_mode == "calibrated":
            found = law_of_history(args, self.model, history, where, self.experiment.device)
            law = found.law
            notes.append(f"quantiles are those of {args.num_samples} paths, drawn by the target's errors on "
                         f"{found.held_out['windows']:.0f} recent windows; {found.describe()}")
        if args.num_samples < ENOUGH_PATHS:
            notes.append(f"{args.num_samples} paths cannot tell the outermost quantiles from their lowest and highest: "
                         f"--num_samples {ENOUGH_PATHS} is the least that can")
        return replace(law, factor=law.factor * args.spec_temp)

    def _sampler(self, law: TargetLaw, horizon: int) -> Sampler:
        """--num_samples paths of the target alone."""
        sampler = PlainSampler(self.model, horizon, law, self.args.seed)
        return lambda context, _: sampler.paths(context, self.args.num_samples)

    def _refuse_short(self, rows: int, where: str) -> None:
        context, patch = self.args.test_seq_len, self.args.input_token_len
        if rows < context:
            shorter = f", or give --test_seq_len {rows // patch * patch}, a shorter context" if rows >= patch else ""
            raise UserError(f"{where}: {rows} rows, the context takes {context}: give a longer history{shorter}")

    def _decode(self, context: torch.Tensor, horizon: int, sampler: Sampler | None, levels, law: TargetLaw | None):
        """context [L, C] -> mean and quantiles [1 + Q, H, C], all standardised, origin [C, n], cost.

        One window of C variables, or C windows of one for a univariate model.
        """
        args = self.args
        univariate = args.data == "UnivariateDatasetBenchmark"
        windows = context.T[..., None] if univariate else context[None]
        method = AloneMethod(self.model, horizon)
        if self.draft is not None:
            flags = argparse.Namespace(**vars(args) | {"test_pred_len": horizon})
            method = make_speculative(self.model, self.draft, flags, law=law)
        values, origins, cost = [], [], SpeculationMetrics()
        parts = windows.split(args.batch_size)
        for part in tqdm(parts, desc="forecast", unit="batch", disable=args.quiet or len(parts) == 1):
            if self.draft is None:
                mean = method.forecast(part)
            else:
                decoded = method.decode(part)
                mean = decoded.forecast
                cost.update(decoded)
                origins.append(decoded.origin.cpu())
            quantiles = [quantiles_of(sampler(part, horizon), levels)] if sampler else []
            values.append(torch.cat([mean[None], *quantiles]))
        joined = torch.cat(values, dim=1)  # [1 + Q, B, H, C or 1]
        by_variable = (joined[..., 0].mT if univariate else joined[:, 0]).double().cpu().numpy()
        if not origins:
            return by_variable, None, None
        return by_variable, torch.cat(origins).expand(context.shape[1], -1).numpy(), cost.result()

    def _settle_constants(self, forecast: Forecast, series: Series) -> None:
        """A variable that never moved stays where it is: a model, which divides by its deviation, cannot tell."""
        for c, name in enumerate(series.names):
            value = series.values[0, c]
            if (series.values[:, c] == value).all():
                forecast.values[:, :, c] = value
                forecast.notes.append(f"{shorten(name)} is {value:g} in all {len(series.values)} rows: its forecast is "
                                      "that constant, not a model's")

    def _of_covariates(self, forecast: Forecast) -> Forecast:
        forecast.notes.append(f"a model trained with --covariate forecasts the last variable only, "
                              f"{shorten(forecast.names[-1])}; beyond one patch it reads its own guesses of the others")
        forecast.names, forecast.values = forecast.names[-1:], forecast.values[:, :, -1:]
        if forecast.origin is not None:
            forecast.origin = forecast.origin[-1:]
        return forecast
