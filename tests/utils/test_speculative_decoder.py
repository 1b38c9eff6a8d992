"""The fast, batched decoder against the slow one, and what must hold of any forecast."""
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.decoder import reference_speculation

from utils.acceptance import MeanRule, Simplified, Tolerance
from utils.decoded import ACCEPTED, BONUS, REJECTED
from utils.lossless import Coupling, Exact
from utils.proposals import Judgement, Noise
from utils.speculative_decoder import decode_alone, decode_speculative, patches_in
from utils.target_law import TargetLaw

HORIZON = 5 * PATCH + 3  # the last patch is cut
NAMES = {REJECTED: "rejected", ACCEPTED: "accepted", BONUS: "bonus"}
CASES = {
    "tolerance": (Tolerance(0.15), {"rule": "tolerance", "tol": 0.15}, True),
    "sampled": (Simplified(0.45), {"rule": "simplified", "sigma": 0.45, "emit": "sample"}, True),
    "mean": (Simplified(0.45, "mean"), {"rule": "simplified", "sigma": 0.45, "emit": "mean"}, True),
    "bias and temperature": (Simplified(0.42, bias=1e4, temp=1.1),
                             {"rule": "simplified", "sigma": 0.42, "emit": "sample", "bias": 1e4, "temp": 1.1}, True),
    "adaptive": (Simplified(0.45, "mean", sigma_mode="adaptive", adapt_c=10.0),
                 {"rule": "simplified", "sigma": 0.45, "emit": "mean", "sigma_mode": "adaptive", "adapt_c": 10.0},
                 True),
    "deterministic draft": (Simplified(0.3, bias=3.0),
                            {"rule": "simplified", "sigma": 0.3, "emit": "sample", "bias": 3.0}, False),
    "exact": (Exact(TargetLaw.fixed(0.45)), {"rule": "exact", "sigma": 0.45, "emit": "sample"}, True),
    "exact, temperature": (Exact(TargetLaw.fixed(0.4 * 1.5), temp=1.5),
                           {"rule": "exact", "sigma": 0.4, "emit": "sample", "temp": 1.5}, True),
    "exact, mean": (Exact(TargetLaw.fixed(0.45), "mean"), {"rule": "exact", "sigma": 0.45, "emit": "mean"}, True),
    "exact, deterministic draft": (Exact(TargetLaw.fixed(0.3)), {"rule": "exact", "sigma": 0.3, "emit": "sample"},
                                   False),
    "coupling": (Coupling(TargetLaw.fixed(0.4)), {"rule": "coupling", "sigma": 0.4, "emit": "sample"}, True),
    "coupling, mean": (Coupling(TargetLaw.fixed(0.4), "mean"), {"rule": "coupling", "sigma": 0.4, "emit": "mean"},
                       True),
    "threshold": (Simplified(0.1, "mean", mse_tol=0.03),
                  {"rule": "simplified", "sigma": 0.1, "emit": "mean", "mse_tol": 0.03}, False),
}


class Watched:
    """Counts a model's passes and the rows in each."""

    def __init__(self, model):
        self.model, self.patch_len, self.rows = model, model.patch_len, []

    def start(self, context, room):
        return self.model.start(context, room)

    def fan_out(self, state, samples):
        self.model.fan_out(state, samples)

    def extend(self, state, patches=None):
        self.rows.append(len(state.lengths))
        return self.model.extend(state, patches)


CAUSAL = {"norm_mode": "causal", "norm_window": 4}


@pytest.fixture(scope="module")
def pair():
    target = tiny_target()
    return target, {kind: tiny_draft(target, kind) for kind in (True, False)}


@pytest.fixture(scope="module")
def cached_pair():
    """A causal target, for which the cache is exact, with drafts that speak of 1 and of 3 patches."""
    target = tiny_target(**CAUSAL)
    return target, {patches: tiny_draft(target, patches=patches) for patches in (1, 3)}


