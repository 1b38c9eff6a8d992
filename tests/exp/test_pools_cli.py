"""One target and its draft for a pool of files with different lengths, steps and numbers of series."""
import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import CONTEXT, PATCH, SIZES, load, metrics, results
from helpers import tiny_series

import run
from models.checkpoint import read_settings

POOL = "hours.csv quarters.csv more"
BASE = f"--quiet --root_path . --seq_len {CONTEXT} --input_token_len {PATCH}"
TRAIN = f"{BASE} {SIZES} --norm_mode causal --data_path {POOL}"
TARGET = "forecast_p_timer_xl_test_0"
SEASONS = {"hours.csv": 24, "quarters.csv": 96, "more/a.npy": 24, "more/deep/b.npy": 24}


def files():
    """Values [T, C] by label."""
    values = tiny_series(900)
    return {"hours.csv": values[:, :2], "quarters.csv": 5 * values[100:800, 2:] + 3,
            "more/a.npy": values[:600, [1]].astype(np.float32), "more/deep/b.npy": -values[300:].astype(np.float32)}


def write_pool():
    Path("more/deep").mkdir(parents=True)
    for name, values in files().items():
        if name.endswith(".npy"):
            np.save(name, values[:, 0] if values.shape[1] == 1 else values)
        else:
            frame = pd.DataFrame(values, columns=[f"v{i}" for i in range(values.shape[1])])
            freq = "h" if name == "hours.csv" else "15min"
            frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(values), freq=freq))
            frame.to_csv(name, index=False)
    np.save("more/short.npy", np.arange(20.0))


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_pool()
        assert run.main(f"{TRAIN} --model_id p --val_windows 7".split()) == 0
        distil = (f"--distill --distill_target_ckpt checkpoints/{TARGET}/checkpoint.pth --draft_stochastic "
                  "--draft_rollout 4 --balance windows --subset_rand_ratio 0.2")
        assert run.main(f"{TRAIN} --model_id d --model timer_xl_draft {distil}".split()) == 0
    return folder


@pytest.fixture
def place(pooled, monkeypatch):
    monkeypatch.chdir(pooled)


def measured(flags, data_path=POOL):
    assert run.main(f"{BASE} --is_training 0 --test_dir {TARGET} --data_path {data_path} {flags}".split()) == 0
    return metrics()


def errors_by_hand(horizon, windows=None):
    """label -> (errors [C, W, H], naive error [C]), by a loop that knows nothing of the program's data sets."""
    model, found = load(Path(), TARGET), {}
    for label, values in files().items():
        values = (values if label.endswith(".npy") else values.astype(np.float64)).astype(np.float64)
        train, test = int(len(values) * 0.7), int(len(values) * 0.2)
        scaled = (values - values[:train].mean(axis=0)) / values[:train].std(axis=0)
        part, season = scaled[len(values) - test - CONTEXT:], SEASONS[label]
        starts = range(len(part) - CONTEXT - horizon + 1)
        starts = starts if windows is None else np.linspace(0, len(starts) - 1, windows).astype(int)
        errors = []
        for column in part.T:
            x = torch.tensor(np.stack([column[s:s + CONTEXT] for s in starts]), dtype=torch.float32)[..., None]
            while x.shape[1] < CONTEXT + horizon:
                with torch.no_grad():
                    x = torch.cat([x, model(x)[:, -PATCH:]], dim=1)
            truth = np.stack([column[s + CONTEXT:s + CONTEXT + horizon] for s in starts])
            errors.append(x[:, CONTEXT:CONTEXT + horizon, 0].numpy() - truth)
        naive = np.abs(scaled[season:train] - scaled[:train - season]).mean(axis=0)
        found[label] = np.stack(errors), naive
    return found


@pytest.mark.parametrize("flags, windows", [("--test_windows 9", 9), ("", None)])
def test_errors_of_every_series_file_and_all_are_those_of_a_loop(place, flags, windows):
    got, expected = measured(f"--test_pred_len 36 {flags}"), errors_by_hand(36, windows)
    every = np.concatenate([errors.ravel() for errors, _ in expected.values()])
    assert got["windows"] == len(every) / 36
    assert (got["mse"], got["mae"]) == pytest.approx(((every**2).mean(), np.abs(every).mean()), rel=1e-4)
    scaled = np.concatenate([(np.abs(errors) / naive[:, None, None]).ravel() for errors, naive in expected.values()])
    assert got["mase"] == pytest.approx(scaled.mean(), rel=1e-4)
    assert set(got["files"]) == set(expected)
    rows = list(csv.DictReader((results() / "series.csv").open()))
    assert [row["file"] for row in rows] == [name for name, (errors, _) in expected.items() for _ in errors]
    for name, (errors, naive) in expected.items():
        scaled = np.abs(errors) / naive[:, None, None]
        for found, e, s in [(got["files"][name], errors, scaled), *(
                (row, e, s) for row, e, s in zip([row for row in rows if row["file"] == name], errors, scaled))]:
            assert [float(found[key]) for key in ("mse", "mae", "mase")] == pytest.approx(
                [(e**2).mean(), np.abs(e).mean(), s.mean()], rel=1e-4), name


