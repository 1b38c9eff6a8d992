"""A target's own longer heads as the draft: against the slow decoder, and what must hold of any forecast."""
import pytest
import torch
from foreign_models import Attention, C, Forward, N, P, Recurrent
from helpers import PATCH, tiny_draft, tiny_target, with_heads
from reference.decoder import reference_speculation

from utils import planner
from utils.acceptance import Simplified, Tolerance
from utils.adapters import FromCache, FromForward
from utils.decoded import ACCEPTED, BONUS, REJECTED
from utils.errors import NotFinite
from utils.interface import Prediction
from utils.lossless import Coupling, Exact
from utils.planner import StepCosts, make_plan, predict_ms
from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_parareal, decode_speculative, sample_alone
from utils.target_law import TargetLaw

AHEAD, HORIZON = 3, 7 * PATCH + 3  # the last patch is cut, and the heads do not reach it
PATCHES = 8
CAUSAL = {"norm_mode": "causal", "norm_window": 4}
NAMES = {REJECTED: "rejected", ACCEPTED: "accepted", BONUS: "bonus"}
TOL = {"window": 0.11, "cache": 0.2}  # with these the rows differ
CASES = {
    "sampled": (Simplified(0.6), {"rule": "simplified", "sigma": 0.6, "emit": "sample"}),
    "exact": (Exact(TargetLaw.fixed(0.6)), {"rule": "exact", "sigma": 0.6, "emit": "sample"}),
    "coupling": (Coupling(TargetLaw.fixed(0.6)), {"rule": "coupling", "sigma": 0.6, "emit": "sample"}),
    "coupling, mean": (Coupling(TargetLaw.fixed(0.6), "mean"), {"rule": "coupling", "sigma": 0.6, "emit": "mean"}),
}


@pytest.fixture(scope="module", params=[{}, CAUSAL], ids=["window", "cache"])
def target(request):
    return with_heads(tiny_target(**request.param), AHEAD)


def draw(context, seed=7):
    return Noise.draw(context, PATCHES, PATCH, torch.Generator().manual_seed(seed))


def case_of(case, target):
    """The rule, and its settings for the slow decoder."""
    tol = TOL[target.rolling]
    return (Tolerance(tol), {"rule": "tolerance", "tol": tol}) if case == "tolerance" else CASES[case]


def ask(target, context, rule=None, K=None, horizon=HORIZON, **how):
    rule = rule or case_of("tolerance", target)[0]
    return decode_speculative(target, None, context, horizon, rule, K, draw(context) if rule.random else None, **how)


@pytest.mark.parametrize("K", [1, 2, None])
@pytest.mark.parametrize("case", ["tolerance", *CASES])
def test_heads_agree_with_the_slow_decoder(target, series, case, K):
    context, (rule, plain) = series(rows=8), case_of(case, target)
    fast, noise = ask(target, context, rule, K), draw(context)
    for row in range(len(context)):
        slow, origin, counts = reference_speculation(target, None, context[row], HORIZON, plain, K,
                                                     (noise.proposal[row], noise.target[row], noise.uniform[row]))
        torch.testing.assert_close(fast.forecast[row], slow, atol=5e-5, rtol=0)
        assert [NAMES[kind] for kind in fast.origin[row].tolist()] == origin
        assert {name: int(getattr(fast, name)[row]) for name in counts} == counts
    assert len(set(fast.accepted.tolist())) > 1, "the batch is not ragged"
    assert REJECTED in fast.origin and ACCEPTED in fast.origin and not fast.draft_passes.any()


def test_the_model_forecasts_as_it_does_without_heads(target, series):
    context, plain = series(), tiny_target(**target.config.as_dict())
    assert (target.heads_ahead, target.patches_ahead, plain.heads_ahead) == (AHEAD, 1, 0)
    assert torch.equal(decode_alone(target, context, HORIZON), decode_alone(plain, context, HORIZON))
    z = torch.randn(6, 2, PATCHES, PATCH, 3, generator=torch.Generator().manual_seed(0))
    law = TargetLaw.fixed(0.3)
    assert torch.equal(sample_alone(target, context, HORIZON, law, z)[0],
                       sample_alone(plain, context, HORIZON, law, z)[0])
    with torch.no_grad():
        assert torch.equal(target(context), plain(context))


