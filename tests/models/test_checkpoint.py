"""Checkpoints: written whole, read without running code, accepted in the shapes that other programs give them."""
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import assert_setting_refused

import run
from exp.flags import flat
from exp.options import read_command_line
from models.checkpoint import load_into, read_settings, read_state, read_tensors, save_checkpoint, save_tensors
from models.config import ModelConfig
from models.registry import FRESH
from models.timer_xl import Model
from models.timer_xl_draft import Model as DraftModel
from utils.errors import UserError

CONFIG = ModelConfig(input_token_len=12, d_model=16, n_heads=2, d_ff=32, e_layers=1, use_norm=True)


def new_model(seed=0):
    torch.manual_seed(seed)
    return Model(CONFIG)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_same(state, other):
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_a_checkpoint_comes_back_with_its_settings(tmp_path):
    state = new_model().state_dict()
    save_checkpoint(tmp_path / "run", state, {"model": "timer_xl", "d_model": 16})
    assert_same(read_state(tmp_path / "run" / "checkpoint.pth"), state)
    assert read_settings(tmp_path / "run" / "checkpoint.pth") == {"model": "timer_xl", "d_model": 16, "use_norm": True}
    assert listing(tmp_path / "run") == ["args.json", "checkpoint.pth"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, failure):
    old, path = new_model(0).state_dict(), tmp_path / "checkpoint.pth"
    save_checkpoint(tmp_path, old, {"model": "timer_xl"})

    def write_half(content, target):
        target.write(b"PK half a checkpoint")
        raise failure("disk full")
    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(failure):
        save_checkpoint(tmp_path, new_model(1).state_dict(), {"model": "timer_xl"})
    assert_same(read_state(path), old)
    assert listing(tmp_path) == ["args.json", "checkpoint.pth"]


def flipped(path, byte, bit):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("own", [True, False], ids=["with a digest", "foreign"])
def test_no_flipped_bit_changes_what_is_loaded(tmp_path, own):
    """38 of 450 damaged files were loaded with other weights before."""
    state, path, generator = new_model().state_dict(), tmp_path / "checkpoint.pth", torch.Generator().manual_seed(0)
    (save_tensors if own else lambda path, content: torch.save(content, path))(path, state)
    whole, refused = path.read_bytes(), 0
    for place in torch.randint(len(whole), (150,), generator=generator).tolist():
        path.write_bytes(whole)
        flipped(path, place, place % 8)
        try:
            assert_same(read_state(path), state)  # it hit nothing that matters: padding, a date
        except UserError as error:
            assert "was not loaded" in str(error) or "does not" in str(error)
            refused += 1
    assert refused > 50


def test_the_digest_notices_what_the_checksums_of_the_archive_do_not(tmp_path):
    """Another tensor in the place of one, with a checksum of its own."""
    path = tmp_path / "checkpoint.pth"
    save_tensors(path, new_model().state_dict())
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    largest = max(entries, key=lambda name: len(entries[name]))
    entries[largest] = bytes(len(entries[largest]))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="damaged"):
        read_state(path)


def test_settings_that_are_not_those_of_the_training_are_refused(tmp_path):
    """Two heads or one: the shapes are the same, the forecasts are not."""
    save_checkpoint(tmp_path, new_model().state_dict(), {"model": "timer_xl", "n_heads": 2, "note": "a"})
    args = tmp_path / "args.json"
    args.write_text(args.read_text().replace('"n_heads": 2', '"n_heads": 1'))
    with pytest.raises(UserError, match="n_heads is 1, but .* was trained with 2"):
        read_settings(tmp_path / "checkpoint.pth")
    args.write_text(args.read_text().replace('"n_heads": 1', '"n_heads": 2').replace('"a"', '"b"'))
    assert read_settings(tmp_path / "checkpoint.pth")["note"] == "b"


