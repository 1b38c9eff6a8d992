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
from exp.exp_basic import Exp_Basic
from exp.laws import calibration_part
from exp.options import read_command_line
from exp.settings import DataSettings
from exp.train.trainer import Trainer
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


def test_settings_of_the_training_alone_do_not_move_results(place, capsys):
    assert run.main(f"{TRAIN} --model_id m --val_windows 3 --balance windows --subset_rand_ratio 0.05 "
                    "--test_pred_len 12".split()) == 0
    with_training = results()
    capsys.readouterr()
    assert run.main(f"{BASE} --is_training 0 --test_dir forecast_m_timer_xl_test_0 --data_path {POOL} "
                    "--test_pred_len 12".split()) == 0
    assert results() == with_training and "has results with" not in capsys.readouterr().out


def test_a_folder_that_gained_a_file_is_other_data(place, capsys):
    measured("--test_pred_len 12", "more")
    before, new = results(), Path("more/new.npy")
    np.save(new, files()["more/a.npy"])
    try:
        measured("--test_pred_len 12", "more")
        said = capsys.readouterr().out
        assert "has results with --data_path 3 files (" in said and "(here 4 files (" in said
        assert results() != before and "data_path_4-files-" in results().name
        assert run.main(f"{TRAIN} --model_id p --val_windows 7".split()) == 2
        assert "which had --data_path 5 files (" in capsys.readouterr().err
    finally:
        new.unlink()


def test_a_file_that_comes_during_a_run_is_not_of_it(place):
    data, new = DataSettings(root_path=".", data_path="more"), Path("more/later.npy")
    before = [file.label for file in data.files]
    new.write_text("")
    try:
        assert [file.label for file in data.files] == before
    finally:
        new.unlink()


def test_a_pool_is_calibrated_without_series_that_are_too_short_for_it(place, capsys, monkeypatch):
    np.save("brief.npy", files()["more/a.npy"][:300])  # a validation part of 30 rows; 3 patches are 36
    flags = "--test_pred_len 12 --num_samples 4 --test_windows 2 --spec_sigma_mode calibrated --des {}"
    law = f"checkpoints/{TARGET}/checkpoint_calibration_{{}}_48_diag.pth"
    measured(flags.format("short"), "hours.csv brief.npy")
    said = capsys.readouterr().out
    assert said.count("without 1 of 3 series, whose validation parts have fewer than 36 windows") == 1
    measured(flags.format("long"), "hours.csv")
    assert torch.equal(*(torch.load(law.format(label))["factor"] for label in ("hours+brief", "hours")))
    assert run.main(f"{BASE} --is_training 0 --test_dir {TARGET} --data_path brief.npy --data "
                    f"UnivariateDatasetBenchmark {flags.format('none')}".split()) == 2
    assert "brief.npy: the validation part has 19 windows" in capsys.readouterr().err


@pytest.mark.parametrize("most, windows", [(2**26, 49 * 7), (40 * 7 * PATCH, 40 * 7), (36 * 2 * PATCH, 36 * 2)])
def test_a_pool_is_calibrated_on_as_many_windows_as_fit_into_memory(place, monkeypatch, most, windows):
    monkeypatch.setattr("exp.laws.MOST_RESIDUALS", most)
    experiment = Exp_Basic(read_command_line(f"{BASE} --is_training 0 --test_dir {TARGET} --data_path {POOL}".split()))
    dataset, loader, series = calibration_part(experiment)
    items = torch.tensor(list(loader.sampler))
    counts = torch.bincount(dataset.series_of(items), minlength=dataset.n_series)
    assert len(items) == windows and (counts > 0).sum() == series and set(counts.tolist()) <= {0, windows // series}
    last = items.unflatten(0, (series, -1))[:, -1]
    assert set(last.tolist()) <= set((dataset.first_items + dataset.counts - 1).tolist())  # the newest


def test_an_interrupted_training_on_a_pool_continues_to_the_same_weights(place, monkeypatch):
    flags = f"{TRAIN} --dropout 0.1 --val_every 3 --subset_rand_ratio 0.05 --val_windows 2 --train_epochs 2"
    assert run.main(f"{flags} --model_id whole".split()) == 0
    train_step, steps = Trainer._step, []

    def step(trainer, x, y):
        steps.append(x)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return train_step(trainer, x, y)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        assert run.main(f"{flags} --model_id parts".split()) == 130
    assert run.main(f"{flags} --model_id parts --resume".split()) == 0
    whole, parts = (load(Path(), f"forecast_{name}_timer_xl_test_0").state_dict() for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
