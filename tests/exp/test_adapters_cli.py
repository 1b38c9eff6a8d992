"""Models named module:function through the whole program: they do what the model that they wrap does."""
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import BASE, DRAFT, PATCH, SIZES, TARGET, TRAIN_SIZES, command, metrics, save, weights
from helpers import tiny_series, tiny_target, tiny_timer

import run
from exp.adapters import FOLDER
from exp.settings import TEACHERS

SOURCE = f"""
import torch
from models.registry import load
from utils import FromForward

def wrapped(checkpoint, device="cpu"):
    model = load(checkpoint, device)
    def next_patch(x):
        out = model(x, 1)
        return out if isinstance(out, torch.Tensor) else tuple(out)
    return FromForward(next_patch, {PATCH})

def naive():
    return FromForward(lambda x: x[:, -{PATCH}:], {PATCH})

def headed():
    def next_patch(x):
        newest = x[:, -{PATCH}:]
        return newest, None, newest[:, None].repeat(1, 4, 1, 1)
    return FromForward(next_patch, {PATCH}, heads_ahead=4)

def shifted():
    return FromForward(lambda x: x[:, -{PATCH}:] + 1, {PATCH})

def late():
    from beside import SHIFT
    return FromForward(lambda x: x[:, -{PATCH}:] + SHIFT, {PATCH})

def short():
    return FromForward(lambda x: x[:, -3:], {PATCH})

def failing():
    raise KeyError("no such layer")

def other_patch():
    return FromForward(lambda x: x[:, -6:], 6)

def no_model():
    return torch.nn.Linear(1, 1)

def wants(width):
    return naive()
"""
COUNTER = itertools.count()


@pytest.fixture
def mine(place, monkeypatch):
    """Name of a module in the current folder; a fresh one each time, as Python imports a module once."""
    name = f"mine_{next(COUNTER)}"
    Path(f"{name}.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part != str(place)])
    return name


def stand_ins(lab):
    return sorted(path.name for path in (lab / "checkpoints" / FOLDER).glob("*"))


@pytest.fixture
def lab_and_mine(own_lab, mine):
    return own_lab, mine


def test_a_wrapped_target_and_draft_forecast_as_they_do_by_themselves(lab_and_mine):
    lab, mine = lab_and_mine
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth --spec_tol 0.5"
    flags = f"--test_pred_len 36 {draft}"
    assert command(lab, flags) == 0
    native = metrics()
    assert command(lab, f"{flags} --model {mine}:wrapped --spec_draft_model {mine}:wrapped --des own") == 0
    own = metrics()
    assert 0 < native["accepted"] < native["attempted"]
    assert own["mse"] == pytest.approx(native["mse"], rel=1e-5)
    assert own["target_passes"] == pytest.approx(native["target_passes"], abs=0.02)
    assert len(stand_ins(lab)) == 2


def test_paths_of_a_wrapped_target_have_its_calibrated_law(lab_and_mine):
    lab, mine = lab_and_mine
    flags = "--test_pred_len 24 --num_samples 5 --spec_sigma_mode calibrated --spec_growth none"
    assert command(lab, flags) == 0
    native = metrics()["samples"]["crps"]
    assert command(lab, f"{flags} --model {mine}:wrapped --des own") == 0
    assert metrics()["samples"]["crps"] == pytest.approx(native, rel=1e-4)
    assert any("_calibration_tiny_48_diag" in name for name in stand_ins(lab))


def test_a_forecast_beyond_the_end_is_that_of_the_wrapped_target(lab_and_mine):
    lab, mine = lab_and_mine
    places = f"--quiet --do_predict --root_path {lab} --data_path tiny.csv --checkpoints {lab}/checkpoints --pictures 0"
    assert run.main(f"{places} --test_dir {TARGET} --test_pred_len 30".split()) == 0
    assert run.main(f"{places} --test_dir {TARGET} --test_pred_len 30 --model {mine}:wrapped --des own --seq_len 48 "
                    f"--input_token_len {PATCH}".split()) == 0
    native, own = (pd.read_csv(path) for path in sorted(Path("test_results").glob("*/forecast.csv")))
    np.testing.assert_allclose(own["mean"], native["mean"], rtol=1e-4)


def test_a_comparison_needs_no_checkpoint_at_all(lab, mine):
    flags = (f"{BASE} --root_path {lab} --is_training 0 --compare --model {mine}:naive --spec_draft_model {mine}:naive "
             "--test_pred_len 36 --test_windows 20")
    assert run.main(flags.split()) == 0
    rows = metrics()["rows"]
    assert rows[-1]["acceptance_pct"] == 100 and rows[-1]["target_passes"] == 1
    assert f"_{mine}.naive_test_0_pl36_compare" in str(next(Path("test_results").iterdir()))
    flags = rows[-1]["flags"]  # those that repeat the row
    assert flags[:3] == ["--use_speculative", "--spec_draft_model", f"{mine}:naive"]
    assert "--spec_draft_ckpt" not in flags


def test_a_function_may_import_what_lies_beside_it(lab, mine):
    Path(f"{mine}_beside.py").write_text("SHIFT = 2.0")
    Path(f"{mine}.py").write_text(SOURCE.replace("from beside", f"from {mine}_beside"))
    flags = f"{BASE} --root_path {lab} --is_training 0 --model {mine}:late --test_pred_len 12"
    assert run.main(flags.split()) == 0


def test_longer_heads_of_a_wrapped_target_propose(lab, mine):
    flags = f"{BASE} --root_path {lab} --is_training 0 --use_speculative --spec_draft head --test_pred_len 60"
    assert run.main(f"{flags} --model {mine}:headed".split()) == 0
    found = metrics()
    assert found["acceptance_pct"] == 100 and found["target_passes"] == 2  # the first pass, and one for four proposals
    assert run.main(f"{flags} --model {mine}:naive".split()) == 2


def distil(lab, teacher, model_id, extra="", target=TARGET):
    flags = (f"{BASE} {SIZES} --root_path {lab} --model timer_xl_draft --draft_stochastic --distill --draft_rollout 3 "
             f"--model_id {model_id} --distill_target_model {teacher} {extra}")
    ckpt = f"--distill_target_ckpt {lab}/checkpoints/{target}/checkpoint.pth" if target else ""
    return run.main(f"{flags} {ckpt}".split())


@pytest.mark.parametrize("extra", ["--draft_teacher_noise 0.1", "--draft_teacher_noise calibrated --draft_answer 0.2"])
def test_a_draft_learns_the_same_from_a_wrapped_teacher(lab_and_mine, extra):
    lab, mine = lab_and_mine
    assert distil(lab, "timer_xl", "a", extra) == 0
    assert distil(lab, f"{mine}:wrapped", "b", extra) == 0
    one, other = (weights(setting=f"forecast_{name}_timer_xl_draft_test_0") for name in "ab")
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=1e-4)


