"""A method whose setting was chosen by a promise; audited windows have the target's own forecasts."""
from __future__ import annotations

import copy
from dataclasses import fields
from typing import Any

import torch

from exp.evaluate.methods import Method, Observer, PararealMethod, SpeculativeMethod
from utils.decoded import BONUS, Decoded
from utils.interface import Rule
from utils.speculative_decoder import decode_alone
from utils.timing import TracedModel


class PromisedMethod(Method):
    """`method` with the rule that was chosen for it, None being the target alone.

    audited [m], ascending, own [m, H, C]: windows of the walk that have been audited, and their forecasts by the target
    alone.
    """

    def __init__(self, method: SpeculativeMethod, rule: Any, audited: torch.Tensor | None = None,
                 own: torch.Tensor | None = None):
        self.method, self.rule, self.next = method.again(rule), rule, 0
        self.audited, self.own = audited, own

    def at(self, window: int) -> None:
        self.next = window

    def traced(self, device: torch.device) -> tuple[Method, list[TracedModel]]:
        traced = copy.copy(self)
        method, models = self.method.traced(device)
        assert isinstance(method, SpeculativeMethod)
        traced.method = method
        return traced, models

    def again(self, rule: Rule | None = None, samples: int = 1) -> PromisedMethod:
        """Without the audit: for windows of another walk. The rule stays the one that was chosen."""
        return PromisedMethod(self.method, self.rule)

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        windows = torch.arange(self.next, self.next + len(context))
        forecast = context.new_zeros(len(context), self.method.horizon, context.shape[2])
        others = torch.ones_like(windows, dtype=torch.bool)
        if self.audited is not None and self.own is not None:
            others = ~torch.isin(windows, self.audited)
            forecast[~others] = self.own[torch.searchsorted(self.audited, windows[~others])].to(context.device)
        rows = others.nonzero()[:, 0].to(context.device)
        asked, taken = (context, rows) if self._recorded else (context[rows], slice(None))
        if self.rule is None and len(rows):
            forecast[rows] = decode_alone(self.method.target, asked, self.method.horizon)[taken]
        whole = self._alone(forecast)
        if self.rule is not None and len(rows):
            self._replace(whole, rows, self.method.decode(asked, observer), taken)
        return whole

    @property
    def _recorded(self) -> bool:
        """True where each size of a batch is recorded by itself: then audited windows are decoded with the others."""
        fixed = self.rule is None or isinstance(self.method, PararealMethod)
        return fixed and getattr(self.method.target, "graphs", None) is not None

    def _alone(self, forecast: torch.Tensor) -> Decoded:
        """The target's own forecasts [B, H, C], with the counts of speculation that proposes nothing."""
        n = self.method.patches
        passes = torch.full((len(forecast),), n, device=forecast.device)
        none = torch.zeros(4, len(forecast), dtype=torch.long, device=forecast.device)
        if isinstance(self.method, PararealMethod):
            return Decoded(forecast, passes, none[0], gap=forecast.new_zeros(len(forecast), n - 1))
        return Decoded(forecast, passes, none[0], accepted=none[1], judged=none[2], proposed=none[3],
                       origin=torch.full((len(forecast), n), BONUS, device=forecast.device),
                       draft_mean=torch.full_like(forecast, float("nan")),
                       draft_sigma=torch.full_like(forecast, float("nan")), lengths=torch.tensor([len(forecast) * n]))

    def _replace(self, whole: Decoded, rows: torch.Tensor, part: Decoded, taken: torch.Tensor | slice) -> None:
        """Puts the rows `taken` of what the rule decoded into `rows` of `whole`, in which nothing was proposed."""
        if part.lengths is not None:
            whole.lengths = part.lengths.clone()
            whole.lengths[0] += self.method.patches * (len(whole.forecast) - len(rows))
        for each in fields(Decoded):
            values, into = getattr(part, each.name), getattr(whole, each.name)
            if values is None:
                setattr(whole, each.name, None)
            elif into is not None and each.name != "lengths":
                into[rows] = values[taken].to(into.dtype)