def draw(context, n, seed=7):
    return Noise.draw(context, n, PATCH, torch.Generator().manual_seed(seed))


def assert_agrees_with_the_slow_one(target, draft, context, rule, plain, K, repropose="draft"):
    noise = draw(context, patches_in(HORIZON, PATCH))
    fast = decode_speculative(target, draft, context, HORIZON, rule, K, noise if rule.random else None,
                              repropose=repropose)
    for row in range(len(context)):
        own_noise = noise.proposal[row], noise.target[row], noise.uniform[row]
        slow, origin, counts = reference_speculation(target, draft, context[row], HORIZON, plain, K, own_noise,
                                                     repropose)
        # where two means nearly agree, coupling's reflection along their difference magnifies rounding
        torch.testing.assert_close(fast.forecast[row], slow, atol=5e-5, rtol=0)
        assert [NAMES[kind] for kind in fast.origin[row].tolist()] == origin
        assert {name: int(getattr(fast, name)[row]) for name in counts} == counts
    # without these the agreement would say little
    assert len(set(fast.accepted.tolist())) > 1, "the batch is not ragged"
    assert REJECTED in fast.origin and ACCEPTED in fast.origin


@pytest.mark.parametrize("K", [1, 2, 3, None])
@pytest.mark.parametrize("case", CASES)
def test_fast_decoder_agrees_with_the_slow_one(pair, series, case, K):
    rule, plain, stochastic = CASES[case]
    assert_agrees_with_the_slow_one(pair[0], pair[1][stochastic], series(rows=8), rule, plain, K)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2, 4, None])
@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("case", ["tolerance", "sampled", "mean", "exact", "coupling"])
def test_cached_decoding_agrees_with_the_slow_one(cached_pair, series, case, patches, K):
    assert_agrees_with_the_slow_one(cached_pair[0], cached_pair[1][patches], series(rows=12), *CASES[case][:2], K)


@pytest.mark.parametrize("K", [2, 3, None])
@pytest.mark.parametrize("patches", [1, 3])
def test_reproposing_target_means_agrees_with_the_slow_one(cached_pair, series, patches, K):
    tol = {1: 0.15, 3: 0.5}[patches]  # heads that say the same of three patches are far off
    assert_agrees_with_the_slow_one(cached_pair[0], cached_pair[1][patches], series(rows=12), Tolerance(tol),
                                    {"rule": "tolerance", "tol": tol}, K, "target")


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2, 3, None])
@pytest.mark.parametrize("patches", [1, 3])
@pytest.mark.parametrize("case", ["tolerance", "sampled", "exact", "coupling"])
def test_correcting_by_the_last_gap_agrees_with_the_slow_one(cached_pair, series, case, patches, K):
    tol = {1: 0.18, 3: 0.16}[patches]  # with these the rows differ
    rule, plain = (Tolerance(tol), {"rule": "tolerance", "tol": tol}) if case == "tolerance" else CASES[case][:2]
    assert_agrees_with_the_slow_one(cached_pair[0], cached_pair[1][patches], series(rows=12), rule, plain, K,
                                    "corrected")


def test_a_constant_error_is_corrected_after_one_round(cached_pair, series):
    target = cached_pair[0]

    class Shifted(Watched):
        def extend(self, state, patches=None):
            return super().extend(state, patches).shifted(torch.ones(()))

    decoded = decode_speculative(target, Shifted(target), series(rows=8), HORIZON, Tolerance(1e-3),
                                 repropose="corrected")
    # round 1: all of it is off by 1; round 2: the gap is the last one, but for what the shifted patches did later
    assert (decoded.origin[:, 0] == REJECTED).all() and (decoded.origin[:, 1] == ACCEPTED).all()


@pytest.mark.parametrize("rule, source", [
    (Coupling(TargetLaw.fixed(0.4)), "corrected"), (Exact(TargetLaw.fixed(0.45)), "corrected"),
    (Coupling(TargetLaw.fixed(0.4), "mean"), "corrected"), (Tolerance(0.1), "draft"), (Simplified(0.45), "draft")])
