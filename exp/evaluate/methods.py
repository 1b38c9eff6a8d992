"""Forecasting methods. Each maps a context [B, L, C] to a `Decoded` and holds its own horizon and settings."""
from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from exp.speculation import SpecSettings
from utils.acceptance import WAYS, Parareal, Simplified
from utils.decoded import BONUS, Decoded, Round
from utils.growth import widened
from utils.interface import Model, Rule
from utils.planner import Plan, make_plan
from utils.proposals import Noise
from utils.proposer import source_of
from utils.speculative_decoder import (
    decode_alone,
    decode_parareal,
    decode_speculative,
    patches_in,
    sample_alone,
)
from utils.target_law import TargetLaw
from utils.timing import TracedModel

DEFAULT_PROPOSALS = 3  # per round, of the published rule
Observer = Callable[[Round], None]


class Method(ABC):
    """A forecasting method."""

    @abstractmethod
    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        """context [B, L, C] -> forecasts [B, H, C] and their cost; observer sees every round of a speculative one."""

    def forecast(self, context: torch.Tensor) -> torch.Tensor:
        return self.decode(context).forecast

    def unit_of(self, context: torch.Tensor) -> torch.Tensor | None:
        """The standard deviation [B, 1, C] that the model normalises each window and variable by; None without one."""
        return None

    parts: tuple[str, ...] = ()  # the attributes that hold models

    def traced(self, device: torch.device) -> tuple[Method, list[TracedModel]]:
        """The same with its models' passes timed, and the timed models."""
        method = copy.copy(self)
        models = {part: TracedModel(getattr(self, part), device) for part in self.parts
                  if getattr(self, part) is not None}
        for part, model in models.items():
            setattr(method, part, model)
        return method, list(models.values())

    def at(self, window: int) -> None:  # noqa: B027 (most methods look at a context alone)
        """Tells that the next context is that of this window of a walk, counted from 0."""

    def skip(self, windows: int, variables: int) -> None:  # noqa: B027 (most methods draw nothing)
        """Passes over a batch that another process decodes: later ones must get the noise that they would have had."""

    def reset(self) -> None:  # noqa: B027 (most methods learn nothing)
        """Forgets everything learned from earlier batches."""

    def again(self, rule: Rule | None = None, samples: int = 1) -> Method:
        """A fresh copy; a speculative method can get another rule and several forecasts per window."""
        return self

    def sampled(self, spec: SpecSettings, law: TargetLaw, seed: int, samples: int) -> Method:
        """The same method, sampling `samples` paths per window from the target's law."""
        raise NotImplementedError(f"{type(self).__name__} has no law to sample from")

    def plan(self, context: torch.Tensor) -> Plan | None:
        """Chooses K by measurement on context [B, L, C]; None if there is nothing to choose."""
        return None


