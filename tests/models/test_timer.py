"""Timer computes what the public implementation computes, in the three ways in which it is rolled."""
import pytest
import torch
from helpers import PATCH, public_outputs, tiny_timer
from reference.decoder import reference_parareal, reference_speculation
from reference.timer import SlowTimer, reference_forecast, reference_next

from layers.normalisation import SampleStats
from models.config import ModelConfig
from models.timer import NORM_ROLLS, Model
from utils.acceptance import Simplified, Tolerance
from utils.errors import UserError
from utils.lossless import Coupling, Exact
from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_parareal, decode_speculative, sample_alone
from utils.target_law import TargetLaw

N, ROOM = 5, 5  # patches of context, and after it
WAYS = ["none", *NORM_ROLLS]
# how each may be computed; no cache holds what every new patch normalises anew
COMPUTED = [(way, rolling) for way in WAYS for rolling in ("window", "cache") if (way, rolling) != ("window", "cache")]


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), atol=tolerance, rtol=0)


def rolled(way, rolling, **changes):
    model = tiny_timer(way, **changes)
    model.rolling = rolling
    return model


@pytest.fixture(scope="module")
def public():
    saved = public_outputs("timer_hf_small")
    config = ModelConfig(input_token_len=24, d_model=32, n_heads=4, d_ff=64, e_layers=2, activation="silu",
                         use_norm=True)
    models = []
    for changed in (config, ModelConfig(**config.as_dict() | {"use_norm": False})):
        models.append(Model(changed).eval())
        models[-1].load_state_dict({key[6:]: torch.from_numpy(saved[key]) for key in saved.files if "state/" in key})
    return saved, *models


def test_public_predictions_are_reproduced(public):
    saved, model, plain = public
    x = torch.from_numpy(saved["x"])[..., None]
    with torch.no_grad():
        close(model(x)[..., 0].unflatten(1, (-1, 24)), saved["every_revin"])
        close(plain(x)[..., 0].unflatten(1, (-1, 24)), saved["every"])


@pytest.mark.parametrize("way, rolling, key", [
    ("window", "window", "roll_window"), ("frozen", "window", "roll_frozen"), ("frozen", "cache", "roll_frozen"),
    ("patch", "window", "roll_cached"), ("patch", "cache", "roll_cached")])
def test_public_forecasts_are_reproduced(public, way, rolling, key):
    saved, model, _ = public
    assert Model(model.config).norm_roll == "patch"  # as the public model's own generate
    model.roll_by(way)
    model.rolling = rolling
    x = torch.from_numpy(saved["x"])
    close(decode_alone(model, x[..., None], 96)[..., 0], saved[key])
    close(decode_alone(model, x.T[None], 96)[0].T, saved[key])  # as variables of one window


@pytest.mark.parametrize("way, rolling", COMPUTED)
def test_every_way_agrees_with_the_slow_one(series, way, rolling):
    model, x = rolled(way, rolling), series(rows=2, variables=2)
    made = decode_alone(model, x, 3 * PATCH)
    for row in range(2):
        close(made[row], reference_forecast(model, x[row].numpy(), 3, way))


def test_the_ways_differ(series):
    made = [decode_alone(tiny_timer(way), series(), 3 * PATCH) for way in WAYS]
    for one, first in enumerate(made):
        assert (first[:, :PATCH] - made[1][:, :PATCH]).abs().max() < 1e-5 or one == 0  # the first patch is the same
        for other in made[one + 1:]:
            assert (first - other)[:, PATCH:].abs().max() > 0.05


def test_forward_normalises_one_window_and_reads_each_variable_alone(series):
    model, x = tiny_timer(), series(rows=2)
    with torch.no_grad():
        made, last = model(x), model(x, newest=2)
    close(made[:, -2 * PATCH:], last)
    for row in range(2):
        for variable in range(3):
            column = x[row, :, variable].double().numpy()
            mean, stdev = column.mean(), column.std(ddof=1)
            expected = reference_next(model, ((column - mean) / stdev).reshape(N, PATCH)) * stdev + mean
            close(made[row, :, variable], expected.ravel())


