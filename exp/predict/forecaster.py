"""Forecasts beyond the end of a series, in its own units, for --do_predict and notebooks.

    from exp.predict import Forecaster
    Forecaster.load("checkpoints/TARGET", draft="checkpoints/DRAFT").predict(df, horizon=96)
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data_provider.frames import FRAME, from_frame
from data_provider.scaling import OwnScale, too_far
from data_provider.series import Series
from data_provider.times import Calendar, continued
from exp.evaluate.methods import AloneMethod, Method, SampledMethod, make_rule, make_speculative
from exp.exp_basic import autocast, caveats, choose_device, load_model
from exp.laws import law_of_history, scale_length
from exp.memory import Shape, decoding_bytes, output_bytes, refuse_unfitting
from exp.own_heads import with_heads
from exp.panels import PanelSettings
from exp.predict.decoding import Sampler, cost_of, decode_windows, sampled_by
from exp.predict.frames import long_frame, predict_frame
from exp.predict.notes import add_caveats, refuse_clip
from exp.settings import DataSettings, ModelSettings, ReportSettings, RunSettings, Settings
from exp.speculation import LAW_FIELDS, SpecSettings
from exp.stored import completed, stored_settings
from models.foreign import ForeignModel
from models.registry import checkpoint_in
from utils.acceptance import Parareal
from utils.calibration import Calibration
from utils.errors import NotFinite, UserError, shorten
from utils.scores import QUANTILES
from utils.target_law import TargetLaw

OF_PATHS = {"sigma", "sigma_mode", "covariance", "temp", "width"}  # settings of the law, with or without a draft
ENOUGH_PATHS = 39  # the outermost two are then at levels 1/40 and 39/40
log = logging.getLogger(__name__)


@dataclass
class Forecast:
    """H steps of C variables, in the units of the series.

    values [1 + Q, H, C]: the mean, and the quantiles at `levels` if a law was sampled; origin [C, n] (see
    utils.decoded; None for parareal) and cost, None without a draft; notes: caveats for the reader.
    """

    names: list[str]
    calendar: Calendar
    values: np.ndarray
    levels: tuple[float, ...] = ()
    origin: np.ndarray | None = None
    cost: dict | None = None
    notes: list[str] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """Long format, series by series: unique_id, ds, mean, and q0.025, q0.1, ... if a law was sampled."""
        future, variables = self.calendar.future, len(self.names)
        columns = {"unique_id": np.repeat(np.array(self.names, dtype=object), len(future)),
                   "ds": future.append([future] * (variables - 1))}
        for name, values in zip(("mean", *(f"q{level:g}" for level in self.levels)), self.values):
            columns[name] = values.T.ravel()
        return pd.DataFrame(columns)


def _whole_horizon(horizon: object) -> int:
    """12, 12.0 and numpy's 12 are 12; anything else is refused."""
    if isinstance(horizon, (float, np.floating)) and float(horizon).is_integer():
        horizon = int(horizon)
    try:
        steps = index(horizon)  # type: ignore[arg-type]
    except TypeError:
        steps = 0
    if steps < 1 or isinstance(horizon, (bool, np.bool_)):
        raise UserError(f"`horizon` is {shorten(horizon)}, but must be a whole number, at least 1")
    return steps


def _distinct_levels(levels: Sequence[float] | None) -> tuple[float, ...]:
    if levels is None:
        return QUANTILES
    try:
        found = tuple(float(level) for level in levels if not isinstance(level, (str, bytes, bool)))
        usable = len(found) == len(levels) > 0 and all(0 < level < 1 for level in found)
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise UserError(f"`levels` is {shorten(levels)}, but must be a list of numbers, each between 0 and 1")
    if len({f"{level:g}" for level in found}) < len(found):  # as they name the columns of the forecast
        raise UserError(f"`levels` is {shorten(levels)}: leave out the level that is there twice")
    return found


