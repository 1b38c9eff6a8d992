"""The planner: its expectation against a simulation, and decisions it must take."""
import numpy as np
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from utils import planner
from utils.acceptance import Coupling, Exact, Simplified, Tolerance
from utils.planner import StepCosts, make_plan, predict_ms
from utils.proposals import Noise
from utils.target_law import TargetLaw

COSTS = StepCosts({0: 10.0, 7: 17.0}, {0: 4.0, 7: 11.0}, {0: 0.0, 7: 14.0}, {0: 0.0, 7: 7.0})


def simulate(costs, acceptance, patches, most, generator):
    """One forecast: rounds of proposals, each accepted by a coin, until no patch is left."""
    left, total = patches, 0.0
    while left:
        k = min(most, left - 1)
        total += costs.round_ms(k, left == patches)
        coins = (torch.rand(k, generator=generator) < acceptance).tolist()
        left -= (coins + [False]).index(False) + 1
    return total


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 1, 3, 7])
@pytest.mark.parametrize("acceptance", [0.0, 0.6, 1.0])
def test_expected_time_is_the_mean_of_a_simulation(most, acceptance):
    generator = torch.Generator().manual_seed(0)
    runs = torch.tensor([simulate(COSTS, acceptance, 8, most, generator) for _ in range(4000)])
    # five standard errors of the mean: a false alarm in 12 such tests has a probability below 1e-5
    assert predict_ms(COSTS, acceptance, 8, most) == pytest.approx(float(runs.mean()),
                                                                   abs=5 * float(runs.std()) / 4000**0.5 + 1e-3)


def test_costs_between_the_measured_sizes_are_interpolated():
    assert COSTS.round_ms(0, True) == 10 and COSTS.round_ms(0, False) == 4
    assert COSTS.round_ms(7, True) == 31 and COSTS.round_ms(7, False) == 18
    assert COSTS.round_ms(3, False) == pytest.approx(4 + 3 + 3)


