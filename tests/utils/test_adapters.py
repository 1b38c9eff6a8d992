"""Foreign models behind the adapters against slow ones that encode everything anew, row by row."""
import pytest
import torch
from foreign_models import Attention, C, Forward, KeysAndValues, N, P, Recurrent, Slow

from utils.acceptance import Simplified, Tolerance
from utils.adapters import FromCache, FromForward
from utils.decoded import ACCEPTED, REJECTED
from utils.lossless import Coupling, Exact
from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_parareal, decode_speculative, patches_in, sample_alone
from utils.target_law import TargetLaw

HORIZON = 6 * P + 1  # the last patch is cut


def with_select(toy, **more):
    return FromCache(toy.step, P, toy.new_cache, toy.crop, toy.select, **more)


def without_select(toy, **more):
    return FromCache(toy.step, P, toy.new_cache, toy.crop, **more)


def forward(toy):
    return FromForward(toy, P)


KINDS = {
    "function": (forward, Forward, 0.25),
    "hidden states": (with_select, Recurrent, 0.15),
    "hidden states, no select": (without_select, Recurrent, 0.15),
    "keys and values": (with_select, Attention, 0.2),
    "keys and values, no select": (without_select, Attention, 0.2),
}
CACHED = [kind for kind in KINDS if kind != "function"]
RULES = {
    "tolerance": Tolerance(0.2),
    "simplified": Simplified(0.39),
    "simplified, mean": Simplified(0.42, "mean"),
    "coupling": Coupling(TargetLaw.fixed(0.25)),
    "coupling, mean": Coupling(TargetLaw(torch.full((1, 1), 0.2), relative=True), "mean"),
    "exact": Exact(TargetLaw.fixed(0.4)),
}