class AloneMethod(Method):
    """One model alone; passes of a draft are counted as draft passes."""

    parts = ("model",)

    def __init__(self, model: Model, horizon: int, is_draft: bool = False):
        self.model, self.horizon, self.is_draft = model, horizon, is_draft

    @property
    def passes(self) -> int:
        """Number of passes; each yields one patch, or as many as the model's heads predict."""
        return -(-patches_in(self.horizon, self.model.patch_len) // self.model.patches_ahead)

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        passes = torch.full((len(context),), self.passes, device=context.device)
        counts: dict[str, Any] = {"draft_passes" if self.is_draft else "target_passes": passes}
        return Decoded(decode_alone(self.model, context, self.horizon), **counts)

    def unit_of(self, context: torch.Tensor) -> torch.Tensor:
        return self.model.start(context, room=1).unit[:, 0]

    def sampled(self, spec: SpecSettings, law: TargetLaw, seed: int, samples: int) -> SampledMethod:
        return SampledMethod(self.model, self.horizon, law, seed, samples)


class SeasonalNaiveMethod(Method):
    """Repeats the last season of the context, which must hold one. seasons [W]: steps per season of every window."""

    def __init__(self, seasons: torch.Tensor, horizon: int):
        self.seasons, self.horizon, self.next = seasons, horizon, 0

    def at(self, window: int) -> None:
        self.next = window

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        batch, steps = torch.arange(len(context)), torch.arange(self.horizon)
        season = self.seasons[(self.next + batch) % len(self.seasons), None]
        place = context.shape[1] - season + steps % season
        return Decoded(context[batch[:, None], place])


class SpeculativeMethod(Method):
    """Draft and target together; or, with draft None, a target with longer heads of its own.

    samples: forecasts per window, in adjacent rows. adaptive: K follows the acceptance of earlier batches, one step at
    a time, between 1 and max_proposals. plans: batch size -> Plan; a batch uses the K of the plan nearest to its size.
    """

    parts = ("target", "draft")

    def __init__(self, target: Model, draft: Model | None, horizon: int, rule: Rule, max_proposals: int | None,
                 seed: int, adaptive: bool = False, repropose: str | None = None, samples: int = 1):
        self.target, self.draft, self.horizon, self.rule = target, draft, horizon, rule
        self.seed, self.adaptive, self.samples = seed, adaptive, samples
        self.repropose = source_of(rule, repropose, of_heads=draft is None)
        self.generator = torch.Generator().manual_seed(seed)
        self.patches = patches_in(horizon, target.patch_len)
        most = max(1, self.patches - 1 if draft is not None else min(self.patches - 2, target.heads_ahead))
        self.most = most if max_proposals is None else min(max_proposals, most)
        self.plans: dict[int, Plan] = {}
        self.reset()

    def reset(self) -> None:
        """Forgets what `adaptive` has learned."""
        self.max_proposals = self.most

    def again(self, rule: Rule | None = None, samples: int = 1) -> SpeculativeMethod:
        """A fresh copy with the same pair and plans: noise from the seed, nothing learned."""
        method = copy.copy(self)
        method.rule, method.samples, method.plans = rule or self.rule, samples, dict(self.plans)
        method.generator = torch.Generator().manual_seed(self.seed)
        method.reset()
        return method

    def sampled(self, spec: SpecSettings, law: TargetLaw, seed: int, samples: int) -> SampledSpeculativeMethod:
        return SampledSpeculativeMethod(self.again(make_rule(spec, law, emit="sample"), samples))

    def plan(self, context: torch.Tensor) -> Plan:
        """Chooses K for batches of this size by measurement on context [B, L, C]."""
        plan = make_plan(self.target, self.draft, context, self.horizon, self.rule, self.seed, self.repropose)
        self.plans[len(context)] = plan
        return plan

    def proposals_for(self, batch: int) -> int:
        if not self.plans:
            return self.max_proposals
        return self.plans[min(self.plans, key=lambda size: abs(size - batch))].proposals

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        proposals = self.proposals_for(len(context) * self.samples)
        if self._is_plain(proposals):
            return self._plain(context)
        noise = None
        if self.rule.random:
            rows = context.repeat_interleave(self.samples, dim=0)
            law = getattr(self.rule, "law", None)
            noise = Noise.draw(rows, self.patches, self.target.patch_len, self.generator, law)
        decoded = decode_speculative(self.target, self.draft, context, self.horizon, self.rule, proposals, noise,
                                     observer, self.repropose, self.samples)
        if self.adaptive:
            self._adapt(decoded)
        return decoded

    def skip(self, windows: int, variables: int) -> None:
        rows = windows * self.samples
        if self.rule.random and not self._is_plain(self.proposals_for(rows)):
            Noise.skip(rows, variables, self.patches, self.target.patch_len, self.generator,
                       getattr(self.rule, "law", None))

    def _is_plain(self, proposals: int) -> bool:
        return proposals == 0 and getattr(self.rule, "emit", "mean") == "mean"

    def _plain(self, context: torch.Tensor) -> Decoded:
        """K = 0: the target alone, without a proposal."""
        none = torch.zeros(len(context), dtype=torch.long, device=context.device)
        forecast = decode_alone(self.target, context, self.horizon)
        return Decoded(forecast, target_passes=none + self.patches, draft_passes=none, accepted=none, judged=none,
                       proposed=none, origin=torch.full((len(context), self.patches), BONUS),
                       draft_mean=torch.full_like(forecast, float("nan")),
                       lengths=torch.tensor([len(context) * self.patches]))

    def _adapt(self, decoded: Decoded) -> None:
        assert decoded.accepted is not None and decoded.judged is not None
        rate = decoded.accepted.sum() / decoded.judged.sum().clamp(min=1)
        step = 1 if rate >= 0.8 else -1 if rate <= 0.5 else 0
        self.max_proposals = min(self.most, max(1, self.max_proposals + step))


class PararealMethod(SpeculativeMethod):
    """Draft and target together, by parareal: there is no K, and nothing is judged."""

    draft: Any  # never None
    rule: Any

    def __init__(self, target: Model, draft: Model, horizon: int, rule: Parareal, seed: int):
        super().__init__(target, draft, horizon, rule, None, seed)  # type: ignore[arg-type]

    def plan(self, context: torch.Tensor) -> None:  # type: ignore[override]
        """There is nothing to choose."""

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        return decode_parareal(self.target, self.draft, context, self.horizon, self.rule.passes, self.rule.tol,
                               constants=self.rule.constants)

    def sampled(self, spec: SpecSettings, law: TargetLaw, seed: int,  # type: ignore[override]
                samples: int) -> SampledPararealMethod:
        return SampledPararealMethod(self, law, seed, samples)


class SampledMethod(Method):
    """Paths of the target alone, and their mean; the paths of a window do not depend on its batch."""

    def __init__(self, model: Model, horizon: int, law: TargetLaw, seed: int, samples: int):
        self.model, self.horizon, self.law, self.samples = model, horizon, law, samples
        self.generator = np.random.default_rng(seed)  # draws one by one, in the order of the windows
        self.width_generator = np.random.default_rng((seed, 1))

    def noise_for(self, context: torch.Tensor) -> torch.Tensor:
        """Standard normal [B, S, n, P, C] of the next B windows."""
        return torch.from_numpy(self._normal(len(context), context.shape[2])).to(context.device)

    def width_for(self, context: torch.Tensor) -> torch.Tensor | None:
        """The widths [B, S, C] of the paths of the next B windows; None for a law without."""
        return self.law.widths_of(torch.from_numpy(self._uniform(len(context))).to(context.device))

    def skip(self, windows: int, variables: int) -> None:
        self._normal(windows, variables)
        self._uniform(windows)

    def _normal(self, windows: int, variables: int) -> np.ndarray:
        P = self.model.patch_len
        shape = (windows, self.samples, patches_in(self.horizon, P), P, variables)
        return self.generator.standard_normal(shape, dtype=np.float32)

    def _uniform(self, windows: int) -> np.ndarray:
        return self.width_generator.random((windows, self.samples), dtype=np.float32)

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        paths = sample_alone(self.model, context, self.horizon, self.law, self.noise_for(context),
                             self.width_for(context))[0]
        return Decoded(paths.mean(dim=1), paths=paths)


class SampledPararealMethod(SampledMethod):
    """Paths by parareal, which converge to those of `SampledMethod` with the same seed."""

    def __init__(self, method: PararealMethod, law: TargetLaw, seed: int, samples: int):
        super().__init__(method.target, method.horizon, law, seed, samples)
        self.draft, self.rule = method.draft, method.rule

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        # one path of each window tells the mean divergence of all without bias
        decoded = decode_parareal(self.model, self.draft, context, self.horizon, self.rule.passes, self.rule.tol,
                                  self.law, self.noise_for(context), self.width_for(context),
                                  audit=0 if self.rule.tol > 0 else 1)
        decoded.paths = decoded.forecast.unflatten(0, (-1, self.samples))
        decoded.forecast = decoded.paths.mean(dim=1)
        return decoded


class SampledSpeculativeMethod(Method):
    """Paths by a sampling rule, `method.samples` per window."""

    def __init__(self, method: SpeculativeMethod):
        self.method = method

    def skip(self, windows: int, variables: int) -> None:
        self.method.skip(windows, variables)

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        decoded = self.method.decode(context, observer)
        decoded.paths = decoded.forecast.unflatten(0, (-1, self.method.samples))
        decoded.forecast = decoded.paths.mean(dim=1)
        return decoded


class WidenedMethod(Method):
    """Paths of another method, spread about their mean by growth [n], a factor for every patch of `patch_len` steps."""

    def __init__(self, method: Method, growth: torch.Tensor, patch_len: int):
        self.method, self.growth, self.patch_len = method, growth, patch_len

    def skip(self, windows: int, variables: int) -> None:
        self.method.skip(windows, variables)

    def decode(self, context: torch.Tensor, observer: Observer | None = None) -> Decoded:
        decoded = self.method.decode(context, observer)
        assert decoded.paths is not None
        decoded.paths = widened(decoded.paths, self.growth, self.patch_len)
        return decoded


def make_rule(spec: SpecSettings, law: TargetLaw | None = None, rule: str | None = None,
              emit: str | None = None) -> Rule:
    """The rule of the settings; rule, emit: use another rule or emission with the same settings.

    law: the target's law, for a rule that preserves it; default: white noise of `sigma` times `temp`.
    """
    spec, name = spec.filled(), rule or spec.rule
    emit = emit or (spec.emission if name == spec.rule else SpecSettings(rule=name).emission)
    known = vars(spec) | {"emit": emit, "law": law or TargetLaw.fixed(float(spec.sigma or 0)).scaled(spec.temp)}
    kind: Any = WAYS[name]
    return kind(**{name: known[name] for name in inspect.signature(kind).parameters})


def make_speculative(target: Model, draft: Model | None, spec: SpecSettings, horizon: int, seed: int,
                     rule: Rule | None = None) -> SpeculativeMethod:
    """The speculative method of the settings; rule: another one than theirs; draft None: the target's own heads."""
    rule = rule or make_rule(spec)
    if isinstance(rule, Parareal):
        assert draft is not None, "refused with the settings"
        return PararealMethod(target, draft, horizon, rule, seed)
    own = DEFAULT_PROPOSALS if rule.name == Simplified.name else None
    most = own if spec.k is None else None if spec.k == "auto" else int(spec.k)
    asked = None if rule.random and spec.repropose == "target" else spec.repropose
    return SpeculativeMethod(target, draft, horizon, rule, most, seed, spec.adaptive, asked)