def test_what_later_runs_take_from_the_settings_is_that_of_the_training(tmp_path):
    """A test would quietly get another context."""
    save_checkpoint(tmp_path, new_model().state_dict(), {"model": "timer_xl", "seq_len": 48})
    args = tmp_path / "args.json"
    args.write_text(args.read_text().replace("48", "96"))
    with pytest.raises(UserError, match="seq_len is 96, but .* was trained with 48"):
        read_settings(tmp_path / "checkpoint.pth")


def test_other_programs_read_a_file_with_a_digest(tmp_path):
    path, state = tmp_path / "checkpoint.pth", new_model().state_dict()
    save_tensors(path, state)
    for how in ({}, {"mmap": True}):
        assert_same(torch.load(path, weights_only=True, **how), state)


def test_files_of_older_versions_of_torch_are_read(tmp_path):
    path, state = tmp_path / "checkpoint.pth", new_model().state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_same(read_state(path), state)


def test_a_compressed_archive_is_refused(tmp_path):
    """It may be a thousand times as large in memory."""
    path = tmp_path / "checkpoint.pth"
    torch.save({"head.weight": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="damaged"):
        read_state(path)


def test_settings_are_there_before_the_checkpoint_is(tmp_path, monkeypatch):
    # a run that dies between the two must not leave weights that nobody knows the shape of
    def fail(*_):
        assert [name for name in listing(tmp_path) if not name.endswith(".tmp")] == ["args.json"]
        raise RuntimeError("killed")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="killed"):
        save_checkpoint(tmp_path, {}, {"model": "timer_xl"})
    assert listing(tmp_path) == ["args.json"]


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model_state_dict": state, "optimizer": {}},
    lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
], ids=["bare", "module", "state_dict", "model_state_dict", "model with module"])
def test_the_wrappers_of_other_programs_are_undone(tmp_path, wrap):
    state = new_model(1).state_dict()
    save_tensors(tmp_path / "c.pth", wrap(state))
    model = new_model(0)
    load_into(model, read_state(tmp_path / "c.pth"), tmp_path / "c.pth")
    assert_same(model.state_dict(), state)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_leave_the_model_as_it_was(tmp_path, value):
    state = new_model(1).state_dict()
    state["head.bias"][3] = value
    model = new_model(0)
    with pytest.raises(UserError, match=r"c\.pth.*head\.bias"):
        load_into(model, state, tmp_path / "c.pth")
    assert_same(model.state_dict(), new_model(0).state_dict())


def test_weights_too_large_for_the_models_precision_leave_it_as_it_was(tmp_path):
    """A float64 file may hold numbers that float32, in which the model computes, cannot."""
    state = {key: value.double() for key, value in new_model(1).state_dict().items()}
    model = new_model(0)
    load_into(model, state, "c.pth")
    assert_same(model.state_dict(), new_model(1).state_dict())
    state["head.bias"][3] = -1e300
    with pytest.raises(UserError, match=r"c\.pth holds 1e\+300, too large for torch.float32, in head\.bias"):
        load_into(model, state, "c.pth")
    assert_same(model.state_dict(), new_model(1).state_dict())


def test_missing_and_unknown_tensors_are_named(tmp_path):
    state = new_model().state_dict()
    state["head_mean.weight"] = state.pop("head.weight")
    with pytest.raises(UserError, match=r"1 tensors missing \(head\.weight\), 1 unknown \(head_mean\.weight\)"):
        load_into(new_model(), state, "c.pth")


def test_another_shape_is_named_with_both_shapes(tmp_path):
    state = new_model().state_dict()
    state["head.bias"] = torch.zeros(7)
    with pytest.raises(UserError, match=r"head\.bias is \[7\] in the file and \[12\] in the model"):
        load_into(new_model(), state, "c.pth")


@pytest.mark.parametrize("content", [[1, 2], "text", torch.zeros(3)])
def test_a_file_that_holds_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match=type(content).__name__):
        read_tensors(tmp_path / "c.pth")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, {"a": torch.zeros(1), "b": "text"}])
def test_a_mapping_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(UserError, match="no state dict"):
        read_state(tmp_path / "c.pth")