def _refuse_idle(spec: SpecSettings, has_draft: bool, has_paths: bool) -> None:
    """Refuses settings that have no effect or do not suit a forecast beyond the end, as the command line does."""
    of_rule = spec.set_fields() - (OF_PATHS if has_paths else set())
    if not has_draft and of_rule:
        idle = min(of_rule)
        raise UserError(f"`{idle}` has no effect without a draft{' or `num_samples`' if idle in OF_PATHS else ''}: "
                        "leave it out")
    spec.refuse_contradictions(of_rule)
    if of_rule & {"rms", "budget", "promise"}:
        raise UserError(f"`{min(of_rule & {'rms', 'budget', 'promise'})}` needs many windows, some of which the target "
                        "forecasts too, but a forecast beyond the end is one of each series: leave it out")
    if spec.rule == Parareal.name and not has_paths and of_rule & LAW_FIELDS:
        raise UserError(f"`{min(of_rule & LAW_FIELDS)}` has no effect with `rule` parareal without `num_samples`: its "
                        "forecast is a mean; add that, or leave this one out")
    if has_paths and has_draft and spec.rule == "simplified":
        raise UserError("`rule` simplified preserves no law, so there are no quantiles: use exact, coupling or "
                        "tolerance, or leave out `num_samples`")
    if spec.adaptive:
        raise UserError("`adaptive` learns from batch to batch, but a forecast beyond the end must not: leave it out")
    if spec.emit == "sample":
        raise UserError("`emit` sample draws one path, but a forecast is a mean: leave it out")
    if spec.sigma_mode == "calibrated" and not has_paths:
        raise UserError("`sigma_mode` calibrated has no effect unless paths are sampled: add `num_samples`, or leave "
                        "it out")
    if spec.sigma_mode == "calibrated" and "sigma" in spec.set_fields():
        raise UserError(f"`sigma` {spec.sigma} has no effect with `sigma_mode` calibrated, which finds sigma itself: "
                        "leave one of them out")
    if spec.sigma_mode == "adaptive" and has_paths:
        raise UserError("`sigma_mode` adaptive takes sigma from the gap to a draft: for `num_samples` use fixed or "
                        "calibrated")
    if spec.covariance != "diag" and spec.sigma_mode != "calibrated":
        raise UserError(f"`covariance` {spec.covariance} has no effect without `sigma_mode` calibrated: leave it out")
    if spec.width is not None and spec.sigma_mode != "calibrated":
        raise UserError(f"`width` {spec.width} has no effect without `sigma_mode` calibrated: leave it out")
    if spec.growth is not None:
        raise UserError("`growth` is fitted on the validation part of a test, which a forecast beyond the end does not "
                        "have: leave it out")