@pytest.mark.parametrize("sizes", [[0, 7], [0, 1, 7], [0, 1, 3, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_costs_are_interpolated_as_numpy_does(sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    first, later, draft_first, draft_later = (
        dict(zip(sizes, torch.rand(len(sizes), generator=generator, dtype=torch.float64).tolist())) for _ in range(4))
    costs = StepCosts(first, later, draft_first | {0: 0.0}, draft_later | {0: 0.0})
    for k in range(8):
        for is_first, parts in ((True, (costs.first, costs.draft_first)), (False, (costs.later, costs.draft_later))):
            expected = sum(np.interp(k, sizes, [part[size] for size in sizes]) for part in parts)
            assert costs.round_ms(k, is_first) == pytest.approx(expected, rel=1e-12)


def test_a_long_forecast_advances_by_the_closed_form_a_round():
    a, K, patches = 0.7, 3, 600
    flat = StepCosts({0: 1.0, K: 1.0}, {0: 1.0, K: 1.0}, {0: 0.0, K: 0.0}, {0: 0.0, K: 0.0})
    assert patches / predict_ms(flat, a, patches, K) == pytest.approx((1 - a**(K + 1)) / (1 - a), rel=0.01)


def plan(monkeypatch, series, costs, measured, tol=1e9):
    """The plan for given costs and given times {K: ms} of the check."""
    target = tiny_target()
    monkeypatch.setattr(planner, "measure_costs", lambda *_, **__: costs)
    monkeypatch.setattr(planner, "time_side_by_side",
                        lambda calls, *_, **__: {k: {"ms_median": measured(k)} for k in calls})
    return make_plan(target, tiny_draft(target), series(), 8 * PATCH, Tolerance(tol), seed=0)


def test_speculation_is_chosen_where_it_is_faster(monkeypatch, series):
    chosen = plan(monkeypatch, series, COSTS, lambda k: 6.0 if k else 12.0)
    assert chosen.acceptance == 1
    assert chosen.predicted[7] == pytest.approx(31 / 6)  # a batch of six in one round
    assert chosen.predicted[3] == pytest.approx((10 + 3 + 6 + 4 + 3 + 3) / 6)  # in two rounds, and cheaper
    assert chosen.proposals == 3
    assert chosen.checked == {0: 2.0, 3: 1.0}
    assert "K = 3" in chosen.describe()


@pytest.mark.parametrize("ratio", [0.98, 1.2])
def test_a_prediction_that_the_clock_does_not_confirm_is_dropped(monkeypatch, series, ratio):
    chosen = plan(monkeypatch, series, COSTS, lambda k: 10 * ratio if k else 10.0)
    assert chosen.proposals == 0 and "plain decoding" in chosen.describe()


def test_a_draft_that_is_never_accepted_is_not_asked(monkeypatch, series):
    chosen = plan(monkeypatch, series, COSTS, lambda k: pytest.fail("nothing to check"), tol=0.0)
    assert chosen.proposals == 0 and chosen.acceptance == 0 and chosen.checked == {}


@pytest.mark.parametrize("changes", [{}, {"norm_mode": "causal", "norm_window": 3}])
@pytest.mark.parametrize("rule", [Tolerance(0.2), Simplified(0.4), Exact(TargetLaw.fixed(0.4)),
                                  Coupling(TargetLaw.fixed(0.4))])
def test_a_plan_can_be_made_from_real_passes(series, changes, rule):
    target = tiny_target(**changes)
    chosen = make_plan(target, tiny_draft(target, patches=2), series(), 5 * PATCH, rule, seed=0)
    assert 0 <= chosen.proposals <= 4 and set(chosen.predicted) == {0, 1, 2, 3, 4}
    assert all(ms > 0 for ms in chosen.predicted.values())


@pytest.mark.parametrize("rule, repropose, each", [
    (Tolerance(0.0), "draft", 3), (Tolerance(0.0), "corrected", 1), (Tolerance(0.0), None, 3),
    (Coupling(TargetLaw.fixed(1e-4)), None, 1), (Coupling(TargetLaw.fixed(1e-4)), "draft", 3)])
def test_costs_are_of_as_many_draft_passes_as_proposals_take(monkeypatch, series, rule, repropose, each):
    target = tiny_target()
    draft, asked = tiny_draft(target, patches=3), []

    def measured(action, k, model, context, room):
        state, before = model.start(context, room), len(asked)
        action(state, k)
        if model is draft:
            assert len(asked) - before == -(-k // each)
        return 1.0, 1.0
    real = draft.extend
    monkeypatch.setattr(draft, "extend", lambda *of: asked.append(1) or real(*of))
    monkeypatch.setattr(planner, "_time_passes", measured)
    make_plan(target, draft, series(), 8 * PATCH, rule, seed=0, repropose=repropose)
    assert asked


def test_a_horizon_of_one_patch_needs_no_plan(series):
    chosen = make_plan(tiny_target(), None, series(), PATCH, Tolerance(0.3), seed=0)
    assert chosen.proposals == 0
    # nothing was measured: no acceptance and no times
    assert chosen.describe() == "planner, batch 6: so short a horizon leaves nothing to propose -> K = 0"


def test_a_plan_knows_nothing_of_the_noise_it_is_made_for(monkeypatch, series):
    drawn = []

    class Watched(Noise):
        @classmethod
        def draw(cls, *args):
            drawn.append(Noise.draw(*args))
            return drawn[-1]
    monkeypatch.setattr(planner, "Noise", Watched)
    target, context = tiny_target(), series(rows=4)
    make_plan(target, tiny_draft(target), context, 3 * PATCH, Coupling(TargetLaw.fixed(1.0)), seed=7)
    batch = Noise.draw(context, 3, PATCH, torch.Generator().manual_seed(7))  # as a method with this seed begins
    for name in ("proposal", "target", "uniform"):
        assert not (getattr(drawn[0], name) == getattr(batch, name)).any()