def test_a_checkpoint_without_args_json_has_no_settings(tmp_path):
    save_tensors(tmp_path / "c.pth", new_model().state_dict())
    assert read_settings(tmp_path / "c.pth") is None


@pytest.mark.parametrize("value", [
    torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.complex64), torch.zeros(2).to_sparse(),
    torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.float8_e4m3fn),
    torch.nested.nested_tensor([torch.zeros(2)], layout=torch.strided),
], ids=["int", "complex", "sparse", "meta", "fp8", "nested"])
def test_tensors_that_are_no_plain_floats_are_refused(tmp_path, monkeypatch, value):
    monkeypatch.setattr(torch, "load", lambda *_, **__: {"head.weight": value})
    (tmp_path / "c.pth").touch()
    with pytest.raises(UserError, match=r"c\.pth.*no state dict"):
        read_state(tmp_path / "c.pth")


def test_names_that_are_no_text_are_refused(tmp_path):
    torch.save({0: torch.zeros(2)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="no state dict"):
        read_state(tmp_path / "c.pth")


@pytest.mark.parametrize("name, value, wanted", [
    ("d_model", "512", "whole number"), ("d_model", 16.0, "whole number"), ("d_model", True, "whole number"),
    ("n_heads", 0, "from 1"), ("d_ff", -4, "from 1"), ("d_model", 10**9, "16384"), ("e_layers", 10**6, "1024"),
    ("input_token_len", [12], "whole number"), ("input_token_len", 10**30, "2147483648"),
    ("dropout", 1.5, "0.999"), ("dropout", float("nan"), "0.999"), ("dropout", "0.1", "a number"),
    ("draft_scale_d_ff", 0, "above 0"), ("draft_scale_e_layers", 2.0, "to 1"), ("draft_patches", 0, "from 1"),
    ("norm_mode", "batch", "causal, window"), ("norm_window", -1, "from 0"),
    ("activation", "swish", "gelu, relu"), ("activation", ["relu"], "gelu, relu"),
    ("activation", "x" * 10**5, "gelu, relu"),
    ("use_norm", "False", "true or false"), ("covariate", 1, "true or false"), ("draft_stochastic", None, "true"),
])
def test_unusable_settings_are_named_with_what_they_must_be(tmp_path, name, value, wanted):
    assert_setting_refused(read_settings, tmp_path, name, value, wanted)


def test_settings_of_a_real_run_pass_and_unknown_ones_stay(tmp_path):
    settings = flat(read_command_line(["--model", "timer_xl_draft", "--draft_scale_d_ff", "0.25"]))
    settings |= {"of_another_program": [None]}
    (tmp_path / "args.json").write_text(json.dumps(settings))
    assert read_settings(tmp_path / "checkpoint.pth") == settings


def test_settings_nested_too_deep_are_refused(tmp_path):
    (tmp_path / "args.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"args\.json is not valid JSON"):
        read_settings(tmp_path / "checkpoint.pth")


def test_settings_saved_with_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "args.json").write_text('{"d_model": 16}', encoding="utf-8-sig")
    assert read_settings(tmp_path / "checkpoint.pth") == {"d_model": 16, "use_norm": True}


def test_a_bare_openltm_checkpoint_is_tested_by_the_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=["a", "b"])
    frame.to_csv(tmp_path / "noise.csv", index=False)
    state = new_model(5).state_dict()
    settings = {**CONFIG.as_dict(), "model": "timer_xl"}
    save_checkpoint(tmp_path / "checkpoints" / "with_settings", state, settings)
    save_tensors(tmp_path / "checkpoints" / "bare" / "checkpoint.pth", {f"module.{k}": v for k, v in state.items()})
    common = ["--is_training", "0", "--quiet", "--root_path", ".", "--data_path", "noise.csv", "--seq_len", "48",
              "--input_token_len", "12", "--test_pred_len", "24"]
    sizes = ["--d_model", "16", "--n_heads", "2", "--d_ff", "32", "--e_layers", "1", "--use_norm"]
    assert run.main([*common, "--test_dir", "with_settings"]) == 0
    assert run.main([*common, "--test_dir", "bare", *sizes]) == 0
    with_settings, bare = (json.loads((tmp_path / "test_results" / f"{name}_pl24" / "metrics.json").read_text())
                           for name in ("with_settings", "bare"))
    assert with_settings["mse"] == bare["mse"]
    assert run.main([*common, "--test_dir", "bare", *sizes[:-1]]) == 0  # --use_norm is a flag that matters
    other = tmp_path / "test_results" / "bare_pl24_use_norm_False" / "metrics.json"
    assert json.loads(other.read_text())["mse"] != bare["mse"]


