"""How many proposals a round pay here? Decided from costs measured on this device and acceptance on validation windows.

With acceptance a for each proposal, a round with K proposals advances (1 - a^(K+1)) / (1 - a) patches on average,
capped at the patches left. `predict_ms` computes the expected time of a forecast from that, patch by patch; `make_plan`
takes the best K, then times it against plain decoding (K = 0) on the same windows: speculation is used only if it wins.
"""
from dataclasses import dataclass, field

import numpy as np
import torch

from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_speculative, patches_in
from utils.timing import Stopwatch, time_side_by_side

PAYS_FROM = 0.97  # of the time of plain decoding: nearer than this the clock cannot tell them apart
CHECKS, SLOW_CHECKS, SLOW_MS = 5, 2, 2000.0  # forecasts timed of each kind; fewer where a batch takes long


@dataclass
class StepCosts:
    """Milliseconds of a pass. Each maps a number of proposals to the time of a pass of the whole batch.

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
    sizes = sorted(costs)
    return float(np.interp(k, sizes, [costs[size] for size in sizes]))


def predict_ms(costs: StepCosts, acceptance: float, patches: int, most: int) -> float:
    """Expected milliseconds of a forecast of `patches` with at most `most` proposals a round."""
    expected = [0.0] * (patches + 1)  # of what is left after the first round
    for left in range(1, patches + 1):
        is_first = left == patches
        k = min(most, left - 1)
        lengths = [acceptance**j * (1 - acceptance) for j in range(k)] + [acceptance**k]
        after = sum(p * expected[left - j - 1] for j, p in enumerate(lengths))
        expected[left] = costs.round_ms(k, is_first) + after
    return expected[patches]


@dataclass
class Plan:
    """The chosen number of proposals (0: plain decoding), and what it was chosen from. Times are ms per forecast."""

    proposals: int
    batch: int
    acceptance: float
    predicted: dict[int, float]
    checked: dict[int, float] = field(default_factory=dict)

    def describe(self) -> str:
        best = min(self.predicted, key=self.predicted.get)
        text = (f"planner, batch {self.batch}: acceptance {100 * self.acceptance:.1f} % on validation windows; "
                f"predicted {self.predicted[0]:.2f} ms plain, {self.predicted[best]:.2f} ms with K = {best}")
        if self.checked:
            checked = ", ".join(f"{ms:.2f} ms " + (f"with K = {k}" if k else "plain") for k, ms in self.checked.items())
            text += f"; measured {checked}"
        return text + (f" -> K = {self.proposals}" if self.proposals else " -> K = 0, plain decoding of the target")


@torch.inference_mode()
def make_plan(target, draft, context: torch.Tensor, horizon: int, rule, seed: int, repropose: str = "draft") -> Plan:
    """Measures on context [B, L, C], validation windows as many as a batch has, and decides."""
    n, B = patches_in(horizon, target.patch_len), len(context)
    if n == 1:  # the only patch is the target's own
        return Plan(0, B, 0.0, {0: 0.0})
    noise = Noise.draw(context, n, target.patch_len, torch.Generator().manual_seed(seed)) if rule.random else None

    def speculate(k):
        return decode_speculative(target, draft, context, horizon, rule, k, noise, repropose=repropose)

    seen = speculate(n - 1)
    acceptance = float(seen.accepted.sum() / seen.judged.sum())
    costs = measure_costs(target, draft, context, n)
    predicted = {k: predict_ms(costs, acceptance, n, k) / B for k in range(n)}
    best = min(predicted, key=predicted.get)
    plan = Plan(0, B, acceptance, predicted)
    if best:
        calls = {0: lambda _: decode_alone(target, context, horizon), best: lambda _: speculate(best)}
        checks = CHECKS if predicted[0] * B < SLOW_MS else SLOW_CHECKS
        timed = time_side_by_side(calls, [None] * checks, context.device, warm_up=1)
        plan.checked = {k: timed[k]["ms_median"] / B for k in calls}
        if plan.checked[best] < PAYS_FROM * plan.checked[0]:
            plan.proposals = best
    return plan


def measure_costs(target, draft, context: torch.Tensor, n: int) -> StepCosts:
    """Median cost of passes with 0, a few and n - 1 proposals; what lies between is interpolated."""
    sizes = sorted({0, 1, (n - 1) // 2, n - 1})
    patches = target.to_patches(context[:, :target.patch_len]).expand(-1, n, -1, -1)
    costs = StepCosts({}, {}, {0: 0.0}, {0: 0.0})
    for k in sizes:
        first, later = _time_passes(lambda state, k=k: target.extend(state, patches[:, :k] if k else None),
                                    target, context, n + k)
        costs.first[k], costs.later[k] = first, later
        if k:
            def propose(state, k=k):
                made = 0
                while made < k:
                    ahead = draft.extend(state).first(k - made).mean
                    state.append(ahead)
                    made += ahead.shape[1]
            costs.draft_first[k], costs.draft_later[k] = _time_passes(propose, draft, context, n + k)
    return costs


def _time_passes(action, model, context, room: int) -> tuple[float, float]:
    """Median ms of `action` on a fresh state, and on one that knows the context and one new patch."""
    watch, firsts, laters = Stopwatch(context.device), [], []
    begin = torch.zeros(len(context), dtype=torch.long, device=context.device)
    for _ in range(4):
        state = model.start(context, room)
        with watch:
            action(state)
        firsts.append(1000 * watch.seconds)
        state.rollback(begin)
        state.append(model.to_patches(context[:, :model.patch_len]))
        with watch:
            action(state)
        laters.append(1000 * watch.seconds)
        if firsts[0] > SLOW_MS / 4:  # a warm-up matters to short passes only
            return firsts[0], laters[0]
    return float(np.median(firsts[1:])), float(np.median(laters[1:]))