def test_unless_asked_proposals_come_from_the_best_source_for_the_rule(cached_pair, series, rule, source):
    target, draft, context = cached_pair[0], cached_pair[1][1], series(rows=8)

    def decoded(**how):
        return decode_speculative(target, draft, context, HORIZON, rule, None, draw(context, 6), **how)
    made, wanted, other = decoded(), decoded(repropose=source), decoded(
        repropose="draft" if source == "corrected" else "corrected")
    assert torch.equal(made.forecast, wanted.forecast) and torch.equal(made.target_passes, wanted.target_passes)
    assert not torch.equal(made.forecast, other.forecast)


def test_reproposing_asks_the_draft_once_if_all_is_proposed(cached_pair, series):
    draft = Watched(cached_pair[1][1])
    decoded = decode_speculative(cached_pair[0], draft, series(rows=8), HORIZON, Tolerance(0.05), repropose="target")
    assert decoded.target_passes.max() > 2
    assert set(decoded.draft_passes.tolist()) == {patches_in(HORIZON, PATCH) - 1}
    assert len(draft.rows) == patches_in(HORIZON, PATCH) - 1


def test_what_the_target_said_has_no_law_to_sample_from(cached_pair, series):
    context = series()
    with pytest.raises(ValueError, match="law"):
        decode_speculative(cached_pair[0], cached_pair[1][1], context, HORIZON, Simplified(0.3), 2,
                           draw(context, 6), repropose="target")


def test_a_draft_of_three_patches_is_asked_a_third_as_often(cached_pair, series):
    draft = Watched(cached_pair[1][3])
    decoded = decode_speculative(cached_pair[0], draft, series(), HORIZON, Tolerance(float("inf")))
    assert len(draft.rows) == 2 and set(decoded.draft_passes.tolist()) == {2}  # 5 proposals
    alone = decode_alone(cached_pair[1][3], series(), HORIZON)
    assert alone.shape == (6, HORIZON, 3)
    with torch.no_grad():
        torch.testing.assert_close(alone[:, :3 * PATCH], cached_pair[1][3](series())[0][:, -1].flatten(1, 2),
                                   atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["pair", "cached_pair"])
def test_tolerance_zero_is_the_target_alone(request, series, kind):
    target, drafts = request.getfixturevalue(kind)
    context = series()
    decoded = decode_speculative(target, drafts[True], context, HORIZON, Tolerance(0.0))
    torch.testing.assert_close(decoded.forecast, decode_alone(target, context, HORIZON), atol=1e-5, rtol=0)
    assert decoded.target_passes.tolist() == [patches_in(HORIZON, PATCH)] * len(context)


@pytest.mark.parametrize("kind", ["pair", "cached_pair"])
def test_decode_alone_rolls_the_plain_forward(request, series, kind):
    target, _ = request.getfixturevalue(kind)
    context = history = series()
    for _ in range(3):
        seen = history if kind == "cached_pair" else history[:, -context.shape[1]:]
        with torch.no_grad():
            history = torch.cat([history, target(seen)[:, -PATCH:]], dim=1)
    rolled = history[:, context.shape[1]:]
    torch.testing.assert_close(decode_alone(target, context, 3 * PATCH), rolled, atol=1e-5, rtol=0)


def test_an_all_accepted_forecast_costs_one_target_pass(pair, series):
    target, draft = Watched(pair[0]), Watched(pair[1][True])
    decoded = decode_speculative(target, draft, series(), HORIZON, Tolerance(float("inf")))
    n = patches_in(HORIZON, PATCH)
    assert (len(target.rows), len(draft.rows)) == (1, n - 1)
    assert set(decoded.accepted.tolist()) == {n - 1}
    assert decoded.lengths.tolist() == [0] * (n - 1) + [len(series())]