def contexts(rows=6, seed=3):
    """[B, N * P, C]: rows of different scale, hence of different difficulty."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, N * P, C, generator=generator, dtype=torch.float64)
    return x * torch.linspace(0.2, 2.0, rows, dtype=torch.float64)[:, None, None]


def pair_of(kind, stochastic=True, **more):
    """target, draft, and both of them slow"""
    adapt, toy, distance = KINDS[kind]
    target, draft = toy(), toy(distance, stochastic)
    return adapt(target, **more), adapt(draft, **more), Slow(target, **more), Slow(draft, **more)


def noise_for(context, samples=1, seed=6):
    return Noise.draw(context.repeat_interleave(samples, dim=0), patches_in(HORIZON, P), P,
                      torch.Generator().manual_seed(seed))


def of_row(noise, rows):
    return Noise(noise.proposal[rows], noise.target[rows], noise.uniform[rows])


def assert_same(fast, slow):
    torch.testing.assert_close(fast.forecast, slow.forecast, atol=1e-9, rtol=0)
    torch.testing.assert_close(fast.draft_mean, slow.draft_mean, atol=1e-9, rtol=0, equal_nan=True)
    for name in ("origin", "accepted", "judged", "proposed", "target_passes"):
        assert torch.equal(getattr(fast, name), getattr(slow, name)), name


def assert_agrees_row_by_row(models, context, rule, K, repropose="draft", samples=1):
    """A batch through the adapters against each of its rows through the slow models."""
    target, draft, slow_target, slow_draft = models
    noise = noise_for(context, samples)
    together = decode_speculative(target, draft, context, HORIZON, rule, K, noise, repropose=repropose,
                                  samples=samples)
    every = [decode_speculative(slow_target, slow_draft, context[row // samples][None], HORIZON, rule, K,
                                of_row(noise, slice(row, row + 1)), repropose=repropose)
             for row in range(len(context) * samples)]
    for row, alone in enumerate(every):
        assert_same(of_rows(together, slice(row, row + 1)), alone)
    # without these the agreement would say little
    assert len(set(together.target_passes.tolist())) > 1, "the batch is not ragged"
    assert REJECTED in together.origin and ACCEPTED in together.origin


def of_rows(decoded, rows):
    kept = {name: value[rows] for name, value in vars(decoded).items() if value is not None and name != "lengths"}
    return type(decoded)(**kept)


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2, None])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_its_rows_are_without_a_cache(kind, rule, K):
    assert_agrees_row_by_row(pair_of(kind), contexts(), RULES[rule], K)


@pytest.mark.parametrize("K", [1, 2, None])
@pytest.mark.parametrize("repropose", ["target", "corrected"])
@pytest.mark.parametrize("kind", KINDS)
def test_reproposing_is_what_it_is_without_a_cache(kind, repropose, K):
    assert_agrees_row_by_row(pair_of(kind), contexts(), RULES["tolerance"], K, repropose)


@pytest.mark.parametrize("rule", ["simplified", "coupling", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_corrected_samples_are_what_they_are_without_a_cache(kind, rule):
    assert_agrees_row_by_row(pair_of(kind), contexts(), RULES[rule], None, "corrected")


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2, None])
@pytest.mark.parametrize("rule", ["coupling", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_the_forecasts_of_as_many_windows(kind, rule, K):
    assert_agrees_row_by_row(pair_of(kind), contexts(rows=3), RULES[rule], K, samples=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_of_paths_is_what_it_is_without_a_cache(kind):
    target, draft, slow_target, slow_draft = pair_of(kind)
    context, law, n = contexts(rows=4), TargetLaw.fixed(0.3), patches_in(HORIZON, P)
    z = torch.randn(4, 2, n, P, C, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = decode_parareal(target, draft, context, HORIZON, 2, law=law, z=z, audit=2).divergence
    for row, path in ((row, path) for row in range(4) for path in range(2)):
        alone = decode_parareal(slow_target, slow_draft, context[row:row + 1], HORIZON, 2, law=law,
                                z=z[row:row + 1, path:path + 1], audit=1).divergence
        torch.testing.assert_close(together[row, path], alone[0, 0], atol=0, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", CACHED)
def test_a_model_that_normalises_by_the_context(kind, rule):
    models = pair_of(kind, normalise=True)
    context = 3 * contexts() + 10 * torch.randn(6, 1, C, generator=torch.Generator().manual_seed(1))
    law = TargetLaw(torch.full((1, 1), 0.4), relative=True)
    rules = {"coupling": Coupling(law), "coupling, mean": Coupling(law, "mean"), "exact": Exact(law),
             "simplified": Simplified(1.5), "simplified, mean": Simplified(1.5, "mean"), "tolerance": Tolerance(0.25)}
    assert_agrees_row_by_row(models, context, rules[rule], None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_without_log_variances_will_do(kind):
    assert_agrees_row_by_row(pair_of(kind, stochastic=False), contexts(), RULES["exact"], None)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tolerance_gives_what_the_target_alone_gives(kind):
    target, draft, slow, _ = pair_of(kind)
    context = contexts()
    alone = decode_alone(target, context, HORIZON)
    for K in (1, 2, None):
        speculative = decode_speculative(target, draft, context, HORIZON, Tolerance(0.0), K)
        torch.testing.assert_close(speculative.forecast, alone, atol=1e-9, rtol=0)
    series = list(context[:1].unflatten(1, (-1, P))[0])
    while len(series) < N + patches_in(HORIZON, P):
        series.append(slow.next_patch(series)[0][0])
    torch.testing.assert_close(alone[0], torch.cat(series[N:])[:HORIZON], atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_paths_are_what_they_are_without_a_cache(kind):
    target, _, slow, _ = pair_of(kind)
    context, law = contexts(rows=3), TargetLaw(torch.full((1, 1), 0.3), relative=True)
    z = torch.randn(3, 4, patches_in(HORIZON, P), P, C, generator=torch.Generator().manual_seed(2)).double()
    paths, means = sample_alone(target, context, HORIZON, law, z)
    slow_paths, slow_means = sample_alone(slow, context, HORIZON, law, z)
    torch.testing.assert_close(paths, slow_paths, atol=1e-9, rtol=0)
    torch.testing.assert_close(means, slow_means, atol=1e-9, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", KINDS)
def test_any_order_of_calls_gives_what_a_slow_state_gives(kind, seed):
    adapt, toy, _ = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))
    context = contexts(rows=4, seed=seed)
    fast_model, slow_model = adapt(toy(0.0, stochastic=True)), Slow(toy(0.0, stochastic=True))
    fast, slow = fast_model.start(context, 16), slow_model.start(context, 16)
    predictions = 0
    for _ in range(30):
        rows, lengths = len(slow.rows), torch.tensor([len(row) - N for row in slow.rows])
        action = pick(0, 6)
        if action == 0 and int(lengths.max()) <= 13:
            patches = torch.randn(rows, pick(1, 3), P, C, generator=generator).double()
            fast.append(patches)
            slow.append(patches)
        elif action == 1:
            kept = (lengths * torch.rand(rows, generator=generator).mul(1.3).clamp(max=1)).long()
            fast.rollback(kept)
            slow.rollback(kept)
        elif action == 2 and rows > 2:
            kept = torch.randperm(rows, generator=generator)[:rows - pick(0, 1)]
            fast.select(kept)
            slow.select(kept)
        elif action == 6:
            kept = pick(0, int(lengths.min()))
            fast.rollback(kept)
            slow.rollback(kept)
        elif action == 3 and rows < 5:
            fast_model.fan_out(fast, 2)
            slow_model.fan_out(slow, 2)
        else:  # also of positions that were predicted before
            newest = pick(1, int(lengths.min()) + 1)
            got, expected = fast.predict(newest), slow.predict(newest)
            for name in ("mean", "logvar", "scale", "unit"):
                torch.testing.assert_close(getattr(got, name), getattr(expected, name), atol=1e-9, rtol=0)
            predictions += 1
    assert predictions > 3


# --- what it costs

class Counted(Attention):
    """Remembers how many rows and patches each step encoded."""

    def __init__(self, *more):
        super().__init__(*more)
        self.steps = []

    def step(self, patches, cache):
        assert (patches != 0).any(dim=(2, 3)).all(), "padded with what the model never saw"
        self.steps.append(tuple(patches.shape[:2]))
        return super().step(patches, cache)


def test_one_window_alone_encodes_nothing_twice():
    target, draft = Counted(), Attention(0.3)
    decoded = decode_speculative(with_select(target), with_select(draft), contexts(rows=1), HORIZON, Tolerance(0.2))
    n, before = patches_in(HORIZON, P), 0
    assert 1 < int(decoded.target_passes) < n
    for number, (_, patches) in enumerate(target.steps):  # context or the newest patch, then the proposals
        proposals = n - before - 1
        assert patches == (1 if number else N) + proposals
        before += 1 + int((decoded.origin[0, before:] == ACCEPTED).long().cumprod(0).sum())


def test_rows_that_are_ahead_encode_their_surplus_again():
    toy = Counted()
    model = with_select(toy)
    state = model.start(contexts(rows=2), room=8)
    model.extend(state, torch.ones(2, 4, P, C, dtype=torch.float64))
    state.rollback(torch.tensor([1, 4]))
    state.append(torch.ones(2, 1, P, C, dtype=torch.float64))
    state.predict(1)
    assert toy.steps == [(2, N + 4), (2, 4)]  # from the fourth patch, where the first row stands, to the eighth


def test_a_context_is_encoded_once_for_all_its_samples():
    toy, context = Counted(), contexts(rows=3)
    decode_speculative(with_select(toy), with_select(Attention(0.3)), context, HORIZON, RULES["coupling"], 2,
                       noise_for(context, 4), samples=4)
    assert toy.steps[0] == (3, N) and toy.steps[1] == (12, 3)  # then the newest patch and two proposals


def test_without_select_finished_rows_stay_as_padding():
    toys, context = {}, contexts()
    for adapt in (with_select, without_select):
        toys[adapt] = Counted()
        decode_speculative(adapt(toys[adapt]), adapt(Attention(0.3)), context, HORIZON, Tolerance(0.2))
    selected, padded = toys[with_select].steps, toys[without_select].steps
    assert [patches for _, patches in selected] == [patches for _, patches in padded]  # nothing is encoded again
    assert {rows for rows, _ in padded} == {6} and min(rows for rows, _ in selected) < 6


def test_a_model_waits_for_the_host_at_most_once_a_round(monkeypatch):
    waits = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: waits.append(1) or tolist(tensor))
    target, draft = pair_of("keys and values")[:2]
    rounds = []
    decode_speculative(target, draft, contexts(), HORIZON, Tolerance(0.2), observer=rounds.append)
    assert len(rounds) > 1 and 0 < len(waits) <= 2 * len(rounds)


def test_the_targets_unit_does_not_change_how_a_draft_normalises():
    draft, context = pair_of("hidden states", normalise=True)[1], contexts()
    expected = draft.extend(draft.start(context, 1))
    state = draft.start(context, 1)
    state.unit = 5 * state.unit
    got = draft.extend(state)
    torch.testing.assert_close(got.mean, expected.mean)
    torch.testing.assert_close(got.scale, expected.scale)
    torch.testing.assert_close(got.unit, 5 * expected.unit)


def test_answers_in_half_precision_become_those_of_the_context():
    model = FromForward(lambda window: window[:, -P:].to(torch.bfloat16), P)
    decoded = decode_speculative(model, model, contexts().float(), HORIZON, Tolerance(0.1))
    assert decoded.forecast.dtype == torch.float32 and decoded.accepted.min() > 0


# --- what is refused

@pytest.mark.parametrize("model", [FromForward(Forward(), P), without_select(Attention())])
def test_a_context_that_is_no_multiple_of_the_patch_is_refused(model):
    with pytest.raises(ValueError, match="13 steps.*not a multiple of the patch, 4 steps"):
        decode_alone(model, torch.zeros(1, 13, C), HORIZON)
    with pytest.raises(ValueError, match="0 steps"):
        decode_alone(model, torch.zeros(1, 0, C), HORIZON)


@pytest.mark.parametrize("context", [torch.zeros(12, C), torch.zeros(1, 12, C, dtype=torch.long)])
@pytest.mark.parametrize("model", [FromForward(Forward(), P), without_select(Attention())])
def test_a_context_of_another_shape_or_type_is_refused(model, context):
    with pytest.raises(ValueError, match=r"torch\.\w+ \[.*12, 2\], but must be floating point \[B, L, C\]"):
        decode_alone(model, context, HORIZON)


def test_an_answer_of_another_shape_is_refused():
    context = contexts(rows=2)
    with pytest.raises(ValueError, match=r"next_patch returned means \[2, 12, 2\], but must return \[2, 4, 2\]"):
        decode_alone(FromForward(lambda window: window, P), context, HORIZON)
    with pytest.raises(ValueError, match=r"log-variances \[2, 1, 2\], but must return \[2, 4, 2\]"):
        decode_alone(FromForward(lambda window: (window[:, -P:], window[:, :1]), P), context, HORIZON)
    with pytest.raises(ValueError, match=r"step returned means \[2, 1, 4, 2\], but must return \[2, 3, 4, 2\]"):
        decode_alone(FromCache(lambda patches, cache: patches[:, -1:], P, list, Recurrent.crop), context, HORIZON)
    with pytest.raises(ValueError, match=r"next_patch returned a dict as means, not a tensor \[2, 4, 2\]"):
        decode_alone(FromForward(lambda window: {"mean": window[:, -P:]}, P), context, HORIZON)


def test_a_patch_without_steps_is_refused():
    with pytest.raises(ValueError, match="patch_len is 0"):
        FromForward(Forward(), 0)
    with pytest.raises(ValueError, match="patch_len is -1"):
        FromCache(Attention().step, -1, KeysAndValues, Attention.crop)


def test_more_predictions_than_a_row_has_patches_are_refused():
    with pytest.raises(ValueError, match="4 predictions for a row with 3 patches"):
        without_select(Attention()).start(contexts(), 1).predict(4)
