"""Backtests of a panel: scores as utilsforecast has them, of forecasts that know nothing of what comes after."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exp_helpers import keep, keep_pair
from helpers import tiny_target

import run
from data_provider.panel import PanelColumns, PanelTable
from exp.panels import PanelSettings
from exp.predict import Forecaster, scoring
from exp.predict.backtest import PanelBacktest
from exp.speculation import SpecSettings

HORIZON, STEP, COUNT = 12, 5, 3


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep_pair("checkpoints/uni", tiny_target(norm_mode="causal", norm_window=5), data="UnivariateDatasetBenchmark")
    return tmp_path


def table():
    rng = np.random.default_rng(0)
    parts = []
    for i, (rows, frequency) in enumerate([(90, "h"), (60, "D"), (45, "MS"), (75, "B"), (50, "D")]):
        y = rng.normal(size=rows).cumsum() + 30 + 5 * np.sin(np.arange(rows))
        times = pd.date_range("2001-01-01", periods=rows, freq=frequency)
        part = pd.DataFrame({"unique_id": f"s{i}", "ds": times, "y": y})
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


SEASONS = {"s0": 24, "s1": 7, "s2": 12, "s3": 5, "s4": 7}


def backtest(flags="", frame=None):
    (table() if frame is None else frame).to_csv("mine.csv", index=False)
    code = run.main(f"--quiet --do_predict --root_path . --data_path mine.csv --test_dir uni --test_pred_len {HORIZON} "
                    f"--backtest {COUNT} --step {STEP} {flags}".split())
    folder = next(Path("test_results").iterdir(), None) if Path("test_results").exists() else None
    return code, folder


def windows(frame):
    """(id, cutoff, history, truth) of every origin."""
    for name, part in frame.groupby("unique_id"):
        for number in range(COUNT):
            end = len(part) - HORIZON - number * STEP
            yield name, part.ds.iloc[end - 1], part.iloc[:end], part.iloc[end:end + HORIZON]


def forecast(history, **how):
    return Forecaster.load("checkpoints/uni", quiet=True, **how).predict(history, HORIZON)


def test_the_scores_are_those_of_utilsforecast(place):
    losses = pytest.importorskip("utilsforecast.losses")
    code, folder = backtest()
    assert code == 0
    got = pd.read_csv(folder / "backtest.csv").set_index("unique_id")
    rows = []
    for name, cutoff, history, truth in windows(table()):
        season = SEASONS[name]
        naive = history.y.to_numpy()[-season:][np.arange(HORIZON) % season]
        rows.append(truth.assign(cutoff=cutoff, model=forecast(history)["mean"].to_numpy(), naive=naive))
    frame = pd.concat(rows)
    assert len(got) == 5
    for name, part in frame.groupby("unique_id"):
        history = table()[table().unique_id == name]
        found = {"mase": losses.mase(part, ["model", "naive"], SEASONS[name], history),
                 "smape": losses.smape(part, ["model", "naive"]), "rmse": losses.rmse(part, ["model", "naive"])}
        for measure, scores in found.items():
            assert len(scores) == COUNT
            assert got.loc[name, measure] == pytest.approx(scores.model.mean(), rel=1e-4), (name, measure)
            assert got.loc[name, f"{measure}_naive"] == pytest.approx(scores.naive.mean(), rel=1e-4), (name, measure)
    overall = json.loads((folder / "backtest.json").read_text())["overall"]
    for measure in ("mase", "smape", "rmse"):
        assert overall["forecast"][measure] == pytest.approx(got[measure].mean(), rel=1e-4)
        assert overall["seasonal-naive"][measure] == pytest.approx(got[f"{measure}_naive"].mean(), rel=1e-4)


def test_scores_of_quantiles_are_those_of_utilsforecast():
    losses = pytest.importorskip("utilsforecast.losses")
    rng, levels = np.random.default_rng(0), (0.025, 0.1, 0.5, 0.9, 0.975)
    truth, quantiles = rng.normal(size=(4, 9)) + 1, np.sort(rng.normal(size=(5, 4, 9)), axis=0)
    frame = pd.DataFrame({"unique_id": np.repeat(list("abcd"), 9), "y": truth.ravel(),
                          **{f"q{i}": values.ravel() for i, values in enumerate(quantiles)}})
    wanted = losses.scaled_crps(frame, {"m": [f"q{i}" for i in range(5)]}, np.array(levels))
    np.testing.assert_allclose(scoring.scaled_crps(truth, quantiles, levels), wanted.m)
    frame = frame.rename(columns={"q1": "m-lo-80", "q3": "m-hi-80"})
    np.testing.assert_allclose(scoring.coverage(truth, quantiles[1], quantiles[3]), losses.coverage(frame, ["m"], 80).m)


def test_what_is_not_known_is_not_scored():
    truth, forecast = np.array([[1.0, np.nan, 3.0], [np.nan] * 3]), np.array([[2.0, 9.0, 3.0], [1.0] * 3])
    np.testing.assert_allclose(scoring.mase(truth, forecast, np.array([0.5, 1.0])), [1.0, np.nan])
    np.testing.assert_allclose(scoring.smape(truth, forecast), [1 / 6, np.nan])
    np.testing.assert_allclose(scoring.rmse(truth, forecast), [0.5**0.5, np.nan])
    np.testing.assert_allclose(scoring.coverage(truth, forecast, forecast), [0.5, np.nan])
    assert np.isnan(scoring.mase(truth, forecast, np.array([0.0, np.nan]))).all()
    assert list(scoring.smape(np.zeros((1, 2)), np.zeros((1, 2)))) == [0.0]
    values = np.array([1.0, 4.0, np.nan, 6.0, 5.0])
    np.testing.assert_allclose(scoring.naive_errors(values, np.array([0, 4, 5]), np.array([1, 1])), [3.0, np.nan])


def test_quantiles_are_scored_and_their_bands(place, capsys):
    code, folder = backtest("--num_samples 60 --spec_sigma 0.5")
    assert code == 0
    got = pd.read_csv(folder / "backtest.csv")
    assert list(got.columns) == ["unique_id", "mase", "smape", "rmse", "scaled_crps", "mase_naive", "smape_naive",
                                 "rmse_naive", "scaled_crps_naive", "coverage_80", "coverage_95"]
    assert (got.coverage_80 <= got.coverage_95).all() and got.coverage_95.between(0, 1).all()
    levels = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
    name, _, history, truth = next(windows(table()))  # the newest origin of s0, whose paths are others
    found = forecast(history, num_samples=60, spec=SpecSettings(sigma=0.5))
    alone = scoring.scaled_crps(truth.y.to_numpy()[None], np.stack([found[f"q{level:g}"] for level in levels])[:, None],
                                levels)
    assert got.set_index("unique_id").loc[name, "scaled_crps"] == pytest.approx(float(alone[0]), rel=0.5)
    assert "seasonal-naive" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["interpolate", "last"])
def test_nothing_from_after_an_origin_is_used(place, way):
    """Values after the earliest origin are changed: its own forecast, and its law, stay."""
    panel = PanelSettings(missing=way, backtest=COUNT, step=STEP)
    found = []
    for changed in (False, True):
        frame = pd.concat([table().assign(unique_id=lambda part, name=name: name + part.unique_id) for name in "abcd"],
                          ignore_index=True)
        to_end = frame.groupby("unique_id").cumcount(ascending=False)
        frame.loc[to_end < HORIZON + (COUNT - 1) * STEP, "y"] += 100 * changed
        frame = frame[~to_end.isin([3, 22, 23, 40])]  # 22 is the last one before the earliest origin
        forecaster = Forecaster.load("checkpoints/uni", quiet=True, num_samples=20)
        forecaster.settings = replace(forecaster.settings.with_("data", horizon=HORIZON), panel=panel)
        work = PanelBacktest(forecaster, PanelTable(frame, PanelColumns("unique_id", "ds", "y")))
        prepared = work.prepare(next(iter(work.table.series())))
        work.examine(prepared)
        work.begin(prepared)
        assert work.paths is not None
        part = work.cut(prepared, work.origins[0])
        found.append((part.values, part.starts, work.paths.law.factor.numpy()))
    for first, second in zip(*found):
        np.testing.assert_array_equal(first, second)


def test_series_too_short_for_the_first_origin_are_listed(place, capsys):
    frame = pd.concat([table(), table().head(25).assign(unique_id="short")])
    code, _ = backtest(frame=frame)
    said = capsys.readouterr().err
    assert code == 2 and "'short' is too short for the backtest: 25 rows, but its first origin is 22 before" in said
    code, folder = backtest("--on_bad skip", frame)
    assert code == 0 and list(pd.read_csv(folder / "skipped.csv").unique_id) == ["short"]
    assert "short" not in set(pd.read_csv(folder / "backtest.csv").unique_id)


@pytest.mark.parametrize("flags, words", [("--out x.csv", "--backtest writes scores"), ("--resume", "one go"),
                                          ("--pictures 2", "draws no pictures")])
def test_flags_without_effect_are_refused(place, capsys, flags, words):
    assert backtest(flags)[0] == 2
    assert words in capsys.readouterr().err
    assert run.main(["--do_predict", "--test_dir", "uni", "--step", "3"]) == 2
    assert "--step has no effect without --backtest" in capsys.readouterr().err


def test_the_law_of_a_backtest_needs_no_draft_and_a_draft_is_counted(place):
    keep("checkpoints/other", tiny_target(), data="UnivariateDatasetBenchmark")
    code, folder = backtest("--spec_draft_ckpt checkpoints/uni_draft/checkpoint.pth --spec_tol 0.3")
    assert code == 0
    record = json.loads((folder / "backtest.json").read_text())
    assert record["cost"]["target_passes"] >= 1 and record["origins"] == COUNT and record["series"] == 5
