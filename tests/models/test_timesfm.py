"""TimesFM 2.5 against its formulas, against the public package, and its cache against a pass over everything."""
import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import any_order_of_calls
from reference import timesfm as slow

from layers.linear import can_pack, pack_linears
from layers.normalisation import moments_of_past, patch_moments
from models import timer_xl_draft, timesfm
from models.config import ModelConfig
from models.public import timesfm_name, timesfm_sizes
from utils.acceptance import Tolerance
from utils.speculative_decoder import decode_alone, decode_parareal, decode_speculative, sample_alone
from utils.target_law import TargetLaw

TOKEN, P, LONG = 4, 16, 64
SIZES = {"d_model": 16, "n_heads": 2, "d_ff": 24, "e_layers": 2}
CONFIG = ModelConfig(**timesfm.PUBLIC | {"input_token_len": TOKEN, "output_token_len": P} | SIZES)
WEIGHTS = slow.public_weights(1, token_len=TOKEN, patch_len=P, head_len=LONG, **SIZES)
OF_REFERENCE = {"w": WEIGHTS, "token_len": TOKEN, "n_heads": SIZES["n_heads"], "e_layers": SIZES["e_layers"]}
HORIZON = 3 * P + 5


@pytest.fixture(scope="module")
def model():
    state = {timesfm_name(name): torch.tensor(value).float() for name, value in WEIGHTS.items()}
    made = timesfm.Model.for_weights(CONFIG, state)
    made.load_state_dict(state)
    return made.eval()


def contexts(rows, length, variables=1, seed=0, level=3.0):
    """[B, L, C]"""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(rows, length, variables, generator=generator)
    return level + torch.linspace(0.2, 1.5, rows)[:, None, None] * steps.cumsum(1) * 0.3


# --- what it computes