def test_a_pool_is_tested_file_by_file_as_in_the_pool(place, capsys):
    whole = measured("--test_pred_len 36")
    said = capsys.readouterr().out
    assert "was trained on" not in said and "more/deep/b.npy |" in said
    alone = measured("--test_pred_len 36", "more/deep/b.npy")
    among = whole["files"]["more/deep/b.npy"]
    assert {name: alone[name] for name in among} == pytest.approx(among) and len(among) == 3
    assert results().name == f"{TARGET}_pl36_b"  # other data than those of the training have a folder of their own
    assert "mase:" in (out := capsys.readouterr().out) and "was trained on 'hours.csv'" in out


def test_speculation_and_paths_of_a_pool(place):
    draft = "--use_speculative --spec_draft_ckpt checkpoints/forecast_d_timer_xl_draft_test_0/checkpoint.pth"
    alone, exact = measured("--test_pred_len 36"), measured(f"--test_pred_len 36 {draft} --spec_tol 0")
    assert exact["mse"] == pytest.approx(alone["mse"]) and exact["mase"] == pytest.approx(alone["mase"])
    assert measured(f"--test_pred_len 36 {draft} --spec_tol 2")["target_passes"] < 3
    paths = measured("--test_pred_len 24 --num_samples 5 --test_windows 4 --spec_sigma_mode calibrated")["samples"]
    assert paths["windows"] == 7 * 4 and np.isfinite(paths["crps"])
    assert Path(f"checkpoints/{TARGET}/checkpoint_calibration_hours+quarters+more_48_diag.pth").is_file()


def test_the_training_kept_what_it_was_given(place):
    stored = read_settings(Path("checkpoints") / TARGET / "checkpoint.pth")
    assert stored["data_path"] == "hours.csv,quarters.csv,more" and stored["val_windows"] == 7
    assert stored["data"] == "UnivariateDatasetBenchmark" and stored["balance"] is None
    sources = stored["sources"]["data_path"]
    assert sources["path"].count(",") == 4 and len(sources["sha256"]) == 64  # short.npy is found, too


def test_a_file_that_is_too_short_is_noted_once(place, capsys):
    measured("--test_pred_len 36 --test_windows 2")
    assert capsys.readouterr().out.count("1 of 5 files are too short for a window of the test split") == 1


@pytest.mark.parametrize("flags, words", [
    ("--data MultivariateDatasetBenchmark", ["--data_path names 5 files", "--data UnivariateDatasetBenchmark"]),
    ("--val_windows 10000", ["--val_windows 10000", "the val part has"]),
    ("--data_path hours.csv nowhere.csv", ["nowhere.csv does not exist"]),
    ("--data_path 'x*.csv'", ["matches no data file"]),
])
def test_what_a_pool_cannot_do_is_refused_before_training(place, capsys, flags, words):
    before = set(Path().rglob("*"))
    assert run.main([*f"{TRAIN} --model_id no".split(), *flags.replace("'", "").split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words), said
    assert set(Path().rglob("*")) == before


def test_a_prediction_is_of_one_file(place, capsys):
    assert run.main(f"--do_predict --quiet --root_path . --test_dir {TARGET} --data_path {POOL}".split()) == 2
    assert "--do_predict forecasts one file, but --data_path names 5" in capsys.readouterr().err
    assert run.main(f"--do_predict --quiet --root_path . --test_dir {TARGET} --data_path hours.csv "
                    "--test_pred_len 24".split()) == 0
    assert json.loads((results() / "forecast.json").read_text())["data_path"].endswith("hours.csv")


def test_batches_of_a_pool_are_balanced_unless_told_otherwise(place, monkeypatch):
    from data_provider import data_factory
    made = []
    for name in ("EpochSampler", "SeriesSampler"):
        kind = getattr(data_factory, name)
        monkeypatch.setattr(data_factory, name, lambda *args, kind=kind: made.append(kind.__name__) or kind(*args))
    for flags in ("", "--balance windows", "--data_path hours.csv", "--data_path hours.csv --balance series"):
        assert run.main(f"{TRAIN} --model_id b --des b{len(made)} --subset_rand_ratio 0.01 {flags}".split()) == 0
    assert made == ["SeriesSampler", "EpochSampler", "EpochSampler", "SeriesSampler"]