def test_each_round_is_one_target_pass_and_finished_rows_leave(pair, series):
    target, draft, context = Watched(pair[0]), Watched(pair[1][True]), series(rows=8)
    decoded = decode_speculative(target, draft, context, HORIZON, Tolerance(0.15), 3)
    passes = decoded.target_passes
    assert len(target.rows) == int(passes.max())
    assert target.rows == [int((passes > done).sum()) for done in range(int(passes.max()))]
    assert target.rows[-1] < target.rows[0], "no row finished early: nothing was shown"
    assert sum(draft.rows) == int(decoded.draft_passes.sum())


def test_the_number_of_model_calls_does_not_grow_with_the_batch(pair, series):
    calls = []
    for rows in (1, 16):
        target = Watched(pair[0])
        decode_speculative(target, pair[1][True], series(rows=1).repeat(rows, 1, 1), HORIZON, Tolerance(0.15))
        calls.append(len(target.rows))
    assert calls[0] == calls[1]


def test_a_horizon_of_one_patch_needs_no_draft(pair, series):
    draft = Watched(pair[1][True])
    decoded = decode_speculative(pair[0], draft, series(), PATCH, Tolerance(0.3))
    assert draft.rows == [] and decoded.judged.sum() == 0
    torch.testing.assert_close(decoded.forecast, decode_alone(pair[0], series(), PATCH))


def test_draft_words_are_kept_where_they_were_needed(pair, series):
    decoded = decode_speculative(pair[0], pair[1][True], series(rows=8), HORIZON, Tolerance(0.15))
    by_patch = torch.nn.functional.pad(decoded.draft_mean, (0, 0, 0, 5)).unflatten(1, (-1, PATCH))[:, :, 0, 0]
    torch.testing.assert_close(by_patch.isnan(), decoded.origin == BONUS)
    assert (decoded.draft_sigma.isnan() == decoded.draft_mean.isnan()).all()


emissions, laws = st.sampled_from(["sample", "mean"]), st.floats(0.1, 0.8).map(TargetLaw.fixed)
rules = st.one_of(st.floats(0, 0.6).map(Tolerance), st.builds(Simplified, st.floats(0.1, 0.8), emissions),
                  st.builds(Exact, laws, emissions), st.builds(Coupling, laws, emissions))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rule=rules, K=st.one_of(st.none(), st.integers(1, 6)), horizon=st.integers(1, 6 * PATCH),
       rows=st.integers(1, 5), variables=st.integers(1, 3), seed=st.integers(0, 99), causal=st.booleans(),
       patches=st.integers(1, 3), repropose=st.sampled_from([None, "draft", "target", "corrected"]))
def test_counts_add_up_and_rows_do_not_depend_on_each_other(rule, K, horizon, rows, variables, seed, causal, patches,
                                                            repropose):
    target = tiny_target(**CAUSAL) if causal else tiny_target()
    draft = tiny_draft(target, patches=patches)
    repropose = "draft" if rule.random and repropose == "target" else repropose
    context = torch.randn(rows, 4 * PATCH, variables, generator=torch.Generator().manual_seed(seed))
    n = patches_in(horizon, PATCH)
    noise = draw(context, n, seed)
    out = decode_speculative(target, draft, context, horizon, rule, K, noise, repropose=repropose)
    assert out.forecast.shape == (rows, horizon, variables) and out.forecast.isfinite().all()
    assert (out.accepted <= out.judged).all() and (out.judged <= out.proposed).all()
    assert (out.accepted + out.target_passes == n).all()
    assert (out.judged - out.accepted == (out.origin == REJECTED).sum(1)).all()
    assert int(out.lengths.sum()) == int(out.target_passes.sum())
    assert int((out.lengths * torch.arange(len(out.lengths))).sum()) == int(out.accepted.sum())
    assert out.origin.shape == (rows, n)
    for row in range(rows):
        one = slice(row, row + 1)
        own = Noise(noise.proposal[one], noise.target[one], noise.uniform[one])
        alone = decode_speculative(target, draft, context[one], horizon, rule, K, own, repropose=repropose)
        torch.testing.assert_close(alone.forecast[0], out.forecast[row], atol=1e-4, rtol=1e-4)
        assert int(alone.accepted) == int(out.accepted[row])