def test_one_tensor_too_many_is_another_model(tmp_path):
    model = new_model()
    save_checkpoint(tmp_path, model.state_dict() | {"extra": torch.ones(2)}, {})
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(UserError, match="1 unknown .extra."):
        load_into(model, read_state(path), path)


# --- names of other programs, and weights that start other models

def new_draft(seed=0, stochastic=False):
    torch.manual_seed(seed)
    return DraftModel(ModelConfig(**CONFIG.as_dict() | {"draft_stochastic": stochastic}))


def as_in_stride(state):
    return {key.replace("head_mean.", "head."): value for key, value in state.items()}


def test_the_head_of_a_deterministic_draft_has_either_name(tmp_path):
    state = new_draft(1).state_dict()
    for given in (state, as_in_stride(state)):
        model = new_draft(0)
        assert load_into(model, given, tmp_path / "c.pth") == []
        assert_same(model.state_dict(), state)


def test_a_draft_with_both_names_of_its_head_is_refused():
    state = new_draft(1).state_dict()
    with pytest.raises(UserError, match=r"2 unknown \(head\.bias, head\.weight\)"):
        load_into(new_draft(), state | as_in_stride(state), "c.pth")


@pytest.mark.parametrize("names", [lambda state: state, as_in_stride])
def test_deterministic_weights_start_a_stochastic_draft(names):
    state, model = new_draft(1).state_dict(), new_draft(2, stochastic=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load_into(model, names(state), "c.pth", fresh=FRESH) == ["head_logvar.bias", "head_logvar.weight"]
    assert_same(model.state_dict(), before | state)
    with pytest.raises(UserError, match="2 tensors missing"):  # but they are none
        load_into(model, names(state), "c.pth")


def test_half_of_a_head_is_no_start():
    state = new_draft(1, stochastic=True).state_dict()
    del state["head_logvar.bias"]
    with pytest.raises(UserError, match=r"1 tensors missing \(head_logvar\.bias\)"):
        load_into(new_draft(stochastic=True), state, "c.pth", fresh=FRESH)


# --- what is there instead of a checkpoint that is not

def there_are(path):
    with pytest.raises(UserError, match="does not exist") as caught:
        read_tensors(path)
    found = str(caught.value).partition(" (there are: ")[2].removesuffix(")")
    return found.split(", ") if found else []


def test_a_missing_checkpoint_is_named_with_the_nearest_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("forecast_ETTh1_timer_xl_test_0", "forecast_ETTh2_timer_xl_test_0", "mine", "other"):
        save_checkpoint(tmp_path / "runs" / name, {}, {})
    (tmp_path / "runs" / "empty").mkdir()
    long = "runs/forecast_ETTh1_timer_xl_ETTh1_Multi_sl672_it96_test_0/checkpoint.pth"
    found = there_are(long)
    assert found[:2] == ["runs/forecast_ETTh1_timer_xl_test_0", "runs/forecast_ETTh2_timer_xl_test_0"]
    assert len(found) == 4 and found[3] == "..."
    assert there_are("runs/mien")[0] == "runs/mine"
    assert there_are("mine") == there_are("mine/checkpoint.pth") == ["runs/mine"]  # a name instead of a path
    assert there_are("runs/mine/best.pth") == ["runs/mine/checkpoint.pth"]
    assert there_are("runs/empty/checkpoint.pth") == there_are("nowhere/at/all.pth") == []
