"""Folders of public models: config.json and model.safetensors in place of a checkpoint of this program."""
import json

import pytest
import torch
from helpers import PATCH, public_folder, tiny_target, tiny_timer

from exp.settings import DataSettings
from exp.stored import completed
from models import public
from models.checkpoint import read_settings, read_state, save_checkpoint, save_tensors
from models.public import Family
from models.registry import checkpoint_in, load, other_rolling
from utils.errors import UserError
from utils.speculative_decoder import decode_alone

CONFIG = {"model_type": "tiny", "hidden_size": 16, "input_token_len": 8}
# what the config.json of this family does not say is the same for all of its models
TINY = Family("timer_xl", lambda config: config.get("model_type") == "tiny",
              lambda config, path: {"d_model": config["hidden_size"], "n_heads": 2, "d_ff": 32, "e_layers": 2,
                                    "use_norm": True, "input_token_len": config["input_token_len"]},
              lambda key: key.removeprefix("model."))


@pytest.fixture
def family(monkeypatch):
    monkeypatch.setattr(public, "FAMILIES", (TINY,))


def folder_of(path, state, config=CONFIG, prefix="model."):
    safetensors = pytest.importorskip("safetensors.torch")
    path.mkdir()
    safetensors.save_file({prefix + key: value for key, value in state.items()}, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def folder(tmp_path, family):
    return folder_of(tmp_path / "public", tiny_target(3).state_dict())


def refused(path, **asked):
    with pytest.raises(UserError) as caught:
        load(path, **asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_public_folder_is_loaded_like_a_checkpoint(folder):
    assert checkpoint_in(folder) == folder / "model.safetensors"
    for path in (folder, folder / "model.safetensors"):
        model = load(path, packed=False)
        for key, value in tiny_target(3).state_dict().items():
            assert torch.equal(model.state_dict()[key], value)
    assert model.config == tiny_target(3).config and "model.safetensors" in str(model.label)


def test_weights_of_torch_beside_a_config_take_their_settings_from_it(tmp_path, family):
    save_tensors(tmp_path / "weights.pth", tiny_target(3).state_dict())
    assert read_settings(tmp_path / "weights.pth") is None
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert load(tmp_path / "weights.pth").config == tiny_target(3).config
    for other in ({"model_type": "bert"}, [1]):  # of something else that lies there: as before
        (tmp_path / "config.json").write_text(json.dumps(other))
        assert read_settings(tmp_path / "weights.pth") is None
    (tmp_path / "config.json").write_text("{")
    assert read_settings(tmp_path / "weights.pth") is None


def test_own_settings_and_weights_come_first(folder):
    save_tensors(folder / "checkpoint.pth", tiny_target(4).state_dict())
    assert checkpoint_in(folder) == folder / "checkpoint.pth"
    (folder / "args.json").write_text(json.dumps(tiny_target().config.as_dict() | {"model": "timer_xl", "d_ff": 64}))
    assert read_settings(folder / "model.safetensors")["d_ff"] == 64


def test_weights_without_a_config_are_a_bare_checkpoint(tmp_path, family):
    folder = folder_of(tmp_path / "bare", tiny_target(3).state_dict(), config=None, prefix="")
    assert read_settings(folder / "model.safetensors") is None
    assert load(folder, bare=tiny_target().config).config == tiny_target().config


@pytest.mark.parametrize("change, words", [
    ({"model_type": "bert", "architectures": ["Bert"]}, ["config.json", "'bert'", "not here", "use one of timer_xl"]),
    ({"hidden_size": "16"}, ["config.json", "d_model is '16'"]), ({"hidden_size": 32}, ["another shape", "[16, 8]"]),
    ([], ["config.json", "JSON object", "restore it"]), (None, ["config.json", "does not say which"])])
def test_what_is_no_model_here_is_refused(folder, change, words):
    content = change if isinstance(change, list) else {} if change is None else CONFIG | change
    (folder / "config.json").write_text(json.dumps(content))
    said = refused(folder)
    assert all(word in said for word in words), said


def test_a_setting_that_contradicts_the_config_is_refused(folder):
    assert "`d_model` 32 contradicts the checkpoint" in refused(folder, asked={"d_model": 32})
    assert "is a timer_xl, not a timer_xl_draft" in refused(folder, name="timer_xl_draft")


def test_damaged_weights_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:200], whole[:-1], b"\xff" * 8 + whole[8:], b"PK" + whole):
        path.write_bytes(content)
        assert "damaged, truncated or not in the format" in refused(folder)


@pytest.mark.parametrize("value, words", [(torch.tensor(float("nan")), "NaN"), (torch.tensor(1), "no state dict")])
def test_weights_that_are_no_weights_are_refused(tmp_path, family, value, words):
    state = tiny_target(3).state_dict()
    state["head.bias"] = value.expand_as(state["head.bias"]).contiguous()
    assert words in refused(folder_of(tmp_path / "bad", state))