def rewritten(name, old, new, monkeypatch):
    """Other code under the same name, as the next start of the program sees it."""
    monkeypatch.delitem(sys.modules, name)
    Path(f"{name}.py").write_text(SOURCE.replace(old, new))


def test_another_teacher_is_refused_even_under_the_same_name(lab, mine, capsys, monkeypatch):
    assert distil(lab, f"{mine}:naive", "d", target=None) == 0
    stored = json.loads(Path("checkpoints/forecast_d_timer_xl_draft_test_0/args.json").read_text())
    assert stored["distill_target_model"] == f"{mine}:naive" and stored["sources"]["distill_target_ckpt"]["sha256"]
    assert distil(lab, f"{mine}:shifted", "d", target=None) == 2
    assert "holds another run, which had --distill_target_" in capsys.readouterr().err
    rewritten(mine, "x[:, -", "2 * x[:, -", monkeypatch)
    assert distil(lab, f"{mine}:naive", "d", target=None) == 2
    assert "holds another run, which had --distill_target_ckpt checkpoints/adapters" in capsys.readouterr().err


def test_results_of_other_code_go_to_a_folder_of_their_own(lab, mine, monkeypatch):
    flags = f"{BASE} --root_path {lab} --is_training 0 --model {mine}:naive --test_pred_len 12"
    assert run.main(flags.split()) == 0
    rewritten(mine, "x[:, -", "2 * x[:, -", monkeypatch)
    assert run.main(flags.split()) == 0
    one, other = (metrics(folder.name)["mse"] for folder in sorted(Path("test_results").iterdir()))
    assert one != other


TEST = "--is_training 0 --test_pred_len 12 --model"


