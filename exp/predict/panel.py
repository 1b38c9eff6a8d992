"""Forecasts of a panel, some series at a time: each from its own last row, in batches of equal context.

Series are [S]; a context is the longest multiple of the patch that a series fills, up to that of the settings.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from data_provider.panel import PanelTable, Rows
from data_provider.panel_grid import NONE, Grids, grids_of, lengths_of
from data_provider.panel_holes import fill, on_grid
from data_provider.scaling import OwnScale, too_far
from exp.evaluate.methods import Method, SampledMethod, SpeculativeMethod
from exp.exp_basic import autocast
from exp.laws import law_of_windows, scale_length
from exp.panels import PanelSettings
from exp.predict.decoding import Cost, Sampler, cost_of, costs_of, decode_windows, sampled_by
from utils.errors import NotFinite, UserError, shorten
from utils.planner import Plan
from utils.scores import SpeculationMetrics
from utils.target_law import TargetLaw

if TYPE_CHECKING:
    from exp.predict.forecaster import Forecaster

LAW_SERIES, LAW_WINDOWS = 256, 8  # series, and windows of each, that a law is calibrated on
COUNTS = ("series", "forecast", "filled", "cells", "short", "raised", "below_zero", "unsorted")
COSTS = ("windows", *SpeculationMetrics.COUNTS)


@dataclass
class Prepared:
    """Series on their grids: ids [S], values [R] and starts [S + 1], holes filled in; known [R]: NaN where they are.

    missing [S]: cells that were not there; gaps [S]: they are still missing. bad: number of a series -> why it cannot
    be forecast. context [S]: steps. read: share of the table that is read so far.
    """

    ids: pd.Index
    values: np.ndarray
    known: np.ndarray
    starts: np.ndarray
    grids: Grids
    missing: np.ndarray
    gaps: np.ndarray
    bad: dict[int, str]
    context: np.ndarray
    read: float
    unsorted: int = 0
    contexts: list[Contexts] = field(default_factory=list)

    @property
    def usable(self) -> np.ndarray:
        good = ~self.gaps
        good[list(self.bad)] = False
        return np.flatnonzero(good)

    def windows(self, series: np.ndarray, length: int, before: np.ndarray | int = 0) -> np.ndarray:
        """The newest `length` values of some series [S', length], `before` steps from their ends."""
        ends = self.starts[series + 1] - before
        return self.values[(ends - length)[:, None] + np.arange(length)]


@dataclass
class Contexts:
    """The contexts of the series numbered `series` [S'], all of one length: values [S', L, 1] on their own scale."""

    series: np.ndarray
    values: torch.Tensor
    scale: OwnScale


@dataclass
class Batch:
    """Forecasts of the series numbered `series` [S'] of a `Prepared`: values [1 + Q, S', H]; origin [S', n] or None."""

    series: np.ndarray
    values: np.ndarray
    origin: np.ndarray | None
    counts: dict[str, int] = field(default_factory=dict)


class SeriesPaths(SampledMethod):
    """Paths of the target alone whose noise depends on the seed, the number of the series and `turn`, not on the batch.

    queue: numbers of the series whose windows come next. turn: which forecast of a series it is.
    """

    def __init__(self, model, horizon: int, law: TargetLaw, seed: int, samples: int):
        super().__init__(model, horizon, law, seed, samples)
        self.seed, self.queue, self.turn = seed, np.zeros(0, dtype=np.int64), 0

    def noise_for(self, context: torch.Tensor) -> torch.Tensor:
        shape = (self.samples, -(-self.horizon // self.model.patch_len), self.model.patch_len, 1)
        drawn = [np.random.default_rng((self.seed, int(number), self.turn)).standard_normal(shape, dtype=np.float32)
                 for number in self.queue[:len(context)]]
        return torch.from_numpy(np.stack(drawn)).to(context.device)

    def width_for(self, context: torch.Tensor) -> torch.Tensor | None:
        own, self.queue = self.queue[:len(context)], self.queue[len(context):]
        u = [np.random.default_rng((self.seed, int(number), self.turn, 1)).random(self.samples, dtype=np.float32)
             for number in own]
        return self.law.widths_of(torch.from_numpy(np.stack(u)).to(context.device))


class PanelForecaster:
    """Forecasts the series of one table, in the order in which they come.

    The law is fitted, and K is chosen, on the first of them. notes: what a reader should know. bad, gaps: (id, reason)
    and (id, missing values) of the series that were not forecast.
    """

    def __init__(self, forecaster: Forecaster, table: PanelTable, panel: PanelSettings, horizon: int,
                 levels: tuple[float, ...], sampler: Sampler | None = None):
        self.forecaster, self.table, self.panel, self.horizon = forecaster, table, panel, horizon
        self.where, settings = table.place.name, forecaster.settings
        self.given_sampler, self.samples = sampler, settings.report.num_samples
        self.levels = levels if sampler is not None or self.samples is not None else ()
        self.notes = forecaster.caveats()
        self.law: TargetLaw | None = None
        self.paths: SeriesPaths | None = None
        self._method: Method | None = None
        self.done = 0  # series so far
        self.bad, self.gaps = list[tuple[Any, str]](), list[tuple[Any, int]]()
        self.chosen: dict[str, int] | None = None
        forecaster.refuse_unfitting(settings.data.batch_size, horizon, len(self.levels), self.where)

    def walk(self, gathered: bool, finished: Collection[int] = (),
             plan: Mapping[str, int] | None = None) -> Iterator[tuple[int, float, Prepared | None, Batch | None]]:
        """(number, share of the table read so far, part, its forecasts) of all parts; None for `finished` ones.

        plan: what `chosen` was in the run that finished them. Raises Scattered, see `PanelTable.series`, and at the end
        UserError for series that cannot be forecast; after the first of them the others are only counted.
        """
        for number, part in enumerate(self._prepared(gathered, finished)):
            prepared = part if isinstance(part, Prepared) else None
            if prepared is not None and number == 0 and not self.refuses(*left_out(prepared)):
                self.begin(prepared, plan)
            if prepared is None or number in finished:
                self.done += len(part.ids)
                yield number, part.read, None, None
                continue
            bad, gaps = left_out(prepared)
            self.bad, self.gaps = self.bad + bad, self.gaps + gaps
            if not self.refuses(self.bad, self.gaps):
                yield number, prepared.read, prepared, self.forecast(prepared, number)
                self.done += len(prepared.ids)
        self.refuse()

    def _prepared(self, gathered: bool, finished: Collection[int]) -> Iterator[Prepared | Rows]:
        """The parts of the table; of finished ones, but for the first, the rows as they are."""
        for number, rows in enumerate(self.table.series(gathered)):
            if number and number in finished:
                yield rows
                continue
            yield self.examined(rows)

    def examined(self, rows: Rows) -> Prepared:
        prepared = self.prepare(rows)
        self.examine(prepared)
        return prepared

    def refuses(self, bad: Sized, gaps: Sized) -> bool:
        """Whether the run ends with an error because of series that were left out."""
        return bool(gaps) or bool(bad and self.panel.on_bad == "error")

    def prepare(self, rows: Rows) -> Prepared:
        """Whole series, put on their grids, with holes filled in if the settings say so."""
        clock, patch = self.table.times.clock, self.forecaster.model.patch_len
        assert clock is not None
        grids = grids_of(rows.ticks, rows.starts, clock)
        bad = dict(grids.problems)
        known, starts, missing = on_grid(rows.values, grids.position, rows.starts)
        values = self.filled(known, starts, grids)
        lengths = lengths_of(starts)
        context = np.minimum(lengths // patch * patch, self.forecaster.settings.data.test_context)
        told = np.where(grids.kind == NONE, lengths_of(rows.starts), lengths)
        for number in np.flatnonzero(lengths < patch):
            bad.setdefault(int(number), f"is too short: {told[number]} rows, a patch takes {patch}" if lengths[number]
                           else "has no values: all of its rows are missing ones")
        missing[list(bad)] = 0
        gaps = missing > 0 if self.panel.missing == "error" else np.zeros(len(missing), dtype=bool)
        return Prepared(rows.ids, values, known, starts, grids, missing, gaps, bad, context, rows.read, rows.unsorted)

    def filled(self, known: np.ndarray, starts: np.ndarray, grids: Grids) -> np.ndarray:
        """Values [R] on their grids without NaN, if the settings say so."""
        return known if self.panel.missing == "error" else fill(known, starts, self.panel.missing, grids.seasons())

    def begin(self, prepared: Prepared, plan: Mapping[str, int] | None = None) -> None:
        """Fits the law and chooses K on these series. plan: to be chosen again."""
        forecaster, settings = self.forecaster, self.forecaster.settings
        law = None
        if self.samples is not None:
            law = forecaster.law(lambda: law_of_windows(forecaster.model, self._law_windows(prepared), settings.data,
                                                        settings.spec.filled(), self.where, forecaster.device),
                                 self.samples, self.notes)
        self.use(law, plan)
        if settings.spec.k == "auto" and plan is None:
            self.use(law, self._plan(prepared))

    def use(self, law: TargetLaw | None, plan: Mapping[str, int] | None) -> None:
        """Forecasts from now on by a law that was fitted, and a K that was chosen, before."""
        forecaster = self.forecaster
        self.law, self.chosen = law, None if plan is None else dict(plan)
        if law is not None and self.samples is not None:
            self.paths = SeriesPaths(forecaster.model, self.horizon, law, forecaster.settings.run.seed, self.samples)
        self._method = forecaster.method(self.horizon, law)
        if plan is not None:
            assert isinstance(self._method, SpeculativeMethod)
            self._method.plans = {plan["batch"]: Plan(plan["proposals"], plan["batch"], 0.0, {})}

    def _plan(self, prepared: Prepared) -> dict[str, int]:
        """K for batches of this panel, by measurement on one of them."""
        if not prepared.contexts:
            raise UserError(f"{self.where}: `k` auto measures on the first series, of which none can be forecast: give "
                            "a number")
        common = max(prepared.contexts, key=lambda contexts: len(contexts.series))
        some = common.values[:self.forecaster.settings.data.batch_size]
        assert self._method is not None
        with autocast(self.forecaster.settings.run, self.forecaster.device):
            plan = self._method.plan(some.to(self.forecaster.device))
        assert plan is not None
        self.notes.append(f"`k` auto measured on {len(some)} series with a context of {some.shape[1]} steps: "
                          f"{plan.describe('these series')}")
        return {"batch": len(some), "proposals": plan.proposals}

    def _law_windows(self, prepared: Prepared) -> np.ndarray:
        """[W, context + P]: the newest windows of series that lie next to each other in the table."""
        patch, usable = self.forecaster.model.patch_len, prepared.usable
        lengths = lengths_of(prepared.starts)[usable]
        context = np.minimum((lengths - patch) // patch * patch, self.forecaster.settings.data.test_context)
        if not len(context) or context.max() < patch:
            raise UserError(f"{self.where}: none of the first series that can be forecast has two patches "
                            f"({2 * patch} rows) to calibrate a law on: give `sigma`, or leave out `num_samples`")
        # the longest context that half of the series have
        common = int(max(np.sort(context)[len(context) // 2], patch))
        some = usable[context >= common][:LAW_SERIES]
        spare = lengths_of(prepared.starts)[some] - common - patch
        back = (np.minimum(spare, patch)[:, None] * np.arange(LAW_WINDOWS)[::-1] // LAW_WINDOWS)
        return prepared.windows(np.repeat(some, LAW_WINDOWS), common + patch, back.ravel())

    def examine(self, prepared: Prepared) -> None:
        """Puts the contexts of all usable series on their scales, and adds to `bad` those for which that is no use."""
        usable = prepared.usable
        for length in np.unique(prepared.context[usable])[::-1]:
            some = usable[prepared.context[usable] == length]
            windows = prepared.windows(some, int(length))[..., None]
            found = self.scaled(windows)
            bad = self._unscalable(windows[..., 0], found)
            if bad:
                prepared.bad |= {int(some[place]): reason for place, reason in bad.items()}
                good = np.delete(np.arange(len(some)), list(bad))
                some, found = some[good], self.scaled(windows[good]) if len(good) else found
            if len(some):
                prepared.contexts.append(Contexts(some, *found))

    def scaled(self, windows: np.ndarray) -> tuple[torch.Tensor, OwnScale]:
        """windows [B, L, 1] on the scale of their newest values, and that scale."""
        scale = OwnScale.of(windows[:, -scale_length(self.forecaster.model, windows.shape[1]):])
        return scale.apply(windows), scale

    def _unscalable(self, windows: np.ndarray, found: tuple[torch.Tensor, OwnScale]) -> dict[int, str]:
        """Places of windows [B, L] that cannot be put on the scale of their newest values -> why."""
        values, scale = found
        constant, far = scale.constant[:, 0], too_far(values)[:, 0].numpy()
        rows = scale_length(self.forecaster.model, windows.shape[1])
        bad = dict.fromkeys(np.flatnonzero(constant).tolist(), f"is constant in all of its newest {rows} rows")
        for place in np.flatnonzero(far & ~constant).tolist():
            bad[place] = "has values in the context that are too far from its newest ones"
        lowest = self.forecaster.settings.report.clip_min
        if lowest is not None:
            for place in np.flatnonzero(windows.max(axis=1) < lowest).tolist():
                bad.setdefault(place, f"is below `clip_min` {lowest:g} in all of its context")
        return bad

    def forecast(self, prepared: Prepared, number: int) -> Batch:
        """Forecasts of all usable series of an examined part, the `number`-th of the table."""
        usable = prepared.usable
        place = np.zeros(len(prepared.ids), dtype=np.int64)
        place[usable] = np.arange(len(usable))
        values, origin = np.empty((1 + len(self.levels), len(usable), self.horizon)), None
        method, cost = self.fresh_method(number), self.cost()
        for contexts in prepared.contexts:
            own, found = self.decode(contexts, prepared.ids, method, cost)
            values[:, place[contexts.series]] = own
            if found is not None:
                origin = np.zeros((len(usable), found.shape[1]), dtype=found.dtype) if origin is None else origin
                origin[place[contexts.series]] = found
        counts = self._counts(prepared, usable, values) | costs_of(cost)
        return Batch(usable, values, origin, counts)

    def cost(self) -> Cost | None:
        assert self._method is not None
        return cost_of(self._method) if self.forecaster.settings.run.use_speculative else None

    def fresh_method(self, number: int) -> Method:
        """One whose random numbers depend on the part of the table, so that a resumed run draws the same ones."""
        assert self._method is not None
        method = self._method.again()
        if isinstance(method, SpeculativeMethod):
            method.generator.manual_seed(self.forecaster.settings.run.seed + number)
        return method

    def decode(self, contexts: Contexts, ids: pd.Index, method: Method,
               cost: Cost | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Values [1 + Q, S', H] in the units of the series, and origin [S', n]; ids: of all series of this part."""
        forecaster, settings, series = self.forecaster, self.forecaster.settings, contexts.series
        sampler = self.given_sampler
        if self.paths is not None and sampler is None:
            self.paths.queue = self.done + series
            sampler = sampled_by(self.paths)
        with autocast(settings.run, forecaster.device):
            try:
                found, origin = decode_windows(contexts.values.to(forecaster.device), self.horizon,
                                               settings.data.batch_size, method, cost, sampler, self.levels, quiet=True)
            except NotFinite as error:
                error.place = f"{self.where}, {shorten(ids[series[error.window]])}"
                raise
        values = contexts.scale.back(found.double().cpu().numpy())[..., 0]
        if not np.isfinite(values).all():
            worst = int(np.isfinite(values).all(axis=(0, 2)).argmin())
            raise UserError(f"{self.where}, {shorten(ids[series[worst]])}: the forecast does not fit into float64 "
                            "in the unit of the series: rescale it")
        return values, None if origin is None else origin.numpy()

    def _counts(self, prepared: Prepared, usable: np.ndarray, values: np.ndarray) -> dict[str, int]:
        """Raises values to `clip_min`, and counts what the notes tell."""
        lowest, raised = self.forecaster.settings.report.clip_min, 0
        if lowest is not None:
            under = values < lowest
            raised = int(under.any(axis=(0, 2)).sum())
            values[under] = lowest
        smallest = np.minimum.reduceat(prepared.values, prepared.starts[:-1])[usable] if len(usable) and \
            (lengths_of(prepared.starts) > 0).all() else np.full(len(usable), -1.0)
        missing, trained = prepared.missing[usable], self.forecaster.settings.data.test_context
        return {"series": len(prepared.ids), "forecast": len(usable), "filled": int((missing > 0).sum()),
                "cells": int(missing.sum()), "short": int((prepared.context[usable] < trained).sum()), "raised": raised,
                "below_zero": int(((smallest >= 0) & (values.min(axis=(0, 2), initial=0.0) < 0)).sum()),
                "unsorted": prepared.unsorted}

    def notes_of(self, counts: Mapping[str, int]) -> list[str]:
        """What the counts of all parts tell a reader."""
        settings, found = self.forecaster.settings, list(self.notes)
        said = {
            "unsorted": "the rows of {} series were not in order of time, and were sorted",
            "filled": f"{{}} series had {counts.get('cells', 0)} missing values, filled in by `missing` "
                      f"{self.panel.missing}",
            "short": f"{{}} series are shorter than the {settings.data.test_context} steps of context: theirs is the "
                     "longest multiple of the patch that they fill",
            "raised": "forecasts of {} series were below `clip_min` and are raised to it",
            "below_zero": "{} series never fell below 0, but their forecast or one of its quantiles does: `clip_min` 0 "
                          "prevents that"}
        found += [text.format(counts[name]) for name, text in said.items() if counts.get(name)]
        return found

    def refuse(self) -> None:
        if self.gaps:
            cells = sum(count for _, count in self.gaps)
            raise UserError(f"{self.where}: {len(self.gaps)} series have {cells} missing values: "
                            f"{_some([f'{shorten(name)} {count}' for name, count in self.gaps])}; `missing` "
                            "interpolate, last or seasonal fills them in")
        if self.bad and self.panel.on_bad == "error":
            raise UserError(f"{self.where}: {len(self.bad)} series cannot be forecast: "
                            f"{_some([f'{shorten(name)} {reason}' for name, reason in self.bad])}; `on_bad` skip "
                            "leaves them out")


def left_out(prepared: Prepared) -> tuple[list[tuple[Any, str]], list[tuple[Any, int]]]:
    """(id, reason) and (id, missing values) of the series of a part that are not forecast."""
    return ([(prepared.ids[i], prepared.bad[i]) for i in sorted(prepared.bad)],
            [(prepared.ids[i], int(prepared.missing[i])) for i in np.flatnonzero(prepared.gaps)])


def added(total: dict[str, int], counts: Mapping[str, int]) -> dict[str, int]:
    return {name: total.get(name, 0) + counts.get(name, 0) for name in {*total, *counts}}


def _some(words: list[str], most: int = 5) -> str:
    return "; ".join(words[:most]) + (f"; and {len(words) - most} more" if len(words) > most else "")