@pytest.mark.parametrize("length", [8 * TOKEN, 5 * TOKEN, 5 * TOKEN - 1, 3 * TOKEN + 1, TOKEN, 3])
def test_the_forecast_is_that_of_the_formulas(model, length):
    context = contexts(2, length, variables=2)
    made = decode_alone(model, context, HORIZON)
    for row in range(2):
        for variable in range(2):
            expected = slow.forecast(context[row, :, variable].double().numpy(), HORIZON, **OF_REFERENCE)
            np.testing.assert_allclose(made[row, :, variable].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("length", [6 * TOKEN, 5 * TOKEN - 3])
def test_both_heads_are_those_of_the_formulas(model, length):
    context = contexts(2, length, variables=2)
    with torch.inference_mode():
        prediction = model.extend(model.start(context, room=2))
    every = model.quantiles(context)
    assert every.shape == (2, LONG, 2, 10) and prediction.ahead.shape == (2, 1, LONG // P - 1, P, 2)
    for row in range(2):
        for variable in range(2):
            series = context[row, :, variable].double().numpy()
            near, far, _, spread = slow.answers(series, **OF_REFERENCE)
            np.testing.assert_allclose(every[row, :, variable].numpy(), far, atol=1e-5)
            np.testing.assert_allclose(prediction.mean[row, 0, :, variable].numpy(), near[:, slow.MEDIAN], atol=1e-5)
            np.testing.assert_allclose(prediction.ahead[row, 0, ..., variable].flatten().numpy(),
                                       far[P:, slow.MEDIAN], atol=1e-5)
            for unit in (prediction.scale[row, 0, 0, variable], prediction.unit[row, 0, 0, variable]):
                np.testing.assert_allclose(unit.numpy(), spread, rtol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, 1e5])
def test_a_constant_series_stays_where_it_is(model, level):
    context = torch.full((1, 5 * TOKEN - 1, 1), level)
    made = model.extend(model.start(context, room=0))
    assert (made.mean == level).all() and (made.ahead == level).all() and float(made.unit) ** 2 == pytest.approx(1e-5)


def test_running_statistics_survive_a_jump_of_the_level():
    generator = torch.Generator().manual_seed(0)
    series = 1e-2 * torch.randn(2, 6 * TOKEN, 1, generator=generator)
    series[:, 3 * TOKEN:] += 1e4
    patches = series.unflatten(1, (-1, TOKEN))
    moments = patch_moments(patches.double())
    moments[:, :, :1] = patch_moments(patches[:, :1, 2:].double())
    mean, stdev = moments_of_past(moments, TOKEN, missing=2)
    for patch in range(6):
        seen = series[:, 2:(patch + 1) * TOKEN].double()
        torch.testing.assert_close(mean[:, patch], seen.mean(1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(stdev[:, patch], seen.std(1, correction=0), rtol=1e-9, atol=0)


# --- the public package

def of_package():
    """Its own module, at the size of these tests, with these weights."""
    package = pytest.importorskip("timesfm.timesfm_2p5.timesfm_2p5_torch")
    configs = pytest.importorskip("timesfm.configs")
    public, width = package.TimesFM_2p5_200M_torch_module.config, SIZES["d_model"]

    def block(inputs, outputs, bias):
        return configs.ResidualBlockConfig(inputs, width, outputs, bias, "swish")
    layer = dataclasses.replace(public.stacked_transformers.transformer, model_dims=width, hidden_dims=SIZES["d_ff"],
                                num_heads=SIZES["n_heads"])

    class Small(package.TimesFM_2p5_200M_torch_module):
        config = dataclasses.replace(
            public, input_patch_len=TOKEN, output_patch_len=P, output_quantile_len=LONG,
            tokenizer=block(2 * TOKEN, width, True), output_projection_point=block(width, 10 * P, False),
            output_projection_quantiles=block(width, 10 * LONG, False),
            stacked_transformers=configs.StackedTransformersConfig(SIZES["e_layers"], layer))
    module = Small().eval()
    module.load_state_dict({name: torch.tensor(value).float() for name, value in WEIGHTS.items()})
    return module


def test_it_is_what_the_packages_own_decode_gives(model):
    package, context = of_package(), contexts(3, 7 * TOKEN)
    first, far, later = package.decode(HORIZON, context[..., 0], torch.zeros(context.shape[:2], dtype=torch.bool))
    expected = torch.cat([first[:, -1], later.flatten(1, 2)], dim=1)[:, :HORIZON, package.aridx]
    torch.testing.assert_close(decode_alone(model, context, HORIZON)[..., 0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.quantiles(context)[:, :, 0], far, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [6 * TOKEN, 6 * TOKEN - 1, 2])
def test_it_is_what_the_packages_naive_forecast_gives(model, length):
    context = contexts(2, length)
    naive = np.stack(of_package().forecast_naive(HORIZON, list(context[..., 0].numpy())))
    made = decode_alone(model, context, HORIZON)[..., 0]
    torch.testing.assert_close(made, torch.tensor(naive[..., 5]), atol=1e-5, rtol=0)


def test_the_public_model_is_recognised_by_its_tensors():
    package = pytest.importorskip("timesfm.timesfm_2p5.timesfm_2p5_torch")
    with torch.device("meta"):
        public = package.TimesFM_2p5_200M_torch_module().state_dict()
        sizes = timesfm_sizes({name: value.shape for name, value in public.items()}, Path("model.safetensors"))
        own = timesfm.Model.for_weights(ModelConfig.from_mapping(sizes), public)
    assert sizes.items() >= timesfm.PUBLIC.items() and own.heads_ahead == 7
    assert {timesfm_name(name): value.shape for name, value in public.items()} == {
        name: value.shape for name, value in own.state_dict().items()}


# --- its cache

def encoded_anew(model, histories):
    """The prediction after each of several whole histories [T, C] of their own length, a fresh pass for each."""
    made = [model.extend(model.start(history[None], room=0)) for history in histories]
    return torch.cat([each.mean for each in made]), torch.cat([each.ahead for each in made])


@pytest.mark.parametrize("missing", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_calls_gives_what_a_pass_over_everything_gives(model, seed, missing):
    length = 5 * TOKEN - missing

    def check(row, mean, ahead, histories):
        expected_mean, expected_ahead = encoded_anew(model, histories)
        torch.testing.assert_close(mean, expected_mean[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ahead, expected_ahead[:, 0], atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        context = contexts(3, length, variables=2, seed=seed)
        assert any_order_of_calls(model, context, contexts, seed, check) > 1


def test_a_long_context_encoded_in_blocks_is_one_pass(model, monkeypatch):
    context = contexts(2, 12 * TOKEN)
    whole = decode_alone(model, context, HORIZON)
    monkeypatch.setattr("models.cache_state.BLOCK_PATCHES", 5)
    torch.testing.assert_close(decode_alone(model, context, HORIZON), whole, atol=1e-5, rtol=0)


def test_attention_weights_are_those_within_each_variable(model):
    context, N = contexts(2, 5 * TOKEN, variables=2), 5
    for weights in model.attention(context):
        assert weights.shape == (2, 2, 2 * N, 2 * N)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2 * N))
        apart = weights.unflatten(3, (2, N)).unflatten(2, (2, N))  # [B, heads, C, N, C, N]
        assert not apart[:, :, 0, :, 1].any() and not apart[:, :, 1, :, 0].any()
        assert not apart[:, :, 1, :, 1].triu(1).any()
    single = model.attention(context[:, :, 1:])
    torch.testing.assert_close(apart[:, :, 1, :, 1], single[-1])


def test_packed_weights_forecast_the_same(model):
    if not can_pack():
        pytest.skip("torch cannot pack here")
    torch.manual_seed(0)
    other, context = timesfm.Model(CONFIG, 4).eval(), contexts(2, 5 * TOKEN)
    expected = decode_alone(other, context, HORIZON)
    pack_linears(other)
    torch.testing.assert_close(decode_alone(other, context, HORIZON), expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision_forecasts_nearly_the_same(model, how):
    context = contexts(2, 5 * TOKEN)
    expected = decode_alone(model, context, HORIZON)
    if how == "weights":  # as `halve` does on a GPU
        model = copy.deepcopy(model).to(torch.bfloat16)
        model.dtype = torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        made = decode_alone(model, context, HORIZON)
    assert made.dtype == torch.float32 and 0 < float((made - expected).abs().max()) < 0.2


# --- decoding

def test_its_longer_head_is_a_draft(model):
    context = contexts(5, 5 * TOKEN, variables=2)
    alone = decode_alone(model, context, HORIZON)
    strict = decode_speculative(model, None, context, HORIZON, Tolerance(0.0))
    torch.testing.assert_close(strict.forecast, alone, atol=1e-5, rtol=0)
    forced = decode_speculative(model, None, context, HORIZON, Tolerance(1e6))
    assert forced.target_passes.tolist() == [2] * 5 and not forced.draft_passes.any()
    far = model.quantiles(context)[..., 5]
    torch.testing.assert_close(forced.draft_mean[:, P:3 * P], far[:, P:3 * P], atol=1e-5, rtol=0)


def test_any_draft_with_its_patch_will_do(model):
    torch.manual_seed(0)
    draft = timer_xl_draft.Model(ModelConfig(P, 8, 2, 8, 1, use_norm=True, draft_stochastic=True)).eval()
    context = contexts(3, 2 * P)  # a multiple of the draft's tokens
    alone = decode_alone(model, context, HORIZON)
    for exact in (decode_speculative(model, draft, context, HORIZON, Tolerance(0.0)),
                  decode_parareal(model, draft, context, HORIZON, passes=4)):
        torch.testing.assert_close(exact.forecast, alone, atol=1e-5, rtol=0)
    near = decode_parareal(model, draft, context, HORIZON, passes=2)
    torch.testing.assert_close(near.forecast[:, :2 * P], alone[:, :2 * P], atol=1e-5, rtol=0)


@pytest.mark.parametrize("tol", [1.4, 1.6])
def test_a_batch_is_what_its_rows_are(model, tol):
    context = contexts(6, 7 * TOKEN, variables=2)
    together = decode_speculative(model, None, context, HORIZON, Tolerance(tol))
    assert len(set(together.target_passes.tolist())) > 1, "the batch is not ragged"
    for row in range(6):
        alone = decode_speculative(model, None, context[row:row + 1], HORIZON, Tolerance(tol))
        torch.testing.assert_close(together.forecast[row], alone.forecast[0], atol=1e-5, rtol=0)
        assert torch.equal(together.origin[row], alone.origin[0])


def test_paths_are_sampled_as_from_any_target(model):
    context, law = contexts(2, 5 * TOKEN), TargetLaw.fixed(0.2)
    z = torch.randn(2, 3, 4, P, 1, generator=torch.Generator().manual_seed(0))
    paths, means = sample_alone(model, context, HORIZON, law, z)
    assert paths.shape == (2, 3, HORIZON, 1)
    again, _ = sample_alone(model, context[1:], HORIZON, law, z[1:])
    torch.testing.assert_close(again[0], paths[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(means[:, 0, :P], decode_alone(model, context, P), atol=1e-5, rtol=0)
