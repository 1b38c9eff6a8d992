"""A public TimesFM from its folder: tested, with its longer head as the draft, compared, and used for predictions."""
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import metrics, results, standardised, workplace_with_series
from helpers import rows_of, save_small, tiny_series, write_series
from reference.timesfm import forecast, public_weights

import run
from exp.predict.forecaster import Forecaster
from models import registry
from utils.errors import UserError

safetensors = pytest.importorskip("safetensors.torch")
TOKEN, PATCH, CONTEXT, HORIZON = 4, 16, 36, 60  # the context is no multiple of the patch
SIZES = {"d_model": 16, "n_heads": 2, "d_ff": 24, "e_layers": 2}
WEIGHTS = public_weights(1, token_len=TOKEN, patch_len=PATCH, head_len=64, **SIZES)
FLAGS = "--quiet --data_path tiny.csv --root_path . --model timesfm"
TESTED = f"{FLAGS} --seq_len {CONTEXT} --test_pred_len {HORIZON} --is_training 0 --test_dir timesfm"
HEAD = "--use_speculative --spec_draft head"


def slow(series):
    return forecast(series, HORIZON, WEIGHTS, token_len=TOKEN, n_heads=SIZES["n_heads"], e_layers=SIZES["e_layers"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the series, and a TimesFM of random weights as the hub has it."""
    with workplace_with_series(tmp_path_factory, "timesfm") as folder:
        place = Path("checkpoints/timesfm")
        place.mkdir(parents=True)
        safetensors.save_file({name: torch.tensor(value).float() for name, value in WEIGHTS.items()},
                              place / "model.safetensors")
        (place / "config.json").write_text('{"torch_compile": true}')  # which says nothing of what it is
    return folder


@pytest.fixture
def lab(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "lab", ignore=shutil.ignore_patterns("test_results"))
    monkeypatch.chdir(tmp_path / "lab")


def test_a_test_forecasts_what_the_slow_model_does(lab):
    assert run.main(f"{TESTED} --test_windows 2 --output_attention".split()) == 0
    values, errors = standardised(), []
    part = values[len(values) - int(len(values) * 0.2) - CONTEXT:]
    for start in (0, int(len(values) * 0.2) - HORIZON):  # the windows are spread from the first to the last
        window = part[start:start + CONTEXT + HORIZON]
        errors += [slow(window[:CONTEXT, variable]) - window[CONTEXT:, variable] for variable in range(3)]
    assert metrics()["mse"] == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


def test_its_longer_head_proposes(lab):
    assert run.main(f"{TESTED} --test_windows 8".split()) == 0
    alone = metrics()
    assert run.main(f"{TESTED} --test_windows 8 {HEAD} --spec_accept_rule tolerance --spec_tol 0".split()) == 0
    assert metrics()["mse"] == pytest.approx(alone["mse"], rel=1e-5)
    assert run.main(f"{TESTED} --test_windows 8 {HEAD} --spec_accept_rule tolerance --spec_tol 1.4".split()) == 0
    found = metrics()
    assert 2 < found["target_passes"] < 4 and found["draft_passes"] == 0 and found["accepted"] > 0


@pytest.mark.slow
def test_a_comparison_with_its_head_and_with_a_draft(lab):
    assert run.main(f"{TESTED} --test_windows 6 --compare --spec_draft head --spec_tol 0".split()) == 0
    rows = {row["method"]: row for row in rows_of(results() / "compare.csv")}
    assert float(rows["speculative tolerance 0"]["mse"]) == pytest.approx(
        float(rows["target alone (cached)"]["mse"]), rel=1e-5)
    assert "draft alone" not in rows and len(rows) == 7
    save_small("checkpoints/draft", "timer_xl_draft", input_token_len=PATCH, draft_stochastic=True, use_norm=True)
    longer = TESTED.replace(f"--seq_len {CONTEXT}", "--seq_len 48")
    flags = "--test_windows 6 --compare --spec_draft_ckpt checkpoints/draft --spec_tol 0"
    assert run.main(f"{longer} {flags}".split()) == 0
    rows = {row["method"]: row for row in rows_of(results() / "compare.csv")}
    for method in ("speculative parareal 0", "speculative tolerance 0"):
        assert float(rows[method]["mse"]) == pytest.approx(float(rows["target alone (cached)"]["mse"]), rel=1e-4)


def test_a_forecast_beyond_the_end_is_that_of_the_slow_model(lab):
    flags = TESTED.replace("--is_training 0", "--do_predict --spec_draft head --spec_tol 0")
    assert run.main(flags.split()) == 0
    written, context = pd.read_csv(results() / "forecast.csv"), tiny_series().round(5)[-CONTEXT:]
    mean, stdev = context.mean(axis=0), context.std(axis=0)
    table = Forecaster.load("checkpoints/timesfm", context=CONTEXT, quiet=True, heads=True).predict(
        {"a": tiny_series().round(5)[:, 0]}, HORIZON)
    for variable, name in enumerate("abc"):
        expected = slow((context[:, variable] - mean[variable]) / stdev[variable]) * stdev[variable] + mean[variable]
        np.testing.assert_allclose(written.loc[written["unique_id"] == name, "mean"], expected, atol=2e-4)
        if name == "a":
            assert np.sqrt(np.mean((table["mean"] - expected) ** 2)) < 2 * stdev[0]  # at the default tolerance


def test_paths_are_sampled_with_a_law_of_its_own(lab, capsys):
    flags = f"{TESTED} --num_samples 4 --spec_sigma_mode calibrated --spec_growth none --test_windows 4"
    assert run.main(flags.split()) == 2
    assert f"{3 * PATCH} are needed" in capsys.readouterr().err  # it is a law of whole patches, not of tokens
    write_series(tiny_series(900), "long.csv")
    assert run.main(flags.replace("tiny.csv", "long.csv").split()) == 0
    assert metrics()["samples"]["crps"] > 0


DISTIL = ("--quiet --data_path tiny.csv --root_path . --seq_len 48 --test_pred_len 32 --model timer_xl_draft "
          "--draft_stochastic --distill --distill_target_model timesfm --distill_target_ckpt checkpoints/timesfm "
          "--draft_scale_d_ff 0.5 --train_epochs 1 --subset_rand_ratio 0.1 --val_windows 9")


def test_it_teaches_a_draft_by_its_forecasts(lab, capsys):
    assert run.main(DISTIL.split()) == 2
    assert "--distill_target_model timesfm is known by its forecasts" in capsys.readouterr().err
    assert run.main(f"{DISTIL} --draft_rollout 2 --draft_answer 0.1 --draft_teacher_noise 0.1".split()) == 0
    draft = registry.load("checkpoints/forecast_test_timer_xl_draft_test_0")
    assert draft.patch_len == PATCH and draft.config.d_model == SIZES["d_model"]


@pytest.mark.parametrize("name", ["model.safetensors", "bare.pth"])
def test_what_it_is_can_be_asked(lab, capsys, name):
    folder = Path("checkpoints/timesfm")
    torch.save(safetensors.load_file(folder / "model.safetensors"), folder / "bare.pth")
    assert run.main(["--inspect", str(folder / name)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("timesfm, a target", "patch 16, read 4 steps at a time", "each token by all before its end",
                  "by cache, which is exact", "its own longer head (--spec_draft head)"):
        assert words in said
    command = said.partition("to test it python run.py ")[2].replace("FOLDER", ".").replace("FILE", "tiny.csv")
    # the series is too short for seven patches; a bare file has no seq_len of its own either
    flags = command.split() + ["--seq_len", "36", "--test_pred_len", "20", "--test_windows", "2", "--quiet"]
    assert run.main(flags) == 0


def test_a_folder_is_loaded_by_its_tensors(lab):
    folder = Path("checkpoints/timesfm")
    (folder / "config.json").unlink()
    model = registry.load(folder)
    assert (model.token_len, model.patch_len, model.heads_ahead) == (TOKEN, PATCH, 3)
    state = safetensors.load_file(folder / "model.safetensors")
    del state["tokenizer.hidden_layer.weight"]
    safetensors.save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match="lacks tensors of a TimesFM .'tokenizer.hidden_layer.weight'"):
        registry.load(folder)


@pytest.mark.parametrize("flags, words", [
    (FLAGS, ["--model timesfm", "not trained here", "--is_training 0"]),
    (f"{TESTED} --rolling window", ["--rolling window", "timesfm"]), (f"{TESTED} --d_model 32", ["--d_model 32", "16"]),
    (f"{TESTED} --output_token_len 8", ["--output_token_len 8", "16"]),
    (f"{TESTED} --covariate", ["--covariate", "False"]),
    (f"{TESTED} --norm_mode causal", ["--norm_mode causal", "window"]),
    (f"{TESTED} --no-flash_attention", ["--flash_attention", "timesfm"]),
    (f"{TESTED} --test_seq_len 38", ["--test_seq_len 38", "use 36"]),
    (f"{TESTED} --norm_roll frozen", ["--norm_roll", "timer"]),
    (f"{TESTED} {HEAD} --spec_accept_rule parareal", ["--spec_draft head", "parareal"]),
    (f"{TESTED} --use_speculative --spec_draft_ckpt checkpoints/draft", ["16 steps at a time", "use 32"]),
    (f"{TESTED} --use_speculative --spec_draft_ckpt checkpoints/other",
     ["a patch of 4 steps", "--output_token_len 16"]),
    (f"{FLAGS} --is_training 0 --test_dir draft", ["is a timer_xl_draft, not a timesfm"])])
def test_what_does_not_go_with_it_is_refused(lab, capsys, flags, words):
    save_small("checkpoints/draft", "timer_xl_draft", input_token_len=PATCH)
    save_small("checkpoints/other", "timer_xl_draft", input_token_len=TOKEN)
    assert run.main(flags.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
