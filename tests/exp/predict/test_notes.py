"""What a forecast says about itself: every note where it is true, and nowhere else; and `clip_min`."""
import json
import logging

import numpy as np
import pandas as pd
import pytest
from exp_helpers import results, save
from helpers import PATCH, tiny_draft, tiny_series, tiny_target

import run
from exp.predict import Forecaster
from exp.speculation import SpecSettings
from utils.errors import UserError

CONTEXT, HORIZON = 5 * PATCH, 20
UNIVARIATE = "UnivariateDatasetBenchmark"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A target and its draft."""
    monkeypatch.chdir(tmp_path)
    target = tiny_target()
    save("checkpoints/target", target, seq_len=CONTEXT)
    save("checkpoints/draft", tiny_draft(target), seq_len=CONTEXT)
    return tmp_path


def frame(columns="abc", level=0.0):
    return pd.DataFrame(level + tiny_series(200)[:, :len(columns)], columns=list(columns))


@pytest.fixture
def said(place, caplog):
    """A forecast and its notes: said(frame, horizon, ...) -> (table, text)."""
    def ask(data, horizon=HORIZON, sampler=None, **how):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "exp.predict.forecaster"):
            table = Forecaster.load("checkpoints/target", quiet=True, **how).predict(data, horizon, sampler)
        return table, "\n".join(record.getMessage() for record in caplog.records)
    return ask


def means(table):
    return {name: part["mean"].to_numpy() for name, part in table.groupby("unique_id")}


# --- series that are forecast together

def test_series_forecast_together_are_told_to_influence_each_other(said):
    first, text = said(frame())
    assert "the 3 series are forecast together" in text and "`kind` UnivariateDatasetBenchmark" in text
    # it is true: another series changes them, and so does another order
    other, reordered = frame().assign(b=frame().b.to_numpy()[::-1]), frame()[["b", "a", "c"]]
    for changed in (other, reordered):
        assert np.abs(means(said(changed)[0])["a"] - means(first)["a"]).max() > 1e-3


def test_series_forecast_by_themselves_do_not(said):
    first, text = said(frame(), kind=UNIVARIATE)
    assert "together" not in text
    for changed in (frame().assign(b=1.0 + frame().b.to_numpy()[::-1]), frame()[["b", "a", "c"]], frame()[["a"]]):
        np.testing.assert_allclose(means(said(changed, kind=UNIVARIATE)[0])["a"], means(first)["a"], rtol=1e-4,
                                   atol=1e-5)


def test_one_series_alone_is_together_with_none(said):
    assert said(frame("a"))[1] == ""


def test_a_kind_that_does_not_exist_is_refused(place):
    with pytest.raises(UserError, match="`kind` is 'Panel'"):
        Forecaster.load("checkpoints/target", kind="Panel")


# --- horizons that are mostly forecast from forecasts

@pytest.mark.parametrize("horizon, is_far", [(HORIZON, False), (2 * CONTEXT, False), (2 * CONTEXT + 1, True)])
def test_a_horizon_of_more_than_two_contexts_is_told(said, horizon, is_far):
    text = said(frame("a"), horizon)[1]
    assert (f"the horizon of {horizon} steps is more than 2 contexts of {CONTEXT}" in text) is is_far


# --- rules that keep no law

@pytest.mark.parametrize("rule, noted", [("coupling", True), ("exact", True), ("tolerance", False),
                                         ("simplified", False)])
def test_a_mean_by_a_rule_for_samples_is_told_to_keep_no_law(said, rule, noted):
    text = said(frame("a"), draft="checkpoints/draft", spec=SpecSettings(rule=rule))[1]
    assert (f"`rule` {rule} preserves no law here" in text) is noted


# --- a lower limit

def counts():
    """A series of rare events, which an untrained model forecasts below 0, and one of many."""
    many = np.random.default_rng(3).poisson(900, 200)
    return pd.DataFrame({"a": 3.0 * (np.arange(200) % 10 == 0), "b": many.astype(float)})


BELOW = "never fell below 0, but the forecast or one of its quantiles does: `clip_min` 0 prevents that"


def test_a_limit_is_not_recommended_where_other_series_go_below_it(said):
    assert means(said(counts(), kind=UNIVARIATE)[0])["a"].min() < 0  # a condition of this test
    text = said(counts().assign(b=lambda frame: frame.b - 2000), kind=UNIVARIATE)[1]
    assert "'a' never fell below 0" in text and "others do fall below 0: forecast them in a call of their own" in text


def test_counts_that_are_forecast_below_zero_are_told(said):
    table, text = said(counts(), kind=UNIVARIATE)
    assert means(table)["a"].min() < 0 < means(table)["b"].min()  # a condition of this test
    assert f"'a' {BELOW}" in text and "'b'" not in text
    below = counts().assign(a=counts().a - 1)  # a series that was below 0 itself
    assert "below 0" not in said(below, kind=UNIVARIATE)[1]


def test_a_quantile_below_zero_is_told_too(said):
    data = counts()[["b"]]
    assert "below 0" not in said(data)[1]
    wide = {"num_samples": 40, "spec": SpecSettings(sigma=100.0)}
    table, text = said(data, **wide)
    assert table["q0.025"].min() < 0 and f"'b' {BELOW}" in text


def test_clip_min_raises_mean_and_quantiles_to_it_and_changes_nothing_else(said):
    how = {"num_samples": 40, "spec": SpecSettings(sigma=1.0), "kind": UNIVARIATE}
    free, _ = said(counts(), **how)
    clipped, text = said(counts(), clip_min=0.0, **how)
    columns = list(free.columns[2:])
    assert (free[["mean", "q0.025", "q0.5"]] < 0).any().all() and len(columns) == 8
    pd.testing.assert_frame_equal(clipped[columns], free[columns].clip(lower=0))
    raised = int((free[columns] < 0).to_numpy().sum())
    assert f"{raised} of {free[columns].size} values, quantiles included, were below `clip_min`" in text
    assert "never fell below 0" not in text
    unneeded, text = said(counts(), clip_min=-1e6, **how)
    assert "were below `clip_min`" not in text and "'a' never fell below 0" in text
    pd.testing.assert_frame_equal(unneeded, free)


def test_a_history_below_the_limit_is_told_and_one_wholly_below_is_refused(said):
    text = said(frame(), clip_min=0.0)[1]
    assert "the history of 'a', 'b', 'c' goes below `clip_min` 0; the forecast may not" in text
    assert "goes below" not in said(frame(level=50.0), clip_min=0.0)[1]
    with pytest.raises(UserError, match="the DataFrame: `clip_min` 9 is above every value of 'a', 'b', 'c': lower it"):
        said(frame(), clip_min=9.0)
    constant, text = said(frame("ab").assign(b=0.0), clip_min=0.0)  # at the limit is not above it
    assert (means(constant)["b"] == 0).all() and "'b' is 0 in all" in text


def test_many_series_are_named_in_part(said):
    data = pd.DataFrame({name: counts().a for name in "abcde"})
    assert f"'a', 'b', 'c' and 2 more {BELOW}" in said(data, kind=UNIVARIATE)[1]


# --- on the command line

def predict(flags, monkeypatch):
    monkeypatch.setattr("exp.predict.files.draw", lambda *_: None)
    places = f"--quiet --do_predict --root_path . --data_path mine.csv --test_dir target --test_pred_len {HORIZON}"
    assert run.main(f"{places} {flags}".split()) == 0
    folder = results()
    return pd.read_csv(folder / "forecast.csv"), json.loads((folder / "forecast.json").read_text())


def test_notes_name_flags_on_the_command_line(place, monkeypatch, capsys):
    counts().to_csv("mine.csv", index=False)
    free, record = predict("", monkeypatch)
    said = capsys.readouterr().out
    for words in ("--data UnivariateDatasetBenchmark forecasts each by itself", "--clip_min 0 prevents that"):
        assert said.count(words) == 1 and sum(words in note for note in record["notes"]) == 1
    assert "`" not in said and record["clip_min"] is None and free["mean"].min() < 0
    clipped, record = predict("--clip_min 0 --data UnivariateDatasetBenchmark", monkeypatch)
    said = capsys.readouterr().out
    assert clipped["mean"].min() == 0 == record["clip_min"]
    assert "were below --clip_min and are raised to 0" in said and "forecast together" not in said