@pytest.mark.parametrize("way, rolling", COMPUTED)
def test_ragged_rows_predict_what_each_would_by_itself(series, way, rolling):
    """Append, roll back to lengths that differ, drop and repeat rows; against a fresh state of one row."""
    model, x = rolled(way, rolling), series(rows=4, length=(N + ROOM) * PATCH, variables=2)
    context, later = x[:, :N * PATCH], model.to_patches(x[:, N * PATCH:])

    def alone(row, length):
        state = model.start(context[row:row + 1], ROOM)
        return model.extend(state, later[row:row + 1, :length] if length else None).mean[0, -1]
    with torch.inference_mode():
        state = model.start(context, ROOM)
        said = model.extend(state, later[:, :3]).mean
        for row in range(4):
            for length in range(4):
                close(said[row, length], alone(row, length))
        lengths = [0, 2, 3, 1]
        state.rollback(torch.tensor(lengths))
        state.append(torch.stack([later[row, length:length + 1] for row, length in enumerate(lengths)]))
        state.select(torch.tensor([3, 1, 0]))
        model.fan_out(state, 2)
        said = model.extend(state)
        for place, row in enumerate((3, 3, 1, 1, 0, 0)):
            close(said.mean[place, 0], alone(row, lengths[row] + 1))
        state.rollback(0)
        close(model.extend(state).mean[4, 0], alone(0, 0))
    assert said.unit.shape == (6, 1, 1, 2) and said.scale.shape == (6, 1, 1, 2)


RULES = {
    "tolerance": (Tolerance(0.6), {"rule": "tolerance", "tol": 0.6}),
    "simplified": (Simplified(0.8, bias=3.0), {"rule": "simplified", "sigma": 0.8, "emit": "sample", "bias": 3.0}),
    "exact": (Exact(TargetLaw.fixed(0.8)), {"rule": "exact", "sigma": 0.8, "emit": "sample"}),
    "coupling": (Coupling(TargetLaw.fixed(0.8)), {"rule": "coupling", "sigma": 0.8, "emit": "sample"}),
}


def disturbed(way):
    return tiny_timer(way, distance=0.05)