def test_the_band_is_the_drafts_own_standard_deviation(pair, series):
    draft = pair[1][True]
    decoded = decode_speculative(pair[0], draft, series(), 2 * PATCH, Tolerance(float("inf")))
    with torch.no_grad():
        logvar = draft(series())[1][:, -PATCH:]
    torch.testing.assert_close(decoded.draft_sigma[:, :PATCH], torch.exp(0.5 * logvar), atol=1e-5, rtol=1e-4)


# --- what is refused, and what is optional

def test_draft_and_target_must_agree_in_their_patch(pair, series):
    other = tiny_target(input_token_len=2 * PATCH)
    with pytest.raises(ValueError, match=f"draft's patch has {2 * PATCH} steps, the target's {PATCH}"):
        decode_speculative(pair[0], other, series(length=4 * PATCH), HORIZON, Tolerance(0.15))


def test_an_unknown_source_of_proposals_is_refused(pair, series):
    with pytest.raises(ValueError, match="draft, target, corrected, not 'oracle'"):
        decode_speculative(pair[0], pair[1][True], series(), HORIZON, Tolerance(0.15), repropose="oracle")


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("rule", [Simplified(0.45), Exact(TargetLaw.fixed(0.45)), Coupling(TargetLaw.fixed(0.4))],
                         ids=lambda rule: rule.name)
def test_without_noise_a_random_rule_draws_its_own(cached_pair, series, rule, samples):
    target, drafts = cached_pair
    context = series()

    def decoded(seed, noise=None):
        torch.manual_seed(seed)
        return decode_speculative(target, drafts[1], context, HORIZON, rule, 2, noise, samples=samples).forecast
    first = decoded(3)
    assert torch.equal(decoded(3), first) and not torch.equal(decoded(4), first)
    torch.manual_seed(3)  # it is the noise that `Noise.draw` takes from the global generator
    drawn = Noise.draw(context.repeat_interleave(samples, dim=0), patches_in(HORIZON, PATCH), PATCH)
    assert torch.equal(decoded(99, drawn), first)
    rows = first.unflatten(0, (-1, samples))
    assert samples == 1 or not torch.equal(rows[:, 0], rows[:, 1])


def test_a_deterministic_rule_draws_nothing(pair, series):
    before = torch.get_rng_state()
    plain = decode_speculative(pair[0], pair[1][True], series(), HORIZON, Tolerance(0.15))
    assert torch.equal(torch.get_rng_state(), before)
    with_noise = decode_speculative(pair[0], pair[1][True], series(), HORIZON, Tolerance(0.15), noise=draw(series(), 6))
    assert torch.equal(with_noise.forecast, plain.forecast)


# --- rounds

@pytest.mark.parametrize("repropose", ["draft", "target", "corrected"])
@pytest.mark.parametrize("kind", ["pair", "cached_pair"])
def test_rounds_that_are_observed_add_up_to_the_result(request, series, kind, repropose):
    target, drafts = request.getfixturevalue(kind)
    context, seen = series(rows=8), []
    decoded = decode_speculative(target, drafts[1], context, 2 * HORIZON, Tolerance(0.15), 3, observer=seen.append,
                                 repropose=repropose)
    sums = {name: torch.zeros(8, dtype=torch.long) for name in ("accepted", "judged", "proposed")}
    done = torch.zeros(8, dtype=torch.long)
    for judged in seen:
        accepted, k = judged.judgement.accepted, judged.needed.shape[1]
        assert judged.proposals.mean.shape == (*accepted.shape, PATCH, 3) and accepted.shape == (len(judged.rows), k)
        assert torch.equal(judged.first, done[judged.rows])
        for row in range(len(judged.rows)):
            counted = [bool(a) for a, needed in zip(accepted[row], judged.needed[row]) if needed]
            length = (counted + [False]).index(False)
            assert int(judged.length[row]) == length
            assert judged.looked_at[row].tolist() == [j < min(length + 1, len(counted)) for j in range(k)]
        for name, values in (("accepted", judged.length), ("judged", judged.looked_at.sum(1)),
                             ("proposed", judged.needed.sum(1))):
            sums[name][judged.rows] += values
        done[judged.rows] += judged.length + 1
    assert len(seen) > 2 and any(len(set(judged.first.tolist())) > 1 for judged in seen), "the batch is not ragged"
    for name, values in sums.items():
        assert torch.equal(values, getattr(decoded, name)), name