class Forecaster:
    """A trained target, alone or with its draft.

    Every variable is standardised by the mean and standard deviation of its context (of the newest window in it, for a
    model with causal normalisation): what the model is given depends on no row before it, nor on the unit. The mean is
    that of the target, decoded according to the settings (rule, tolerance, K).
    """

    def __init__(self, settings: Settings, checkpoint: Path, device: torch.device):
        self.settings, self.checkpoint, self.device = settings, checkpoint, device
        run = settings.run
        self.model = load_model(settings, checkpoint, settings.model.name, device)
        self.draft = None
        if run.draft == "head":
            self.model = with_heads(self.model, checkpoint, run)
        elif run.draft_checkpoint is not None:
            self.draft = load_model(settings, run.draft_checkpoint, run.draft_model, device)

    @classmethod
    def load(cls, folder: str | Path, draft: str | Path | None = None, *, context: int | None = None,
             spec: SpecSettings | None = None, num_samples: int | None = None, batch_size: int = 32, seed: int = 2021,
             model: ModelSettings | None = None, gpu: int | None = None, quiet: bool = False, kind: str | None = None,
             clip_min: float | None = None, heads: bool = False) -> Forecaster:
        """Loads the target in `folder` (or a checkpoint file), and the draft in another one if it is given.

        heads: in place of a draft, the longer heads beside the target, which a training with `self_draft` left there.
        context: steps of history that the model reads; default: as many as in training. spec: rule and tolerance, and
        the law of the `num_samples` paths from which quantiles are taken; unless it sets `sigma` (in standard
        deviations of the context) or `sigma_mode`, that law is calibrated on the newest windows of each series. model:
        for a checkpoint without args.json.
        kind: MultivariateDatasetBenchmark, all series together, or UnivariateDatasetBenchmark, each by itself; default:
        as in training. clip_min: a lower limit of the forecast and its quantiles, in the units of the series.
        Raises UserError, which names the parameter, for invalid input.
        """
        checkpoint = checkpoint_in(folder)
        spec = spec or SpecSettings()
        if num_samples is not None and not spec.set_fields() & {"sigma", "sigma_mode"}:
            spec = replace(spec, sigma_mode="calibrated")
        if heads and (draft is not None or spec.repropose is not None or spec.rule == Parareal.name):
            raise UserError("`heads` takes all proposals from the target's own heads, which does not go with a draft, "
                            "`repropose` or the `rule` parareal: leave one of them out")
        _refuse_idle(spec, draft is not None or heads, num_samples is not None)
        stored, model = stored_settings(checkpoint), model or ModelSettings()
        length = stored.get("seq_len", DataSettings.context) if context is None else context
        data = DataSettings(context=length, test_context=length, batch_size=batch_size,
                            kind=kind or stored.get("data", DataSettings.kind))
        if spec.k == "auto" and not data.univariate:
            raise UserError("`k` auto measures on many series, but here all are forecast together, as one window: give "
                            "a number, or `kind` UnivariateDatasetBenchmark for a long table")
        config = completed(stored | dict(model.asked), model.name, data)
        if length % config.input_token_len:
            patch = config.input_token_len
            raise UserError(f"`context` {length} is not a multiple of the patch (`input_token_len` {patch}): use "
                            f"{length // patch * patch or patch}")
        settings = Settings(
            RunSettings(is_training=0, do_predict=True, draft_checkpoint=None if draft is None else str(draft),
                        draft="head" if heads else "model", use_speculative=draft is not None or heads, seed=seed,
                        gpu=gpu, quiet=quiet),
            ModelSettings(stored.get("model", model.name), model.rolling, model.norm_roll, asked=model.asked,
                          config=config),
            data, spec=spec, report=ReportSettings(num_samples=num_samples, clip_min=clip_min))
        return cls(settings, checkpoint, choose_device(settings.run))

    def predict(self, df: object, horizon: int, sampler: Sampler | None = None, levels: Sequence[float] | None = None,
                panel: PanelSettings | None = None) -> pd.DataFrame:
        """df: long (unique_id, ds, y) or wide (one numeric column per variable; times in a column or as index).

        A Series, a dict of columns or an array [T] or [T, C] is wide. levels: of quantiles, which need a sampler or
        `num_samples` given to `load`; default: QUANTILES. Returns the long format: unique_id, ds, mean and one column
        per level. Raises UserError for missing values, irregular times and too few rows.

        A target that forecasts each series by itself takes a long table as a panel: series of different length and
        frequency, each continued from its own last row. panel: names of its columns, and what is done about missing
        values and about series that cannot be forecast; attrs['skipped'] of the result has those that were left out.
        """
        frame = long_frame(df, self.settings, panel)
        if frame is not None:
            return predict_frame(self, frame, _whole_horizon(horizon), self.levels(levels, sampler), sampler,
                                 panel or PanelSettings())
        forecast = self.forecast(from_frame(df), horizon, FRAME, sampler, levels)
        for note in forecast.notes:
            log.warning("note: %s", note)
        return forecast.frame()

    def forecast(self, series: Series, horizon: int, where: str, sampler: Sampler | None = None,
                 levels: Sequence[float] | None = None) -> Forecast:
        """As `predict`, for a Series; where: its name in errors."""
        horizon = _whole_horizon(horizon)
        wanted = self.levels(levels, sampler)
        if self.settings.spec.k == "auto":
            raise UserError(f"{where}: `k` auto measures on many series, but this is no long table of series that are "
                            "forecast each by itself: give a number")
        self._refuse_short(len(series.values), where)
        refuse_clip(series, self.settings.report.clip_min, where)
        self.refuse_unfitting(len(series.names), horizon, len(wanted), where)
        calendar = continued(series, horizon, where)
        context, scale = self._context(series, where)
        notes = list(series.notes) + self.caveats()
        samples, law = self.settings.report.num_samples, None
        if samples is not None:
            law = self.law(lambda: law_of_history(self.model, series, self.settings.data, self.settings.spec.filled(),
                                                  where, self.device, self.settings.run.quiet), samples, notes)
            sampler = sampler or sampled_by(SampledMethod(self.model, horizon, law, self.settings.run.seed, samples))
        found = wanted if sampler else ()
        with autocast(self.settings.run, self.device):
            try:
                values, origin, cost = self._decode(context.to(self.device), horizon, sampler, found, law)
            except NotFinite as error:
                error.place = where
                if self.settings.data.univariate:
                    error.place += f", {shorten(series.names[error.window])}"
                raise
        in_units = scale.back(values)
        if not np.isfinite(in_units).all():
            raise UserError(f"{where}: the forecast does not fit into float64 in the unit of the series: rescale it")
        forecast = Forecast(series.names, calendar, in_units, found, origin, cost, notes)
        self._note_constants(forecast, scale, series)
        forecast = self._of_covariates(forecast) if self.settings.model.config.covariate else forecast
        add_caveats(forecast, series, self.settings)
        return forecast

    def levels(self, levels: Sequence[float] | None, sampler: Sampler | None) -> tuple[float, ...]:
        """Those to take quantiles at, if paths are sampled."""
        if levels is not None and sampler is None and self.settings.report.num_samples is None:
            _distinct_levels(levels)
            raise UserError("`levels` has no effect without paths to take quantiles of: give `num_samples` to `load`, "
                            "or leave it out")
        return _distinct_levels(levels)

    def _context(self, series: Series, where: str) -> tuple[torch.Tensor, OwnScale]:
        """The newest rows [L, C] on their own scale, and that scale."""
        context = series.values[-self.settings.data.test_context:]
        scale = OwnScale.of(context[-scale_length(self.model, len(context)):])
        scaled = scale.apply(context)
        if (far := too_far(scaled)).any():
            name = shorten(series.names[int(far.long().argmax())])
            raise UserError(f"{where}: {name} has values in the context that are too far from its newest ones: correct "
                            "them, or give a shorter `context`")
        return scaled, scale

    def caveats(self) -> list[str]:
        """What a reader should know of these models on any series."""
        run, context = self.settings.run, self.settings.data.test_context
        notes = caveats(self.model, self.checkpoint, context)
        if self.draft is not None:
            notes += caveats(self.draft, str(run.draft_checkpoint), context)
        if isinstance(self.model, ForeignModel):
            notes.append(f"{self.model.label} is given values in standard deviations from the mean of the context")
        elif not self.model.config.use_norm:
            notes.append("a model without normalisation expects values in the scale of its own training "
                         "data; it is given yours in standard deviations from the mean of the context")
        return notes

    def law(self, calibrate: Callable[[], Calibration], samples: int, notes: list[str]) -> TargetLaw:
        """That of the target's errors, which `calibrate` finds, or of `sigma`."""
        spec = self.settings.spec.filled()
        law = TargetLaw.fixed(float(spec.sigma or 0))
        if spec.sigma_mode == "calibrated":
            found = calibrate()
            law = found.law_of(spec.width)
            notes.append(f"quantiles come from {samples} paths, with noise fitted to the target's errors on "
                         f"{found.held_out['windows']:.0f} recent windows; {found.describe(spec.width)}")
        else:
            notes.append(f"quantiles come from {samples} paths, with noise of `sigma` {law.factor.item():g} standard "
                         "deviations of the context, which is not fitted to the target's errors")
        if samples < ENOUGH_PATHS:
            notes.append(f"with {samples} paths the outermost quantiles are just the lowest and the highest path: set "
                         f"`num_samples` to {ENOUGH_PATHS} or more")
        return law.scaled(spec.temp)

    def _refuse_short(self, rows: int, where: str) -> None:
        context, patch = self.settings.data.test_context, self.model.patch_len
        if rows < context:
            shorter = f", or give `context` {rows // patch * patch}, a shorter one" if rows >= patch else ""
            raise UserError(f"{where}: {rows} rows, the context takes {context}: give a longer history{shorter}")

    def refuse_unfitting(self, variables: int, horizon: int, quantiles: int, where: str) -> None:
        """Refuses what cannot fit into memory, before anything of the size of the horizon is made."""
        data, samples = self.settings.data, self.settings.report.num_samples or 1
        windows, C = (min(variables, data.batch_size), 1) if data.univariate else (1, variables)
        shape = Shape(windows, C, data.test_context, horizon, samples)

        def needed(shape: Shape) -> float:
            paths = decoding_bytes(shape, self.model) if shape.samples > 1 else 0.0
            mean = decoding_bytes(replace(shape, samples=1), self.model, self.draft)
            written = output_bytes(shape.horizon, variables, quantiles if shape.samples > 1 else 0)
            return max(paths, mean, written)
        refuse_unfitting(needed, shape, self.device, f"{where}: a forecast of {variables} series, {horizon} steps "
                         "ahead,")

    def method(self, horizon: int, law: TargetLaw | None) -> Method:
        if not self.settings.run.use_speculative:
            return AloneMethod(self.model, horizon)
        rule = make_rule(self.settings.spec, law, emit="mean")
        return make_speculative(self.model, self.draft, self.settings.spec, horizon, self.settings.run.seed, rule)

    def _decode(self, context: torch.Tensor, horizon: int, sampler: Sampler | None, levels: tuple[float, ...],
                law: TargetLaw | None):
        """context [L, C] -> mean and quantiles [1 + Q, H, C], all standardised, origin [C, n], cost.

        One window of C variables, or C windows of one for a univariate model.
        """
        data = self.settings.data
        windows = context.T[..., None] if data.univariate else context[None]
        method = self.method(horizon, law)
        cost = cost_of(method) if self.settings.run.use_speculative else None
        joined, origins = decode_windows(windows, horizon, data.batch_size, method, cost, sampler, levels,
                                         self.settings.run.quiet)
        by_variable = (joined[..., 0].mT if data.univariate else joined[:, 0]).double().cpu().numpy()
        origin = None if origins is None else origins.expand(context.shape[1], -1).numpy()
        return by_variable, origin, None if cost is None else cost.result()

    def _note_constants(self, forecast: Forecast, scale: OwnScale, series: Series) -> None:
        """A variable that is constant where it sets its scale has none: `scale` made its forecast that constant."""
        rows = scale_length(self.model, self.settings.data.test_context)
        for c in np.flatnonzero(scale.constant):
            forecast.notes.append(f"{shorten(series.names[c])} is {series.values[-1, c]:g} in all of the newest {rows} "
                                  "rows: its forecast is that constant, not the model's")

    def _of_covariates(self, forecast: Forecast) -> Forecast:
        forecast.notes.append(f"a model trained with covariates forecasts the last variable only, "
                              f"{shorten(forecast.names[-1])}; beyond one patch it uses its own forecasts of the "
                              "others")
        forecast.names, forecast.values = forecast.names[-1:], forecast.values[:, :, -1:]
        if forecast.origin is not None:
            forecast.origin = forecast.origin[-1:]
        return forecast
