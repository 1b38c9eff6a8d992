"""Ladders of settings, measured on windows that the target forecasts too: what a promise chooses from.

A ladder is a sequence of settings from the safest on, fixed beforehand; the target alone stands before its first step.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from exp.evaluate.evaluation import scored
from exp.evaluate.methods import AloneMethod, PararealMethod, SpeculativeMethod
from exp.exp_basic import Exp_Basic
from utils.acceptance import Certified, Parareal, Tolerance
from utils.errors import NotFinite
from utils.fidelity import deviations, passes_until, rms_of_gaps
from utils.speculative_decoder import decode_alone, decode_parareal

CERTAIN = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # certificates at which windows stop, and
TOLERANCES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # tolerances, in budgets
WINDOW, SERIES = "window", "series"  # deviations are in standard deviations of it


@dataclass(frozen=True)
class Step:
    """A setting of a ladder, measured: in words, its rule, and by window the deviation and the target passes.

    cost: target passes a window that measuring it took; record: what metrics.json says of it.
    """

    words: str
    rule: Any
    deviation: torch.Tensor
    passes: torch.Tensor
    cost: float
    record: dict[str, Any]

    def of(self, windows: torch.Tensor) -> Step:
        """The same, measured on some of the windows."""
        return replace(self, deviation=self.deviation[windows], passes=self.passes[windows])


class Measured:
    """The ladders of a method on windows of a data set that the target forecasts too.

    unit: what deviations are measured in; what: the word for the windows in progress bars and errors. own: the target's
    forecasts [W, H, C], known once a ladder was begun.
    """

    def __init__(self, experiment: Exp_Basic, method: SpeculativeMethod, unit: str, dataset, windows: Sequence[int],
                 what: str):
        self.experiment, self.method, self.unit = experiment, method, unit
        self.dataset, self.windows, self.what = dataset, list(windows), what
        self.own: torch.Tensor | None = None
        self._by_pass: tuple[torch.Tensor, torch.Tensor] | None = None
        self._last = torch.zeros(1, 0)  # the deviation [1, W] after the last pass

    def each(self, work: Callable[[int, torch.Tensor], Any], what: str) -> list[Any]:
        """work(number of the first window, contexts) of every batch; errors name the window in its data."""
        size, found = self.experiment.settings.data.batch_size, []
        starts = range(0, len(self.windows), size)
        for start in tqdm(starts, desc=what, unit="batch", disable=self.experiment.settings.run.quiet):
            windows = self.windows[start:start + size]
            try:
                found.append(work(start, self.dataset.__getitems__(windows)[0].to(self.experiment.device)))
            except NotFinite as error:
                error.place = f"window {windows[error.window]} (counted from 0) of its {self.what}"
                raise
        return found

    @property
    def rounds(self) -> bool:
        """True where the same forecast by passes of other sizes differs by more than float32 rounds."""
        return self.experiment.settings.run.bf16 or self.experiment.settings.run.amp

    def unit_of(self, context: torch.Tensor) -> torch.Tensor | None:
        unit = AloneMethod(self.method.target, self.method.horizon).unit_of(context)
        return None if self.unit == SERIES else self._scored(unit)

    def _scored(self, series: torch.Tensor) -> torch.Tensor:
        return scored(series, self.experiment.settings.model.config.covariate)

    def by_pass(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of parareal: deviation and RMS of the gaps after every pass but the last, both [n - 1, W]; decoded once.

        The last pass is the target's own forecast, but for rounding: in a lower precision the target decodes alone too.
        """
        method = self.method
        assert isinstance(method, PararealMethod)

        def measure(start: int, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            made: list[tuple[torch.Tensor, torch.Tensor]] = []
            decode_parareal(method.target, method.draft, context, method.horizon,
                            observer=lambda forecast, gap: made.append((forecast, rms_of_gaps(gap))))
            own = decode_alone(self.method.target, context, self.method.horizon) if self.rounds else made[-1][0]
            unit = self.unit_of(context)
            found = [torch.stack([deviations(self._scored(forecast), self._scored(own), unit), gap])
                     for forecast, gap in made]
            return torch.stack(found, dim=1).cpu(), own.cpu()
        if self._by_pass is None:
            parts, own = zip(*self.each(measure, self.what))
            self.own = torch.cat(own)
            deviation, gap = torch.cat(parts, dim=2)
            self._by_pass, self._last = (deviation[:-1], gap[:-1]), deviation[-1:]
        return self._by_pass

    def ladders(self, budget: float, constants: Sequence[float] | None = None) -> list[Iterator[Step]]:
        """Steps are measured as they are asked for. constants: of parareal's certificates, None: without them."""
        if not isinstance(self.method, PararealMethod):
            return [self._tolerances(budget)]
        return [self._passes()] + ([] if constants is None else [self._certified(budget, constants)])

    def _passes(self) -> Iterator[Step]:
        deviation, _ = self.by_pass()
        cost = float(self.method.patches) if self.rounds else 0.0
        for passes in range(len(deviation), 0, -1):
            yield Step(f"{passes} pass{'es' if passes > 1 else ''} each", Parareal(passes, 0.0), deviation[passes - 1],
                       torch.full(deviation.shape[1:], float(passes)), cost, {"spec_passes": passes, "spec_tol": 0.0})
            cost = 0.0

    def _certified(self, budget: float, constants: Sequence[float]) -> Iterator[Step]:
        deviation, gap = self.by_pass()
        whole = torch.cat([deviation, self._last])
        for times in CERTAIN:
            limit = times * budget
            passes = passes_until(gap, constants, limit)
            yield Step(f"each window by its own certificate, at {limit:.4g}", Certified(constants, limit),
                       whole.gather(0, passes[None] - 1)[0], passes.double(), 0.0,
                       {"certificate": limit, "constants": list(constants)})

    def _tolerances(self, budget: float) -> Iterator[Step]:
        own = self._alone()
        for times in TOLERANCES:
            rule = Tolerance(times * budget)
            method = self.method.again(rule)

            def measure(start: int, context: torch.Tensor, method: SpeculativeMethod = method) -> torch.Tensor:
                decoded, wanted = method.decode(context), own[start:start + len(context)].to(context.device)
                found = deviations(self._scored(decoded.forecast), self._scored(wanted), self.unit_of(context))
                assert decoded.target_passes is not None
                return torch.stack([found, decoded.target_passes.double()]).cpu()
            deviation, passes = torch.cat(self.each(measure, f"{self.what}: tolerance {rule.tol:.3g}"), dim=1)
            yield Step(f"a tolerance of {rule.tol:.4g}", rule, deviation, passes, float(passes.mean()),
                       {"spec_tol": rule.tol})

    def _alone(self) -> torch.Tensor:
        if self.own is None:
            alone = AloneMethod(self.method.target, self.method.horizon)
            self.own = torch.cat(self.each(lambda start, context: alone.forecast(context).cpu(),
                                           f"{self.what}: the target alone"))
        return self.own
