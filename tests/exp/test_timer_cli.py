"""A public Timer from its folder: tested, distilled from, compared, and used beyond the end of a file."""
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exp_helpers import BASE, CONTEXT, PATCH, metrics, results, standardised, workplace_with_series
from helpers import public_folder, rows_of, tiny_series, tiny_timer
from reference.timer import reference_forecast

import run
from exp.predict.forecaster import Forecaster
from exp.settings import ModelSettings
from models.checkpoint import read_settings
from utils.errors import UserError

pytest.importorskip("safetensors")
HORIZON = 36
TIMER = f"{BASE} --root_path . --test_pred_len {HORIZON} --model timer --is_training 0 --test_dir timer-base-84m"
DRAFT = "forecast_d_timer_xl_draft_test_0"
WITH_DRAFT = f"--spec_draft_ckpt checkpoints/{DRAFT}"
DISTIL = (f"{BASE} --root_path . --test_pred_len {HORIZON} --model_id d --model timer_xl_draft --draft_stochastic "
          "--distill --distill_target_model timer --distill_target_ckpt checkpoints/timer-base-84m --norm_mode causal "
          "--draft_scale_d_ff 0.5 --draft_rollout 2 --draft_rollout_context 1 --draft_answer 0.1 --train_epochs 1 "
          "--learning_rate 0.003 --batch_size 64")


