"""Ladders of settings, measured on windows that the target forecasts too: what a promise chooses from.

A ladder is a sequence of settings from the safest on, fixed beforehand; the target alone stands before its first step.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from exp.evaluate.evaluation import scored
from exp.evaluate.methods import AloneMethod, PararealMethod, SpeculativeMethod
from exp.exp_basic import Exp_Basic
from utils.acceptance import Certified, Parareal, Tolerance
from utils.errors import NotFinite
from utils.fidelity import deviations, passes_until, rms_of_gaps
from utils.speculative_decoder import decode_parareal

CERTAIN = (0.25, 0.5, 1.0, 2.0)  # certificates at which windows stop, and
TOLERANCES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # tolerances, in budgets
WINDOW, SERIES = "window", "series"  # deviations are in standard deviations of it


@dataclass
class Step:
    """A setting of a ladder, measured: in words, its rule, and by window the deviation and the target passes."""

    words: str
    rule: Any
    deviation: torch.Tensor
    passes: torch.Tensor
    record: dict[str, Any] = field(default_factory=dict)


class Measured:
    """The ladders of a method on windows that the target forecasts too; `own` has its forecasts of them [W, H, C]."""

    def __init__(self, experiment: Exp_Basic, method: SpeculativeMethod, budget: float, unit: str,
                 dataset, windows: Sequence[int], what: str):
        self.experiment, self.method, self.budget, self.unit = experiment, method, budget, unit
        self.dataset, self.windows, self.what = dataset, list(windows), what
        self.own = torch.zeros(0)
        self.passes = 0.0  # of the target, a window: what measuring has cost

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

    def unit_of(self, context: torch.Tensor) -> torch.Tensor | None:
        unit = AloneMethod(self.method.target, self.method.horizon).unit_of(context)
        return None if self.unit == SERIES else self._scored(unit)

    def _scored(self, series: torch.Tensor) -> torch.Tensor:
        return scored(series, self.experiment.settings.model.config.covariate)

    def by_pass(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of parareal: deviation and RMS of the gaps after every pass but the last, both [n - 1, W]; sets `own`."""
        def measure(start: int, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            made: list[tuple[torch.Tensor, torch.Tensor]] = []
            decode_parareal(self.method.target, self.method.draft, context, self.method.horizon,
                            observer=lambda forecast, gap: made.append((forecast, rms_of_gaps(gap))))
            (*before, last), unit = [self._scored(forecast) for forecast, _ in made], self.unit_of(context)
            found = [torch.stack([deviations(each, last, unit), gap]) for each, (_, gap) in zip(before, made)]
            return torch.stack(found, dim=1).cpu(), made[-1][0].cpu()
        parts, own = zip(*self.each(measure, self.what))
        self.own, self.passes = torch.cat(own), float(self.method.patches)
        deviation, gap = torch.cat(parts, dim=2)
        return deviation, gap

    def ladders(self, constants: Sequence[float] | None) -> dict[str, Iterator[Step]]:
        """constants: of certificates, for parareal. Steps are measured as they are asked for."""
        if not isinstance(self.method, PararealMethod):
            return {"tolerances": self._tolerances()}
        deviation, gap = self.by_pass()
        found = {"passes": self._passes(deviation)}
        return found if constants is None else found | {"certificates": self._certified(deviation, gap, constants)}

    def _passes(self, deviation: torch.Tensor) -> Iterator[Step]:
        for passes in range(len(deviation), 0, -1):
            yield Step(f"{passes} pass{'es' if passes > 1 else ''} each", Parareal(passes, 0.0),
                       deviation[passes - 1], torch.full(deviation.shape[1:], float(passes)),
                       {"spec_passes": passes, "spec_tol": 0.0})

    def _certified(self, deviation: torch.Tensor, gap: torch.Tensor, constants: Sequence[float]) -> Iterator[Step]:
        exact = torch.cat([deviation, torch.zeros_like(deviation[:1])])
        for times in CERTAIN:
            limit = times * self.budget
            passes = passes_until(gap, constants, limit)
            yield Step(f"each window by its own certificate, at {limit:.4g}", Certified(constants, limit),
                       exact.gather(0, passes[None] - 1)[0], passes.double(),
                       {"certificate": limit, "constants": list(constants)})

    def _tolerances(self) -> Iterator[Step]:
        alone = AloneMethod(self.method.target, self.method.horizon)
        self.own = torch.cat(self.each(lambda start, context: alone.forecast(context).cpu(),
                                       f"{self.what}: the target alone"))
        self.passes = float(self.method.patches)
        for times in TOLERANCES:
            rule = Tolerance(times * self.budget)
            method = self.method.again(rule)

            def measure(start: int, context: torch.Tensor, method: SpeculativeMethod = method) -> torch.Tensor:
                decoded, own = method.decode(context), self.own[start:start + len(context)].to(context.device)
                found = deviations(self._scored(decoded.forecast), self._scored(own), self.unit_of(context))
                assert decoded.target_passes is not None
                return torch.stack([found, decoded.target_passes.double()]).cpu()
            deviation, passes = torch.cat(self.each(measure, f"{self.what}: tolerance {rule.tol:.3g}"), dim=1)
            self.passes += float(passes.mean())
            yield Step(f"a tolerance of {rule.tol:.4g}", rule, deviation, passes, {"spec_tol": rule.tol})