def test_a_folder_that_was_downloaded_by_half_is_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors: download that too" in refused(folder)
    with pytest.raises(UserError, match="does not exist"):
        read_state(folder / "model.safetensors")


def test_the_missing_package_is_named(folder, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "needs the package safetensors: pip install -r requirements-public.txt" in refused(folder)


# --- Timer

@pytest.fixture
def timer_folder(tmp_path):
    pytest.importorskip("safetensors")
    return public_folder(tmp_path / "timer-base-84m", tiny_timer(n_heads=4))


def test_the_folder_of_a_timer_is_loaded_and_rolls_as_it_is_told(timer_folder):
    settings = read_settings(timer_folder / "model.safetensors")
    assert settings == {"model": "timer", "d_model": 16, "n_heads": 4, "d_ff": 32, "e_layers": 2, "activation": "silu",
                        "input_token_len": PATCH, "use_norm": True, "norm_mode": "window", "norm_window": 0,
                        "covariate": False}
    x = torch.randn(2, 4 * PATCH, 1, generator=torch.Generator().manual_seed(0)).cumsum(1)
    made = {}
    for way in (None, "window", "frozen", "patch"):
        model = load(timer_folder, name="timer", norm_roll=way)
        own = tiny_timer(way or "patch", n_heads=4)
        assert (model.norm_roll, model.rolling) == (own.norm_roll, "window" if way == "window" else "cache")
        made[way] = decode_alone(model, x, 3 * PATCH)
        torch.testing.assert_close(made[way], decode_alone(own, x, 3 * PATCH), atol=1e-5, rtol=0)
    assert torch.equal(made[None], made["patch"])
    again = load(timer_folder, norm_roll="frozen", rolling="window")
    assert other_rolling(again) is None  # the same forecast, slowly
    torch.testing.assert_close(decode_alone(again, x, 3 * PATCH), made["frozen"], atol=1e-5, rtol=0)


def test_a_bare_timer_is_loaded_with_its_sizes(tmp_path):
    folder = public_folder(tmp_path / "torch", tiny_timer(), suffix=".pth")
    assert load(folder / "weights.pth").config == tiny_timer().config
    (folder / "config.json").unlink()
    sizes = {"d_model": 16, "n_heads": 2, "d_ff": 32, "e_layers": 2, "input_token_len": PATCH}
    config = completed(sizes, "timer", DataSettings())
    assert config == tiny_timer().config  # silu and use_norm are the model's own defaults
    assert load(folder / "weights.pth", name="timer", bare=config).config == config


@pytest.mark.parametrize("changes, words", [
    ({"rope_theta": 500000}, "rope_theta is 500000, but a Timer here has 10000"),
    ({"output_token_lens": [8, 16]}, r"output_token_lens is \[8, 16\]"),
    ({"hidden_act": "tanh"}, "activation is 'tanh'"),
    ({"num_hidden_layers": 3}, "belongs to another model"), ({"intermediate_size": 64}, "another shape"),
    ({"hidden_size": "16"}, "d_model is '16'"), ({"num_attention_heads": 3}, "ratio, the head width")])
def test_a_timer_that_is_not_computed_here_is_refused(tmp_path, changes, words):
    pytest.importorskip("safetensors")
    with pytest.raises(UserError, match=words):
        load(public_folder(tmp_path / "other", tiny_timer(), **changes))


def test_a_timer_without_its_sizes_is_refused(timer_folder):
    (timer_folder / "config.json").write_text('{"model_type": "timer", "hidden_size": 16}')
    assert "lacks num_attention_heads, intermediate_size, num_hidden_layers" in refused(timer_folder)


@pytest.mark.parametrize("asked, words", [
    ({"norm_roll": "all"}, "`norm_roll` is 'all', but must be one of window, frozen, patch"),
    ({"norm_roll": "window", "rolling": "cache"}, "`rolling` cache contradicts `norm_roll` window"),
    ({"name": "timer_xl"}, "is a timer, not a timer_xl")])
def test_a_timer_is_not_rolled_in_contradiction(timer_folder, asked, words):
    assert words in refused(timer_folder, **asked)


def test_other_models_have_no_way_to_roll_of_that_name(tmp_path):
    save_checkpoint(tmp_path / "xl", tiny_target().state_dict(), tiny_target().config.as_dict() | {"model": "timer_xl"})
    assert "which is no timer: leave it out" in refused(tmp_path / "xl", norm_roll="patch")
    plain = tiny_timer("none")
    save_checkpoint(tmp_path / "plain", plain.state_dict(), plain.config.as_dict() | {"model": "timer"})
    assert "normalises nothing" in refused(tmp_path / "plain", norm_roll="patch")