def timer(norm_roll="patch"):
    return tiny_timer(norm_roll, input_token_len=PATCH)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the series, a Timer of random weights as the hub has it, and a draft that was distilled from it."""
    with workplace_with_series(tmp_path_factory, "timer") as folder:
        public_folder("checkpoints/timer-base-84m", timer())
        assert run.main(DISTIL.split()) == 0
    return folder


@pytest.fixture
def lab(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "lab", ignore=shutil.ignore_patterns("test_results"))
    monkeypatch.chdir(tmp_path / "lab")


def slow_mse(norm_roll, windows):
    """Of the first test windows, by the slow Timer."""
    values, errors = standardised(), []
    part = values[len(values) - int(len(values) * 0.2) - CONTEXT:].astype(np.float32)
    for start in windows:
        made = reference_forecast(timer(), part[start:start + CONTEXT], HORIZON // PATCH, norm_roll)
        errors.append(made - part[start + CONTEXT:start + CONTEXT + HORIZON])
    return np.mean(np.square(errors))


@pytest.mark.parametrize("flags, way", [
    ("", "patch"), ("--norm_roll patch --rolling window", "patch"), ("--norm_roll frozen", "frozen"),
    ("--norm_roll frozen --rolling cache", "frozen"), ("--norm_roll window", "window")])
def test_a_test_forecasts_in_the_way_that_is_named(lab, capsys, flags, way):
    assert run.main(f"{TIMER} --test_windows 2 {flags}".split()) == 0
    assert "note: rolling" not in capsys.readouterr().out
    last = int(600 * 0.2) - HORIZON  # the windows are spread from the first to the last
    assert metrics()["mse"] == pytest.approx(slow_mse(way, [0, last]), rel=1e-4)


def test_the_draft_has_the_sizes_of_its_target(trained):
    stored = read_settings(trained / "checkpoints" / DRAFT / "checkpoint.pth")
    assert {name: stored[name] for name in ("model", "d_model", "d_ff", "e_layers", "activation", "use_norm")} == {
        "model": "timer_xl_draft", "d_model": 16, "d_ff": 32, "e_layers": 2, "activation": "silu", "use_norm": True}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["patch", "window"])
def test_a_comparison_of_all_rules(lab, way):
    flags = f"--compare {WITH_DRAFT} --norm_roll {way} --spec_tol 0 --test_windows 6"
    assert run.main(f"{TIMER} {flags}".split()) == 0
    rows = {row["method"]: row for row in rows_of(results() / "compare.csv")}
    alone = "target alone" + (" (cached)" if way == "patch" else "")
    for method in ("speculative parareal 0", "speculative tolerance 0"):
        assert float(rows[method]["mse"]) == pytest.approx(float(rows[alone]["mse"]), rel=1e-4)
    assert len(rows) == 9 and float(rows["draft alone"]["mse"]) != float(rows[alone]["mse"])
    assert json.loads((results() / "settings.json").read_text())["norm_roll"] == way


def test_paths_are_sampled_with_a_law_of_each_way(lab, capsys):
    """A law that was calibrated for one way is not used for another."""
    flags = f"{TIMER} --num_samples 4 --spec_sigma_mode calibrated --spec_growth none --test_windows 4"
    assert run.main(flags.split()) == 0
    assert metrics()["samples"]["crps"] > 0
    assert len(list(Path("checkpoints/timer-base-84m").glob("*_calibration_*"))) == 2
    assert run.main(f"{flags} --norm_roll frozen".split()) == 2
    assert "was calibrated for other rolling ('patch', here 'frozen'): delete it" in capsys.readouterr().err
    assert run.main(f"{TIMER} --use_speculative {WITH_DRAFT} --spec_accept_rule coupling --spec_sigma 0.3 "
                    "--num_samples 4 --test_windows 4".split()) == 0
    assert metrics()["samples"]["crps"] > 0


def test_a_forecast_beyond_the_end_is_that_of_the_slow_timer(lab, capsys):
    assert run.main(f"{TIMER.replace('--is_training 0', '--do_predict')} --norm_roll frozen".split()) == 0
    assert "are forecast together" not in capsys.readouterr().out  # no variable sees another
    written = pd.read_csv(results() / "forecast.csv")
    values = tiny_series().round(5)
    context = values[-CONTEXT:]
    mean, stdev = context.mean(axis=0), context.std(axis=0)
    expected = reference_forecast(timer(), (context - mean) / stdev, HORIZON // PATCH, "frozen") * stdev + mean
    loaded = Forecaster.load("checkpoints/timer-base-84m", context=CONTEXT, quiet=True,
                             model=ModelSettings(name="timer", norm_roll="frozen"))
    made = loaded.predict({"a": values[:, 0]}, HORIZON)
    np.testing.assert_allclose(made["mean"], expected[:, 0], atol=2e-4)
    for variable, name in enumerate("abc"):
        np.testing.assert_allclose(written.loc[written["unique_id"] == name, "mean"], expected[:, variable], atol=2e-4)
    with pytest.raises(UserError, match="`rolling` cache contradicts"):
        Forecaster.load("checkpoints/timer-base-84m", context=CONTEXT,
                        model=ModelSettings(name="timer", norm_roll="window", rolling="cache"))


@pytest.mark.parametrize("flags, words", [
    (f"{BASE} --root_path . --is_training 0 --test_dir timer-base-84m", ["is a timer, not a timer_xl", "--model"]),
    (f"{TIMER} --norm_roll window --rolling cache", ["--rolling cache contradicts --norm_roll window"]),
    (f"{TIMER} --norm_mode causal", ["--norm_mode causal", "timer"]), (f"{TIMER} --d_model 32", ["--d_model 32", "16"]),
    (f"{TIMER} --covariate", ["--covariate True", "False"]),
    (f"{BASE} --root_path . --norm_roll frozen", ["--norm_roll has no effect without --model timer"]),
    (f"{TIMER} --test_file_name checkpoint.bin", ["checkpoint.bin", "does not exist"])])
def test_what_contradicts_a_public_model_is_refused(lab, capsys, flags, words):
    assert run.main(flags.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said


def test_a_timer_is_trained_and_tested(lab):
    flags = (f"{BASE} --root_path . --test_pred_len {HORIZON} --model timer --d_model 16 --n_heads 2 --d_ff 32 "
             "--train_epochs 1 --learning_rate 0.003 --output_attention")
    assert run.main(flags.split()) == 0
    stored = read_settings(Path("checkpoints/forecast_test_timer_test_0/checkpoint.pth"))
    assert (stored["model"], stored["activation"], stored["use_norm"]) == ("timer", "silu", True)
    adapted = flags.replace("--output_attention", "--model_id a --adaptation --pretrain_model_path")
    assert run.main(f"{adapted} checkpoints/forecast_test_timer_test_0".split()) == 0