@pytest.mark.parametrize("flags, words", [
    (f"{TEST} {{}}:missing", ["has no function missing (there are:", "naive"]),
    (f"{TEST} nowhere_at_all:f", ["there is no module nowhere_at_all in", "PYTHONPATH"]),
    (f"{TEST} {{}}:failing", ["failed: KeyError: 'no such layer'", ".py, line "]),
    (f"{TEST} {{}}:short", ["extend failed: ValueError: next_patch returned means"]),
    (f"{TEST} {{}}:other_patch", ["has a patch of 6 steps", "--input_token_len 12"]),
    (f"{TEST} {{}}:no_model", ["returned a Linear, which has no start"]),
    (f"{TEST} {{}}:wants", ["has a parameter width that is not given"]),
    (f"{TEST} {{}}:wrapped", ["has a parameter checkpoint that is not given: name the file"]),
    (f"{TEST} {{}}:naive --test_dir x", ["its checkpoint checkpoints/x/checkpoint.pth does not exist"]),
    (f"{TEST} {{}}:naive --d_model 8", ["--d_model has no effect with --model"]),
    (f"{TEST} {{}}:naive --rolling cache", ["--rolling does not go with"]),
    (f"{TEST} {{}}:naive --use_speculative --spec_draft head", [":naive has no longer heads (heads_ahead, docs/YOUR"]),
    (f"{TEST} {{}}:naive --output_attention", ["--output_attention does not go with"]),
    (f"{TEST} chronos", ["--model: 'chronos' is not one of timer", "module:function", "docs/YOUR_MODEL.md"]),
    ("--model {}:naive", ["cannot be trained here", "--distill --distill_target_model"]),
    ("--model timer_xl_draft --distill --distill_target_model {}:naive", ["add --draft_rollout N"]),
    ("--model timer_xl_draft --distill --distill_target_model {}:naive --draft_rollout 2 --draft_rollout_context 1",
     ["leave out --draft_rollout_context"]),
    ("--model timer_xl_draft --distill --distill_target_model {}:naive --draft_rollout 2 --draft_teacher_dropout 0.1",
     ["leave out --draft_teacher_dropout"]),
    ("--model timer_xl_draft --distill --distill_target_model {}:naive --draft_rollout 2 --distill_target_d_ff 8",
     ["--distill_target_d_ff has no effect"]),
])
def test_what_does_not_go_is_refused_in_one_line(lab, mine, capsys, flags, words):
    assert run.main(f"{BASE} --root_path {lab} {flags.format(mine)}".split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "`" not in said
    assert all(word in said for word in words), said
    assert not list(Path().rglob("*.pth")) and not Path("test_results").exists()


def test_a_file_beside_a_checkpoint_runs_no_code(own_lab, mine, capsys):
    Path(f"{mine}.py").write_text("open('executed', 'w')")
    args = own_lab / "checkpoints" / TARGET / "args.json"
    args.write_text(json.dumps(json.loads(args.read_text()) | {"model": f"{mine}:wrapped"}))
    assert command(own_lab, "--test_pred_len 12") == 2
    assert not Path("executed").exists() and "is none of timer_xl" in capsys.readouterr().err


@pytest.mark.parametrize("extra", ["", "--draft_rollout 2 --draft_rollout_context 1 --draft_answer 0.1",
                                   "--draft_rollout 2 --draft_teacher_noise calibrated"])
@pytest.mark.parametrize("name", sorted(set(TEACHERS) - {"timesfm"}))  # that one: tests/exp/test_timesfm_cli.py
def test_every_model_of_the_registry_teaches(lab, place, name, extra):
    model = {"timer_xl": tiny_target, "timer": tiny_timer}[name](**TRAIN_SIZES, input_token_len=PATCH)
    save("teacher", model)
    flags = (f"{BASE} {SIZES} --root_path {lab} --model timer_xl_draft --draft_stochastic --distill {extra} "
             f"--distill_target_model {name} --distill_target_ckpt teacher --subset_rand_ratio 0.1 --val_windows 9")
    assert run.main(flags.split()) == 0
    learned = weights(setting="forecast_test_timer_xl_draft_test_0")
    assert all(bool(value.isfinite().all()) for value in learned.values())


@pytest.mark.parametrize("balance", ["series", "windows"])
def test_a_draft_for_any_target_learns_from_a_mixture_of_files(place, mine, balance):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(tiny_series(500), columns=["a", "b", "c"])
    frame[:400].to_csv("a.csv", index=False)
    frame[["a", "b"]].to_parquet("b.parquet")
    np.save("c.npy", frame["c"].to_numpy()[:300])
    flags = (f"{BASE} {SIZES} --root_path . --data_path a.csv,b.parquet,c.npy --model timer_xl_draft --distill"
             f" --draft_stochastic --draft_rollout 2 --draft_teacher_noise calibrated --val_windows 9"
             f" --distill_target_model {mine}:naive --balance {balance}")
    assert run.main(flags.split()) == 0
    args = json.loads(Path("checkpoints/forecast_test_timer_xl_draft_test_0/args.json").read_text())
    assert args["data"] == "UnivariateDatasetBenchmark" and args["sources"]["data_path"]["files"] == 3
    assert set(metrics()["files"]) == {"a.csv", "b.parquet", "c.npy"}