def test_a_round_without_proposals_is_not_observed(pair, series):
    decode_speculative(pair[0], pair[1][True], series(), HORIZON, Tolerance(0.15), 0, observer=pytest.fail)


# --- a rule of one's own

class Always(MeanRule):
    name = "always"

    def judge(self, proposals, prediction, uniform=None):
        score = torch.zeros(proposals.mean.shape[:2])
        return Judgement(score == 0, score)


class Never(Always):
    name = "never"

    def judge(self, proposals, prediction, uniform=None):
        judged = super().judge(proposals, prediction)
        return Judgement(~judged.accepted, judged.score)


@pytest.mark.parametrize("kind", ["pair", "cached_pair"])
def test_a_mean_rule_needs_a_judgement_only(request, series, kind):
    target, drafts = request.getfixturevalue(kind)
    context, n = series(), patches_in(HORIZON, PATCH)
    never = decode_speculative(target, drafts[1], context, HORIZON, Never(), 3)
    torch.testing.assert_close(never.forecast, decode_alone(target, context, HORIZON), atol=1e-5, rtol=0)
    assert (never.target_passes == n).all() and not never.accepted.any()
    always = decode_speculative(target, drafts[1], context, HORIZON, Always(), 3)
    everything = decode_speculative(target, drafts[1], context, HORIZON, Tolerance(float("inf")), 3)
    assert torch.equal(always.forecast, everything.forecast) and torch.equal(always.origin, everything.origin)
    assert (always.target_passes == -(-n // 4)).all() and (always.accepted == always.proposed).all()


# --- several forecasts of a window

@pytest.mark.parametrize("rolling", ["window", "cache"])
def test_samples_are_the_forecasts_of_as_many_windows(pair, cached_pair, series, rolling):
    target, drafts = pair if rolling == "window" else cached_pair
    context, draft = series(), drafts[1]
    repeated = context.repeat_interleave(3, dim=0)
    noise = draw(repeated, patches_in(HORIZON, PATCH))
    rule = Simplified(0.45)
    expected = decode_speculative(target, draft, repeated, HORIZON, rule, 2, noise)
    got = decode_speculative(target, draft, context, HORIZON, rule, 2, noise, samples=3)
    torch.testing.assert_close(got.forecast, expected.forecast, atol=2e-5, rtol=0)
    assert torch.equal(got.origin, expected.origin) and torch.equal(got.accepted, expected.accepted)
    assert len(set(got.accepted.tolist())) > 1


def test_a_cache_encodes_the_context_once_for_all_samples(cached_pair, series, monkeypatch):
    target, drafts = cached_pair
    seen = []
    embed = target.embed
    monkeypatch.setattr(target, "embed", lambda patches, stats: seen.append(patches.shape[:2]) or embed(patches, stats))
    context = series()
    noise = draw(context.repeat_interleave(4, dim=0), patches_in(HORIZON, PATCH))
    decode_speculative(target, drafts[1], context, HORIZON, Simplified(0.45), 2, noise, samples=4)
    assert seen[0] == (6, 5) and seen[1] == (24, 3)  # the context a window; then the newest patch and two proposals
