"""Chooses the number of proposals per round, from measured step costs and acceptance on validation windows.

With acceptance a for each proposal, a round with K proposals advances (1 - a^(K+1)) / (1 - a) patches on average,
capped at the patches left. `predict_ms` computes the expected time of a forecast from that, patch by patch; `make_plan`
takes the best K, then times it against plain decoding (K = 0) on the same windows: speculation is used only if it wins.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from .decoded import Decoded
from .interface import Model, Rule, State
from .proposals import Noise
from .proposer import source_of
from .speculative_decoder import decode_alone, decode_speculative, patches_in
from .timing import Stopwatch, time_side_by_side

PAYS_FROM = 0.97  # share of the time of plain decoding; closer than this the clock cannot tell them apart
# added to the seed: K must not depend on the noise that the first batch is decoded with, or its law is not kept
OWN_STREAM = 2_000_000_011
CHECKS, SLOW_CHECKS, SLOW_MS = 5, 2, 2000.0  # forecasts timed of each kind; fewer where a batch takes long


@dataclass
class StepCosts:
    """Milliseconds per pass of the whole batch, by number of proposals k.

    first, later: target pass over context + k proposals, and over 1 + k patches; draft_first, draft_later: all draft
    passes that k proposals take.
    """

    first: dict[int, float]
    later: dict[int, float]
    draft_first: dict[int, float]
    draft_later: dict[int, float]

    def round_ms(self, k: int, is_first: bool) -> float:
        target, draft = (self.first, self.draft_first) if is_first else (self.later, self.draft_later)
        return _between(target, k) + (_between(draft, k) if k else 0.0)


def _between(costs: dict[int, float], k: int) -> float:
    """Linear interpolation between measured sizes, the smallest and the largest of which bound k."""
    below = max(size for size in costs if size <= k)
    above = min(size for size in costs if size >= k)
    if below == above:
        return costs[k]
    return costs[below] + (costs[above] - costs[below]) * (k - below) / (above - below)


def predict_ms(costs: StepCosts, acceptance: float, patches: int, most: int, first_proposes: bool = True) -> float:
    """Expected milliseconds of a forecast of `patches` with at most `most` proposals per round.

    first_proposes: whether the first round has proposals; those of a target's own heads come out of it.
    """
    expected = [0.0] * (patches + 1)  # by patches left
    for left in range(1, patches + 1):
        is_first = left == patches
        k = min(most, left - 1) if first_proposes or not is_first else 0
        lengths = [acceptance**j * (1 - acceptance) for j in range(k)] + [acceptance**k]
        after = sum(p * expected[left - j - 1] for j, p in enumerate(lengths))
        expected[left] = costs.round_ms(k, is_first) + after
    return expected[patches]


@dataclass
class Plan:
    """The chosen number of proposals (0: plain decoding), and the figures behind it. Times are ms per forecast."""

    proposals: int
    batch: int
    acceptance: float
    predicted: dict[int, float]
    checked: dict[int, float] = field(default_factory=dict)

    def describe(self, windows: str = "validation windows") -> str:
        """windows: what it was measured on."""
        if len(self.predicted) == 1:
            return f"planner, batch {self.batch}: so short a horizon leaves nothing to propose -> K = 0"
        best = min(self.predicted, key=lambda k: self.predicted[k])
        text = (f"planner, batch {self.batch}: acceptance {100 * self.acceptance:.1f} % on {windows}; "
                f"predicted {self.predicted[0]:.2f} ms plain, {self.predicted[best]:.2f} ms with K = {best}")
        if self.checked:
            checked = ", ".join(f"{ms:.2f} ms " + (f"with K = {k}" if k else "plain") for k, ms in self.checked.items())
            text += f"; measured {checked}"
        return text + (f" -> K = {self.proposals}" if self.proposals else " -> K = 0, plain decoding of the target")


@torch.inference_mode()
def make_plan(target: Model, draft: Model | None, context: torch.Tensor, horizon: int, rule: Rule, seed: int,
              repropose: str | None = None) -> Plan:
    """Measures on context [B, L, C], one batch of validation windows, and decides. draft, repropose: as for the
    decoder."""
    n, B = patches_in(horizon, target.patch_len), len(context)
    own = 1 if draft is not None else 2  # patches that are the target's own whatever is accepted
    if n <= own:
        return Plan(0, B, 0.0, {0: 0.0})
    most = n - 1 if draft is not None else min(n - own, target.heads_ahead)
    generator = torch.Generator().manual_seed(seed + OWN_STREAM)
    law = getattr(rule, "law", None)
    noise = Noise.draw(context, n, target.patch_len, generator, law) if rule.random else None

    def speculate(k: int) -> Decoded:
        return decode_speculative(target, draft, context, horizon, rule, k, noise, repropose=repropose)

    seen = speculate(most)
    assert seen.accepted is not None and seen.judged is not None
    acceptance = float(seen.accepted.sum() / seen.judged.sum())
    source = source_of(rule, repropose, of_heads=draft is None)
    costs = measure_costs(target, draft, context, n, one_by_one=source == "corrected")
    predicted = {k: predict_ms(costs, acceptance, n, k, draft is not None) / B for k in range(most + 1)}
    best = min(predicted, key=lambda k: predicted[k])
    plan = Plan(0, B, acceptance, predicted)
    if best:
        calls: dict[int, Callable[[None], object]] = {0: lambda _: decode_alone(target, context, horizon),
                                                      best: lambda _: speculate(best)}
        checks = CHECKS if predicted[0] * B < SLOW_MS else SLOW_CHECKS
        timed = time_side_by_side(calls, [None] * checks, context.device, warm_up=1)
        plan.checked = {k: timed[k]["ms_median"] / B for k in calls}
        if plan.checked[best] < PAYS_FROM * plan.checked[0]:
            plan.proposals = best
    return plan


def measure_costs(target: Model, draft: Model | None, context: torch.Tensor, n: int,
                  one_by_one: bool = False) -> StepCosts:
    """Median cost of passes with 0, a few and n - 1 proposals; values in between are interpolated.

    draft None: proposals cost nothing beside the target's passes. one_by_one: as for `proposer.drafted`.
    """
    sizes = sorted({0, 1, (n - 1) // 2, n - 1})
    patches = context[:, None, :target.patch_len].expand(-1, n, -1, -1)
    free = dict.fromkeys(sizes if draft is None else [0], 0.0)
    costs = StepCosts({}, {}, dict(free), dict(free))

    def verify(state: State, k: int) -> None:
        target.extend(state, patches[:, :k] if k else None)

    def propose(state: State, k: int) -> None:
        assert draft is not None
        made = 0
        while made < k:
            ahead = draft.extend(state).first(1 if one_by_one else k - made).mean
            state.append(ahead)
            made += ahead.shape[1]
    for k in sizes:
        costs.first[k], costs.later[k] = _time_passes(verify, k, target, context, n + k)
        if k and draft is not None:
            costs.draft_first[k], costs.draft_later[k] = _time_passes(propose, k, draft, context, n + k)
    return costs


def _time_passes(action: Callable[[State, int], None], k: int, model: Model, context: torch.Tensor,
                 room: int) -> tuple[float, float]:
    """Median ms of `action` on a fresh state, and on one that has encoded the context and holds one new patch."""
    watch = Stopwatch(context.device)
    firsts: list[float] = []
    laters: list[float] = []
    begin = torch.zeros(len(context), dtype=torch.long, device=context.device)
    for _ in range(4):
        state = model.start(context, room)
        with watch:
            action(state, k)
        firsts.append(1000 * watch.seconds)
        state.rollback(begin)
        state.append(context[:, None, :model.patch_len])
        with watch:
            action(state, k)
        laters.append(1000 * watch.seconds)
        if firsts[0] > SLOW_MS / 4:  # warm-up matters for short passes only
            return firsts[0], laters[0]
    return median(firsts[1:]), median(laters[1:])
