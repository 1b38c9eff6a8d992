"""--num_samples, calibration and --test_windows from the command line to the files."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import assert_picture, metrics, results, save_pair

import run
from models import timer_xl_draft
from models.checkpoint import read_settings, save_checkpoint
from models.config import ModelConfig

CONFIG = ModelConfig(input_token_len=12, d_model=16, n_heads=2, d_ff=32, e_layers=1, use_norm=True)
ROWS, WINDOWS = 600, 120 - 24 + 1  # of the test part, at a horizon of 24
TARGET = Path("checkpoints/target/checkpoint.pth")
DIAG = TARGET.with_name("checkpoint_calibration_noise_48_diag.pth")
BASE = "--quiet --root_path . --data_path noise.csv --test_pred_len 24 --batch_size 32"
DISTIL = (f"{BASE} --model timer_xl_draft --distill --distill_target_ckpt {TARGET} --draft_stochastic "
          "--train_epochs 8 --test_windows 1")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a series, an untrained target and a draft that has its weights."""
    monkeypatch.chdir(tmp_path)
    t = np.arange(ROWS)[:, None]
    values = np.sin(2 * np.pi * t / np.array([12, 24])) + 0.3 * np.random.default_rng(0).normal(size=(ROWS, 2))
    pd.DataFrame(values.round(5), columns=["a", "b"]).to_csv("noise.csv", index=False)
    save_pair(CONFIG, "noise.csv", seq_len=48)


def sample(flags, code=0):
    assert run.main(f"{BASE} --is_training 0 --test_dir target {flags}".split()) == code


