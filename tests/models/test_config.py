"""The architecture: limits, defaults, and what is read out of other settings."""
from dataclasses import replace

import pytest
from helpers import TINY

from models.config import SIZES, ModelConfig
from utils.errors import UserError


@pytest.mark.parametrize("name, value, wanted", [
    ("input_token_len", 0, "a whole number from 1 to 2147483648"), ("input_token_len", 96.0, "a whole number"),
    ("d_model", 2**14 + 4, "to 16384"), ("d_model", True, "a whole number"), ("n_heads", 0, "from 1"),
    ("d_ff", -1, "from 1"), ("e_layers", 1025, "from 1 to 1024"), ("dropout", 1.0, "from 0 to 0.999"),
    ("dropout", float("nan"), "a number"), ("activation", "swish", "one of gelu, relu"),
    ("covariate", 1, "true or false"), ("use_norm", None, "true or false"), ("norm_mode", "batch", "causal, window"),
    ("norm_window", -1, "from 0 to 1024"), ("flash_attention", "yes", "true or false"),
    ("draft_stochastic", 0, "true or false"), ("draft_patches", 0, "from 1 to 1024"),
    ("draft_scale_d_model", 0.0, "above 0, to 1"), ("draft_scale_n_heads", 1.5, "above 0, to 1"),
    ("draft_scale_d_ff", "0.5", "a number"), ("draft_scale_e_layers", -1, "above 0"),
])
def test_a_value_outside_its_limit_is_refused_by_name(name, value, wanted):
    with pytest.raises(UserError, match=f"^`{name}` is ") as caught:
        replace(TINY, **{name: value})
    assert wanted in str(caught.value)


@pytest.mark.parametrize("name, value", [("d_model", 2**14), ("e_layers", 1024), ("dropout", 0), ("dropout", 0.999),
                                         ("norm_window", 0), ("draft_scale_d_ff", 1), ("draft_scale_d_ff", 1e-6),
                                         ("input_token_len", 1), ("input_token_len", 2**31)])
def test_the_limits_themselves_are_allowed(name, value):
    assert getattr(replace(TINY, **{name: value}), name) == value


@pytest.mark.parametrize("d_model, n_heads", [(16, 3), (18, 3), (20, 2), (512, 256), (4, 8)])
def test_heads_must_be_a_multiple_of_four_wide(d_model, n_heads):
    with pytest.raises(UserError, match=f"`d_model` {d_model} with `n_heads` {n_heads}"):
        ModelConfig(d_model=d_model, n_heads=n_heads)


def test_a_draft_that_is_scaled_gets_heads_that_fit():
    built = ModelConfig(d_model=18, n_heads=3, draft_scale_d_ff=0.5).scaled()
    assert built.d_model % built.n_heads == 0 and built.d_model // built.n_heads % 4 == 0
    assert built.scaled() is built


def test_the_defaults_are_those_of_the_flags():
    config = ModelConfig()
    assert [getattr(config, name) for name in ("input_token_len", *SIZES)] == [96, 512, 8, 2048, 1]
    assert not config.use_norm and not config.causal and not config.covariate


def test_causal_is_a_way_to_normalise():
    assert replace(TINY, use_norm=True, norm_mode="causal", norm_window=5).causal
    assert not replace(TINY, use_norm=True, norm_mode="window").causal


@pytest.mark.parametrize("changes, words", [
    ({"use_norm": False, "norm_mode": "causal", "norm_window": 5}, "without `use_norm`"),
    ({"norm_mode": "causal", "norm_window": 0}, "needs `norm_window`"),
    ({"norm_mode": "window", "norm_window": 5}, "without `norm_mode` causal")])
def test_a_trailing_window_belongs_to_causal_statistics(changes, words):
    with pytest.raises(UserError, match=words):
        replace(TINY, **changes)


def test_the_architecture_is_picked_out_of_any_settings():
    settings = TINY.as_dict() | {"model": "timer_xl", "seq_len": None, "of_another_program": [1]}
    assert ModelConfig.from_mapping(settings) == TINY


# --- the size of a draft

@pytest.mark.parametrize(("scale", "size"), [(0.25, (256, 2, 512)), (0.5, (512, 4, 1024)), (0.01, (16, 1, 64)),
                                             (1.0, (1024, 8, 2048))])
def test_draft_sizes_follow_the_published_rule(scale, size):
    scales = {f"draft_scale_{part}": scale for part in ("d_model", "n_heads", "d_ff", "e_layers")}
    built = ModelConfig(96, 1024, 8, 2048, 1, **scales).scaled()
    assert (built.d_model, built.n_heads, built.d_ff) == size
    assert built.e_layers == 1
    assert built.d_model // built.n_heads % 4 == 0


@pytest.mark.parametrize(("wanted", "size"), [((128, 3), (120, 3)), ((192, 7), (192, 6)), ((128, 9), (128, 8)),
                                              ((16, 3), (16, 2)), ((384, 14), (384, 12))])
def test_draft_width_and_heads_are_the_nearest_that_fit(wanted, size):
    config = ModelConfig(96, 2 * wanted[0], 2 * wanted[1], 256, 4, draft_scale_d_model=0.5, draft_scale_n_heads=0.5,
                         draft_scale_e_layers=0.5).scaled()
    assert (config.d_model, config.n_heads, config.e_layers) == (*size, 2)