def test_the_model_that_heads_are_given_to_stays_without(series):
    plain = tiny_target()
    names = set(plain.state_dict())
    first, second = with_heads(plain, 2), with_heads(plain, 5)
    assert (plain.heads_ahead, first.heads_ahead, second.heads_ahead) == (0, 2, 5) and plain.longer is None
    assert set(plain.state_dict()) == names and first.head.weight is plain.head.weight


def test_tolerance_zero_is_the_target_alone(target, series):
    decoded = ask(target, series(), Tolerance(0.0))
    torch.testing.assert_close(decoded.forecast, decode_alone(target, series(), HORIZON), atol=1e-5, rtol=0)
    assert decoded.target_passes.tolist() == [PATCHES] * 6 and not decoded.accepted.any()


@pytest.mark.parametrize("horizon, K, passes", [(HORIZON, None, 3), (HORIZON, 9, 3), (HORIZON, 1, 5), (HORIZON, 0, 8),
                                                (5 * PATCH, None, 2), (2 * PATCH, None, 2), (PATCH, None, 1)])
def test_what_is_always_accepted_saves_all_but_the_first_passes(target, series, horizon, K, passes):
    """One pass for the first patch; then each gives K proposals, at most as many as there are heads, and its own."""
    decoded = ask(target, series(), Tolerance(float("inf")), K, horizon)
    n = -(-horizon // PATCH)
    assert decoded.target_passes.tolist() == [passes] * 6 and decoded.accepted.tolist() == [n - passes] * 6
    assert len(decoded.lengths) == 1 + min(n - 1, AHEAD, n - 1 if K is None else K)
    assert int(decoded.lengths.sum()) == 6 * passes


@pytest.mark.parametrize("case", ["tolerance", "coupling"])
def test_a_batch_is_its_rows_one_by_one(target, series, case):
    context, rule = series(rows=8), case_of(case, target)[0]
    whole, noise = ask(target, context, rule), draw(context)
    assert len(set(whole.target_passes.tolist())) > 1, "no row finished early"
    for row in range(8):
        own = Noise(*(part[row:row + 1] for part in (noise.proposal, noise.target, noise.uniform)))
        alone = decode_speculative(target, None, context[row:row + 1], HORIZON, rule, None,
                                   own if rule.random else None)
        torch.testing.assert_close(alone.forecast[0], whole.forecast[row], atol=5e-5, rtol=0)
        assert torch.equal(alone.origin[0], whole.origin[row])


def test_samples_are_the_forecasts_of_as_many_windows(target, series):
    context, rule = series(), CASES["coupling"][0]
    repeated = context.repeat_interleave(3, dim=0)
    expected = ask(target, repeated, rule)
    got = decode_speculative(target, None, context, HORIZON, rule, None, draw(repeated), samples=3)
    torch.testing.assert_close(got.forecast, expected.forecast, atol=5e-5, rtol=0)
    assert torch.equal(got.origin, expected.origin) and len(set(got.accepted.tolist())) > 1


def test_the_first_round_is_not_observed_and_the_others_are(target, series):
    seen = []
    decoded = ask(target, series(), observer=seen.append)
    assert seen[0].first.tolist() == [1] * 6 and int(decoded.target_passes.max()) - 2 <= len(seen)
    assert sum(int(judged.length.sum()) for judged in seen) == int(decoded.accepted.sum())


# --- what is refused

def test_without_a_draft_the_target_needs_heads(series):
    with pytest.raises(ValueError, match="no longer heads that could propose: give a draft"):
        decode_speculative(tiny_target(), None, series(), HORIZON, Tolerance(0.1))


@pytest.mark.parametrize("source", ["target", "corrected", "nothing"])
def test_another_source_of_proposals_is_refused(target, series, source):
    with pytest.raises(ValueError, match=f"repropose '{source}' goes with a draft"):
        ask(target, series(), repropose=source)


def test_parareal_needs_a_draft(target, series):
    with pytest.raises(ValueError, match="parareal asks its draft again .* give a draft, or use decode_speculative"):
        decode_parareal(target, None, series(), HORIZON)


def test_heads_that_are_not_finite_are_named(series):
    target = with_heads(tiny_target(), 1)
    with torch.no_grad():
        target.longer.heads.bias.fill_(float("nan"))
    with pytest.raises(NotFinite, match="the target's longer heads .*its output is not finite"):
        ask(target, series())
    assert ask(target, series(), K=0).forecast.isfinite().all()


# --- predictions

def test_parts_of_a_prediction_carry_what_is_ahead():
    mean = torch.arange(2.0 * 4 * 3 * 4 * 3).view(2, 4, 3, 4, 3)
    whole = Prediction.of_heads(mean, mean, torch.ones(2, 4, 1, 3), torch.ones(2, 1, 1, 3), heads_ahead=2)
    assert torch.equal(whole.mean, mean[:, :, 0]) and torch.equal(whole.logvar, mean[:, :, 0])
    assert torch.equal(whole.ahead, mean[:, :, 1:])
    assert torch.equal(whole.first(2).ahead, mean[:, :2, 1:])
    one = whole.at(torch.tensor([1, 0]), torch.tensor([3, 2]))
    assert torch.equal(one.ahead[:, 0], torch.stack([mean[1, 3, 1:], mean[0, 2, 1:]]))
    said = one.of_ahead()
    assert torch.equal(said.mean, one.ahead[:, 0]) and said.scale.shape == (2, 2, 1, 3) and said.ahead is None
    assert torch.equal(said.of_rows(torch.tensor([1])).mean, said.mean[1:])
    assert torch.equal(whole.of_rows(torch.tensor([1])).ahead, whole.ahead[1:])


# --- the planner

def test_the_expected_time_counts_a_first_round_without_proposals():
    costs = StepCosts({0: 10.0, 7: 17.0}, {0: 4.0, 7: 11.0}, {0: 0.0, 7: 0.0}, {0: 0.0, 7: 0.0})
    assert predict_ms(costs, 1.0, 8, 3, first_proposes=False) == pytest.approx(10 + 7 + 6)  # 1 + 4 + 3 patches
    assert predict_ms(costs, 0.0, 8, 7, first_proposes=False) == pytest.approx(10 + sum(range(4, 11)))


def test_a_plan_of_heads_has_no_more_proposals_than_heads(target, series, monkeypatch):
    monkeypatch.setattr(planner, "time_side_by_side", lambda calls, *_, **__: {
        k: {"ms_median": 6.0 if k else 12.0} for k in calls})
    plan = make_plan(target, None, series(), HORIZON, Tolerance(1e9), seed=0)
    assert set(plan.predicted) == {0, 1, 2, 3} and plan.acceptance == 1 and plan.proposals in (0, 1, 2, 3)
    assert make_plan(target, None, series(), 2 * PATCH, Tolerance(1e9), seed=0).predicted == {0: 0.0}


def test_proposals_of_heads_cost_no_draft(target, series):
    costs = planner.measure_costs(target, None, series(), PATCHES)
    assert set(costs.draft_first.values()) == set(costs.draft_later.values()) == {0.0}
    assert costs.round_ms(5, False) > 0


# --- foreign models

def ahead_of(mean):
    """Two patches after `mean` [..., P, C], as a foreign model's longer heads might say them: [..., 2, P, C]."""
    return torch.stack([mean + 0.1, 0.6 * mean], dim=-3)


def both(answer):
    return (answer, None) if isinstance(answer, torch.Tensor) else answer


def adapted(kind, heads_ahead, stochastic=False):
    toy = kind(stochastic=stochastic)

    def answered(*asked):
        answer = toy(*asked) if kind is Forward else toy.step(*asked)
        return (*both(answer), ahead_of(both(answer)[0])) if heads_ahead else answer
    if kind is Forward:
        return FromForward(answered, P, heads_ahead)
    select = toy.select if kind is Recurrent else None  # both ways to drop a row
    return FromCache(answered, P, toy.new_cache, toy.crop, select, normalise=kind is Recurrent, heads_ahead=heads_ahead)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("kind", [Forward, Recurrent, Attention])
def test_a_foreign_model_may_have_heads(kind, stochastic):
    generator = torch.Generator().manual_seed(3)
    context = torch.randn(6, N * P, C, generator=generator, dtype=torch.float64)
    context = context * torch.linspace(0.2, 2.0, 6, dtype=torch.float64)[:, None, None]
    model, plain, rule = adapted(kind, 2, stochastic), adapted(kind, 0, stochastic), Tolerance(0.45)
    alone = decode_alone(plain, context, 7 * P)
    assert torch.equal(decode_alone(model, context, 7 * P), alone)
    torch.testing.assert_close(decode_speculative(model, None, context, 7 * P, Tolerance(0.0)).forecast, alone,
                               atol=1e-9, rtol=0)
    decoded = decode_speculative(model, None, context, 7 * P, rule)
    assert len(set(decoded.accepted.tolist())) > 1 and REJECTED in decoded.origin
    state = model.start(context, 3)
    prediction = model.extend(state, context[:, :2 * P].unflatten(1, (2, P)))
    if kind is not Recurrent:  # its heads speak in normalised units
        torch.testing.assert_close(prediction.ahead, ahead_of(prediction.mean), atol=1e-9, rtol=0)
    assert prediction.ahead.shape == (6, 3, 2, P, C)
    for row in range(6):
        own = decode_speculative(model, None, context[row:row + 1], 7 * P, rule)
        torch.testing.assert_close(own.forecast[0], decoded.forecast[row], atol=1e-9, rtol=0)
        assert torch.equal(own.origin[0], decoded.origin[row])


def test_normalised_heads_are_denormalised_as_the_mean_is():
    context = 3 + 2 * torch.randn(2, N * P, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = adapted(Recurrent, 2)
    prediction = model.extend(model.start(context, 1))
    level, stdev = context.mean(1)[:, None, None], torch.sqrt(context.var(1, unbiased=False) + 1e-5)[:, None, None]
    normalised = (prediction.mean - level) / stdev
    torch.testing.assert_close((prediction.ahead - level[:, None]) / stdev[:, None], ahead_of(normalised))


def test_an_answer_without_the_heads_that_were_announced_is_refused():
    context = torch.zeros(2, N * P, C)
    with pytest.raises(ValueError, match=r"next_patch must return \(mean, logvar or None, ahead\), as heads_ahead"):
        decode_alone(FromForward(lambda window: window[:, -P:], P, 2), context, P)
    with pytest.raises(ValueError, match=r"patches ahead \[2, 3, 4, 2\], but must return \[2, 2, 4, 2\]"):
        decode_alone(FromForward(lambda window: (window[:, -P:], None, window.view(2, 3, P, C)), P, 2), context, P)
    with pytest.raises(ValueError, match="heads_ahead is -1"):
        FromForward(Forward(), P, -1)


def test_a_draft_is_asked_where_there_is_one(target, series):
    """Heads of the target do not stand in for a draft that is given."""
    draft = tiny_draft(target)
    with_them = decode_speculative(target, draft, series(), HORIZON, Tolerance(0.15))
    without = decode_speculative(tiny_target(**target.config.as_dict()), draft, series(), HORIZON, Tolerance(0.15))
    assert torch.equal(with_them.forecast, without.forecast) and with_them.draft_passes.all()