def saved():
    with np.load(results() / "samples.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_paths_truth_and_scores_belong_together(capsys):
    sample("--num_samples 40 --spec_sigma 0.5 --save_samples --test_windows 9")
    arrays, got = saved(), metrics()
    assert {name: array.shape for name, array in arrays.items()} == {
        "samples": (9, 40, 24, 2), "truth": (9, 24, 2), "window_index": (9,), "series": (9,)}
    assert arrays["window_index"].tolist() == [i * (WINDOWS - 1) // 8 for i in range(9)]
    assert arrays["samples"].dtype == np.float32
    series = pd.read_csv("noise.csv").to_numpy()
    train = series[:int(0.7 * ROWS)]
    standard = (series - train.mean(axis=0)) / train.std(axis=0)
    for index, truth in zip(arrays["window_index"], arrays["truth"]):
        start = ROWS - 120 + index
        np.testing.assert_allclose(truth, standard[start:start + 24], atol=1e-5)
    scores = got["samples"]
    samples, truth = arrays["samples"].astype(float), arrays["truth"]
    pairs = np.abs(samples[:, :, None] - samples[:, None]).sum(axis=(1, 2)) / (2 * 40 * 39)
    crps = np.abs(samples - truth[:, None]).mean(axis=1) - pairs
    assert scores["crps"] == pytest.approx(crps.mean(), rel=1e-4)
    assert scores["windows"] == got["windows"] == got["test_windows"] == 9
    assert scores["law"] == {"spec_sigma_mode": "fixed", "spec_sigma": 0.5, "spec_temp": 1.0}
    # around the mean of a path of one patch there is nothing but the law
    assert samples[:, :, :12].std(axis=1).mean() == pytest.approx(0.5, rel=0.05)
    assert_picture(results() / "pit.png")
    said = capsys.readouterr().out
    assert f"40 paths for each of 9 windows, CRPS {scores['crps']:.4f}" in said
    first, last = scores["by_patch"]["coverage_95_pct"]
    assert f"(of the 95 % band {first:.1f} % in the first patch, {last:.1f} % in the last)" in said
    sample("--num_samples 40 --spec_sigma 0.5 --test_windows 9 --test_pred_len 12")
    assert "in the first patch" not in capsys.readouterr().out  # there is one


def test_point_metrics_are_those_of_mean_emission():
    sample("--num_samples 5 --spec_sigma 0.5")
    sampled = metrics()
    sample("--des plain")
    plain = metrics("target_pl24_plain")
    assert sampled["mse"] == plain["mse"] and "samples" not in plain
    assert sampled["samples"]["mse_of_mean"] != plain["mse"]


@pytest.mark.parametrize("flags, same", [("--batch_size 5", True), ("--seed 1", False)])
@pytest.mark.parametrize("rule", [None, "exact", *(pytest.param(rule, marks=pytest.mark.slow)
                                                  for rule in ("simplified", "coupling"))])
def test_paths_depend_on_the_seed_and_not_on_the_batch(flags, same, rule):
    command = "--num_samples 4 --spec_sigma 0.5 --save_samples --test_windows 11"
    if rule:
        command += f" --use_speculative --spec_draft_ckpt checkpoints/draft --spec_accept_rule {rule}"
    sample(command)
    first = saved()["samples"]
    sample(f"{command} {flags}")
    assert np.allclose(saved()["samples"], first, atol=1e-5) == same


def test_paths_of_an_older_run_do_not_stay():
    sample("--num_samples 4 --save_samples --test_windows 3")
    sample("--num_samples 4 --test_windows 3")
    assert not (results() / "samples.npz").exists()


def test_each_series_of_univariate_windows_is_sampled_by_itself():
    univariate = "--data UnivariateDatasetBenchmark --spec_sigma_mode calibrated"
    sample(f"{univariate} --num_samples 4 --save_samples --test_windows 3")
    arrays = saved()
    assert arrays["samples"].shape == (6, 4, 24, 1)
    assert arrays["window_index"].tolist() == [0, 48, 96, WINDOWS, WINDOWS + 48, WINDOWS + 96]
    assert arrays["series"].tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.load(DIAG, weights_only=True)["factor"].shape == (12, 1)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_a_calibration_is_fitted_once_then_loaded(covariance, capsys):
    command = f"--num_samples 4 --spec_sigma_mode calibrated --spec_covariance {covariance} --save_samples"
    sample(command)
    assert "calibrated on" in capsys.readouterr().out
    path = DIAG.with_name(DIAG.name.replace("diag", covariance))
    before, stamp = saved()["samples"], path.stat().st_mtime_ns
    sample(command)
    said = capsys.readouterr().out
    assert f"calibration of {path}" in said and "on held-out windows" in said
    assert path.stat().st_mtime_ns == stamp and np.array_equal(saved()["samples"], before)
    assert metrics()["samples"]["law"]["spec_covariance"] == covariance


def test_weights_in_bf16_have_a_law_and_bands_of_their_own(capsys):
    command = "--num_samples 4 --spec_sigma_mode calibrated --spec_width one"
    kept = {path: path.with_name(f"{path.stem}_bf16.pth") for path in (DIAG, DIAG.with_name(f"{DIAG.stem}_one_24.pth"))}
    sample(command)
    sample(f"{command} --bf16")
    assert capsys.readouterr().out.count("calibrated on") == 2
    assert sorted(DIAG.parent.glob("*_calibration_*")) == sorted([*kept, *kept.values()])
    DIAG.replace(kept[DIAG])
    sample(f"{command} --bf16", code=2)
    assert "calibrated for other weights in bf16 (None, here True)" in capsys.readouterr().err


def test_a_calibrated_law_holds_the_truth_where_a_guess_does_not():
    sample("--num_samples 50 --spec_sigma_mode calibrated --spec_growth none")
    assert metrics()["samples"]["coverage_80_pct"] == pytest.approx(80, abs=8)
    sample("--num_samples 50 --spec_sigma 0.05")
    assert metrics()["samples"]["coverage_80_pct"] < 10
    assert metrics()["samples"]["rolling"]["coverage_80_pct"] > 50  # the windows before say that it is too narrow


@pytest.mark.slow
def test_a_foreign_calibration_is_an_error_and_writes_nothing(capsys):
    sample("--num_samples 4 --spec_sigma_mode calibrated --des first")
    settings, state = read_settings(TARGET), torch.load(TARGET, weights_only=True)
    save_checkpoint(TARGET.parent, {name: 2 * value for name, value in state.items()}, settings)
    capsys.readouterr()
    sample("--num_samples 4 --spec_sigma_mode calibrated", code=2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and DIAG.name in said and "other weights" in said and "delete it" in said
    assert [path.name for path in Path("test_results").iterdir()] == ["target_pl24_samples_first"]
    DIAG.unlink()
    sample("--num_samples 4 --spec_sigma_mode calibrated")  # bands of the law that is gone are measured again


def test_training_forgets_the_calibration_of_older_weights():
    train = f"{BASE} --seq_len 48 --input_token_len 12 --d_model 16 --n_heads 2 --d_ff 32"
    train += " --num_samples 4 --spec_sigma_mode calibrated"
    calibrations = []
    for epochs in (1, 2):
        assert run.main(f"{train} --train_epochs {epochs}".split()) == 0
        calibrations.append(next(Path("checkpoints").glob("forecast*/*_calibration_*")).read_bytes())
    assert calibrations[0] != calibrations[1]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--draft_rollout 2"])
def test_a_draft_learns_the_sigma_of_a_calibrated_target(flags):
    command = f"{DISTIL} --learning_rate 0.02 --lradj constant {flags} --draft_teacher_noise calibrated"
    assert run.main(command.split()) == 0
    draft = timer_xl_draft.Model(replace(CONFIG, draft_stochastic=True)).eval()
    draft.load_state_dict(torch.load("checkpoints/forecast_test_timer_xl_draft_test_0/checkpoint.pth"))
    with torch.no_grad():
        x = torch.from_numpy(pd.read_csv("noise.csv").to_numpy()[None, :48]).float()
        sigma = torch.exp(0.5 * draft(x)[1][:, -12:]) / x.std(dim=1)
    factor = torch.load(DIAG, weights_only=True)["factor"]
    # without the noise it ends at a twentieth of that
    assert float(sigma.mean()) == pytest.approx(float(factor.mean()), rel=0.3)


def test_a_sampling_rule_draws_paths_and_says_what_it_accepted():
    draft = "--use_speculative --spec_draft_ckpt checkpoints/draft/checkpoint.pth --spec_sigma 0.5"
    sample(f"{draft} --num_samples 6 --save_samples --test_windows 5")
    got = metrics()["samples"]
    assert saved()["samples"].shape == (5, 6, 24, 2)
    assert got["attempted"] == 5 * 6 and 0 <= got["acceptance_pct"] <= 100
    # two patches a path: every round of it ends with one of the target's own
    assert got["accepted"] / (5 * 6) + got["target_passes"] == pytest.approx(2)
    assert got["windows"] == 5 and results().name == "target_pl24_spec_simplified_samples"


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--spec_accept_rule exact", "--spec_accept_rule coupling",
                                   "--spec_accept_rule coupling --spec_covariance full --spec_temp 0.5"])
def test_a_rule_that_keeps_the_law_scores_as_the_target_alone(flags):
    flags += " --num_samples 60 --spec_sigma_mode calibrated --test_windows 30"
    sample(f"{flags} --use_speculative --spec_draft_ckpt checkpoints/draft/checkpoint.pth --des rule")
    by_rule = metrics()["samples"]
    sample(f"{flags.partition(' ')[2].partition(' ')[2]} --des alone")
    alone = metrics("target_pl24_samples_alone")["samples"]
    assert by_rule["attempted"] == 30 * 60 and by_rule["law"] == alone["law"]
    assert by_rule["crps"] == pytest.approx(alone["crps"], rel=0.03)
    assert by_rule["width_80"] == pytest.approx(alone["width_80"], rel=0.03)


def test_fewer_windows_are_a_part_of_the_same_windows():
    sample("--test_windows 97 --des all")
    sample("--test_windows 1 --des first")
    values = [metrics(f"target_pl24_{name}") for name in ("all", "first")]
    assert [value["windows"] for value in values] == [97, 1] and values[0]["mse"] != values[1]["mse"]
    sample("--des unlimited")
    unlimited = metrics("target_pl24_unlimited")
    assert unlimited["mse"] == values[0]["mse"] and unlimited["test_windows"] is None


BY_RULE = "--use_speculative --spec_draft_ckpt checkpoints/draft/checkpoint.pth --spec_accept_rule coupling"


@pytest.mark.parametrize("mode, relative", [("calibrated", True), ("fixed", False)])
def test_pictures_are_decoded_by_the_law_that_is_measured(mode, relative, monkeypatch):
    drawn = []
    monkeypatch.setattr("exp.exp_forecast.draw_forecasts", lambda folder, method, *_: drawn.append(method.rule.law))
    sample(f"{BY_RULE} --spec_sigma_mode {mode} --visualize --test_windows 2")
    assert [law.relative for law in drawn] == [relative]


def test_an_interruption_while_sampling_leaves_the_point_metrics(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr("exp.exp_forecast.evaluate_paths", interrupt)
    sample("--num_samples 4 --test_windows 3", code=130)
    assert metrics()["mse"] > 0 and "samples" not in metrics()
