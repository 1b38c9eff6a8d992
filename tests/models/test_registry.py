"""Trained models by their path: found, described, and refused where they are not what was asked for."""
import json

import pytest
import torch
from helpers import PATCH, TINY, tiny_draft, tiny_target

from layers.linear import PackedLinear
from models.checkpoint import save_checkpoint, save_tensors
from models.config import ModelConfig
from models.registry import MODELS, checkpoint_in, describe, load, other_rolling
from utils.errors import UserError
from utils.speculative_decoder import decode_alone

CAUSAL = {"norm_mode": "causal", "norm_window": 3}


def saved(folder, model, name="timer_xl", without=(), **settings):
    settings = model.config.as_dict() | {"model": name} | settings
    save_checkpoint(folder, model.state_dict(), {key: settings[key] for key in settings if key not in without})
    return folder


@pytest.fixture
def trained(tmp_path):
    """A folder with a trained target."""
    return saved(tmp_path / "run", tiny_target(3))


@pytest.fixture
def bare(tmp_path):
    """A checkpoint of the same target without args.json."""
    save_tensors(tmp_path / "bare" / "weights.pth", tiny_target(3).state_dict())
    return tmp_path / "bare" / "weights.pth"


def assert_same(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


# --- what is loaded

@pytest.mark.parametrize("part", ["", "checkpoint.pth"], ids=["folder", "file"])
def test_a_model_is_loaded_from_its_folder_or_its_file(trained, part):
    model = load(trained / part, packed=False)
    assert type(model) is MODELS["timer_xl"] and model.config == TINY and not model.training
    assert_same(model, tiny_target(3))
    assert_same(load(str(trained / part), packed=False), tiny_target(3))  # text is a path too


def test_the_checkpoint_of_a_folder_is_the_file_of_that_name(trained):
    assert checkpoint_in(trained) == checkpoint_in(trained / "checkpoint.pth") == trained / "checkpoint.pth"
    assert checkpoint_in(trained / "other.pth") == trained / "other.pth"


def test_a_draft_comes_back_at_its_own_size(tmp_path, series):
    config = ModelConfig(**TINY.as_dict() | {"draft_stochastic": True, "draft_patches": 2, "draft_scale_d_ff": 0.5})
    draft = MODELS["timer_xl_draft"](config).eval()
    settings = config.as_dict() | {"model": "timer_xl_draft"}
    save_checkpoint(tmp_path, draft.state_dict(), settings)
    found = load(tmp_path, name="timer_xl_draft", asked={"draft_patches": 2, "draft_scale_d_ff": 0.5})
    assert (found.config.d_ff, found.patches_ahead) == (64, 2) and found.head_logvar is not None
    with torch.no_grad():
        for got, expected in zip(found(series()), draft(series())):
            assert torch.equal(got, expected)


def test_what_repeats_the_checkpoint_is_no_contradiction(trained):
    asked = TINY.as_dict() | {"draft_scale_d_ff": 0.5}  # a target has no scale to contradict
    assert load(trained, name="timer_xl", asked=asked).config == TINY


def test_the_attention_kernel_is_the_callers_choice(trained):
    assert not load(trained, asked={"flash_attention": False}).config.flash_attention


@pytest.mark.parametrize("asked, bare_config", [(TINY.as_dict(), None), (None, TINY), ({"d_model": 512}, TINY)])
def test_a_bare_checkpoint_has_the_architecture_that_is_given(bare, asked, bare_config):
    model = load(bare, asked=asked, bare=bare_config, packed=False)
    assert type(model) is MODELS["timer_xl"] and model.config == TINY
    assert_same(model, tiny_target(3))


def test_a_bare_draft_is_named(tmp_path):
    draft = tiny_draft(tiny_target())
    save_tensors(tmp_path / "draft.pth", draft.state_dict())
    assert_same(load(tmp_path / "draft.pth", name="timer_xl_draft", bare=draft.config, packed=False), draft)


def test_settings_beside_a_checkpoint_come_before_a_bare_config(trained):
    assert load(trained, bare=ModelConfig(d_model=64)).config == TINY


def test_weights_are_packed_unless_training_goes_on(trained):
    for packed in (True, False):
        modules = load(trained, packed=packed).modules()
        assert any(isinstance(module, PackedLinear) for module in modules) is packed


# --- what is refused

@pytest.mark.parametrize("name, value", [("d_model", 32), ("n_heads", 4), ("e_layers", 1), ("input_token_len", 16),
                                         ("activation", "gelu"), ("use_norm", False), ("covariate", True),
                                         ("norm_mode", "causal"), ("norm_window", 3)])
def test_what_contradicts_the_checkpoint_is_refused(trained, name, value):
    with pytest.raises(UserError) as caught:
        load(trained, asked={name: value})
    said = str(caught.value)
    assert said.startswith(f"`{name}` {value} contradicts the checkpoint {trained / 'checkpoint.pth'}")
    assert str(getattr(TINY, name)) in said and "leave it out" in said


@pytest.mark.parametrize("name, value", [("draft_stochastic", True), ("draft_patches", 3), ("draft_scale_d_ff", 0.5)])
def test_what_contradicts_a_draft_is_refused(tmp_path, name, value):
    draft = tiny_draft(tiny_target(), stochastic=False)
    with pytest.raises(UserError, match=f"`{name}` {value} contradicts"):
        load(saved(tmp_path, draft, "timer_xl_draft"), asked={name: value})


def test_another_model_than_the_one_named_is_refused(trained):
    with pytest.raises(UserError, match="is a timer_xl, not a timer_xl_draft"):
        load(trained, name="timer_xl_draft")


@pytest.mark.parametrize("name", ["timer_xxl", None, 7, {"a": 1}, ["x" * 10**5], "x" * 10**5])
def test_a_model_that_nobody_knows_is_refused(tmp_path, name):
    saved(tmp_path, tiny_target(), name)
    with pytest.raises(UserError, match=r"args\.json: the model .* is none of timer_xl, timer_xl_draft") as caught:
        load(tmp_path)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_settings_that_lack_a_size_are_refused(tmp_path):
    saved(tmp_path, tiny_target(), without=("d_ff", "input_token_len"))
    with pytest.raises(UserError, match=r"args\.json lacks d_ff, input_token_len"):
        load(tmp_path)


def test_settings_outside_their_limits_are_refused(tmp_path):
    saved(tmp_path, tiny_target(), d_ff=0)
    with pytest.raises(UserError, match=r"args\.json: d_ff is 0"):
        load(tmp_path)


@pytest.mark.parametrize("path", ["none.pth", "none"])
def test_a_missing_checkpoint_is_named(tmp_path, path):
    with pytest.raises(UserError, match=f"{path} does not exist"):
        load(tmp_path / path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint\.pth does not exist"):
        load(tmp_path)


def test_a_bare_checkpoint_of_another_size_is_refused(bare):
    with pytest.raises(UserError, match="has another shape: embedding.weight"):
        load(bare, bare=ModelConfig(**TINY.as_dict() | {"d_model": 32}))


def test_a_description_reads_no_weights(trained):
    (trained / "checkpoint.pth").write_bytes(b"damaged")
    assert describe(trained / "checkpoint.pth", None, {}) == ("timer_xl", TINY)
    with pytest.raises(UserError, match="was not loaded"):
        load(trained)


# --- rolling

@pytest.mark.parametrize("changes, rolling", [({}, "window"), (CAUSAL, "cache"), (CAUSAL | {"covariate": True},
                                                                                  "window")])
def test_a_model_rolls_as_it_was_trained_to(tmp_path, changes, rolling):
    model = load(saved(tmp_path, tiny_target(**changes)))
    assert model.rolling == rolling and other_rolling(model) is None


@pytest.mark.parametrize("changes, rolling, change", [
    ({}, "cache", "APPROXIMATION"), ({"use_norm": False}, "cache", "context grows"), (CAUSAL, "cache", None),
    (CAUSAL, "window", "as if the series began there"), ({}, "window", None), ({"use_norm": False}, "window", None)])
def test_another_way_to_roll_is_taken_and_told(tmp_path, series, changes, rolling, change):
    folder = saved(tmp_path, tiny_target(**changes))
    model, own = load(folder, rolling=rolling), load(folder)
    assert model.rolling == rolling and (change is None) == (other_rolling(model) is None)
    assert change is None or change in other_rolling(model)
    # what is told is true: the first patch is the same, the second is not
    forecast, owns = (decode_alone(each, series(), 2 * PATCH) for each in (model, own))
    torch.testing.assert_close(forecast[:, :PATCH], owns[:, :PATCH], rtol=1e-4, atol=1e-5)
    assert torch.allclose(forecast[:, PATCH:], owns[:, PATCH:], atol=1e-4) is (change is None)


@pytest.mark.parametrize("changes", [{}, CAUSAL])
def test_nothing_can_be_kept_of_a_model_with_covariates(tmp_path, changes):
    folder = saved(tmp_path, tiny_target(covariate=True, **changes))
    with pytest.raises(UserError, match="`rolling` cache: .*`covariate`.*use window"):
        load(folder, rolling="cache")
    assert load(folder, rolling="window").rolling == "window"


def test_an_unknown_way_to_roll_is_refused(trained):
    with pytest.raises(UserError, match="`rolling` is 'sideways', but must be one of window, cache"):
        load(trained, rolling="sideways")


def test_what_training_has_kept_beside_is_left_alone(trained):
    before = json.loads((trained / "args.json").read_text())
    load(trained, asked={"flash_attention": False}, rolling="cache")
    assert json.loads((trained / "args.json").read_text()) == before
    assert sorted(path.name for path in trained.iterdir()) == ["args.json", "checkpoint.pth"]