@pytest.mark.parametrize("way", NORM_ROLLS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_agrees_with_the_slow_decoder(series, way, rule):
    """The draft is a Timer too, with disturbed weights and no variance of its own."""
    target, draft, x = tiny_timer(way), disturbed(way), series(rows=5, variables=1)
    slow_target, slow_draft = (SlowTimer(model, N, way) for model in (target, draft))
    fast_rule, plain = RULES[rule]
    noise = Noise.draw(x, ROOM, PATCH, torch.Generator().manual_seed(7))
    made = decode_speculative(target, draft, x, ROOM * PATCH, fast_rule, 2, noise if fast_rule.random else None,
                              repropose="draft")
    for row in range(len(x)):
        own = noise.proposal[row], noise.target[row], noise.uniform[row]
        forecast, origin, counts = reference_speculation(slow_target, slow_draft, x[row], ROOM * PATCH, plain, 2, own)
        close(made.forecast[row], forecast, 5e-5)
        assert {name: int(getattr(made, name)[row]) for name in counts} == counts
    assert 0 < int(made.accepted.sum()) < int(made.judged.sum())


@pytest.mark.parametrize("way", NORM_ROLLS)
def test_parareal_agrees_with_the_formulas_and_ends_at_the_target(series, way):
    target, draft, x = tiny_timer(way), disturbed(way), series(rows=2, variables=1)
    slow = [SlowTimer(model, N, way) for model in (target, draft)]
    made = decode_parareal(target, draft, x, ROOM * PATCH, 2)
    for row in range(2):
        close(made.forecast[row], reference_parareal(*slow, x[row], ROOM * PATCH, 2)[0], 3e-5)
    close(decode_parareal(target, draft, x, ROOM * PATCH, ROOM).forecast, decode_alone(target, x, ROOM * PATCH))


@pytest.mark.parametrize("way", NORM_ROLLS)
def test_tolerance_zero_is_the_target_and_paths_of_one_seed_agree(series, way):
    target, draft, x = tiny_timer(way), disturbed(way), series(rows=3)
    alone = decode_alone(target, x, ROOM * PATCH)
    close(decode_speculative(target, draft, x, ROOM * PATCH, Tolerance(0.0)).forecast, alone)
    law, z = TargetLaw.fixed(0.4), torch.randn(3, 2, ROOM, PATCH, 3, generator=torch.Generator().manual_seed(1))
    sampled = sample_alone(target, x, ROOM * PATCH, law, z)[0]
    made = decode_parareal(target, draft, x, ROOM * PATCH, ROOM, law=law, z=z)
    close(made.forecast.flatten(), sampled.flatten(), 2e-5)


@pytest.mark.parametrize("way", NORM_ROLLS)
def test_constant_windows_stay_at_their_level(way):
    """Their deviation is zero: the public code divides by it."""
    levels = torch.tensor([0.0, 0.1, -37.3, 1e6])
    x = levels[None, None].expand(2, N * PATCH, 4)
    for rolling in {"window", tiny_timer(way).own_rolling}:
        model = rolled(way, rolling)
        made = decode_alone(model, x, 3 * PATCH)
        assert torch.isfinite(made).all()
        torch.testing.assert_close(made, levels.expand_as(made), atol=1e-6, rtol=2e-6)
        close(model.start(x, 1).unit[0, 0, 0, :3], torch.full((3,), 1e-5 ** 0.5))  # rules do not judge the rounding


def test_a_small_deviation_is_divided_by_as_it_is():
    x = 1e-4 * torch.randn(1, N, PATCH, 1, generator=torch.Generator().manual_seed(0))
    stats = SampleStats.of(x)
    close(stats.stdev / x.std(), torch.ones(1, 1, 1, 1))
    assert float(stats.normalise(x).std()) == pytest.approx(1, rel=1e-5)


def test_attention_weights_are_those_within_variables(series):
    fused, x = tiny_timer(), series(rows=2, variables=3)
    explicit = Model(ModelConfig(**fused.config.as_dict() | {"flash_attention": False})).eval()
    explicit.load_state_dict(fused.state_dict())
    with torch.no_grad():
        close(fused(x), explicit(x))
        weights = fused.attention(x)
        alone = fused.attention(x[..., 1:2])
    assert len(weights) == 2 and weights[0].shape == (2, 2, 3 * N, 3 * N)
    close(weights[1].sum(-1), torch.ones(2, 2, 3 * N))
    close(weights[1][..., N:2 * N, N:2 * N], alone[1])
    assert weights[1][..., N:2 * N, :N].abs().max() == 0


@pytest.mark.parametrize("changes, words", [
    ({"covariate": True}, "`covariate` has no effect"),
    ({"norm_mode": "causal", "norm_window": 3}, "`norm_mode` causal"),
    ({"input_token_len": 1}, "`input_token_len` 1")])
def test_settings_of_other_models_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        tiny_timer(**changes)


def test_dropout_acts_in_training_only(series):
    model, x = tiny_timer(dropout=0.5), series()
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_in_bfloat16_the_forecast_is_nearly_the_same(series):
    model, x = tiny_timer("frozen"), series()
    before = decode_alone(model, x, 3 * PATCH)
    model.dtype = torch.bfloat16
    model.to(torch.bfloat16)
    after = decode_alone(model, x, 3 * PATCH)
    assert after.dtype == torch.float32
    assert 1e-5 < float((after - before).square().mean().sqrt() / before.std()) < 0.1
