"""What a model is given in a forecast depends on its context alone, not on the rows before it nor on their unit."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import NORMALISED, count, keep_pair
from helpers import PATCH, tiny_target

import run
from exp.predict import Forecaster
from exp.settings import ModelSettings
from exp.speculation import SpecSettings
from models.checkpoint import save_tensors
from utils.errors import NotFinite, UserError

CONTEXT, HORIZON, ROWS = 5 * PATCH, 20, 300
UNIVARIATE = "UnivariateDatasetBenchmark"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Pairs of a target and a draft; those named 'uni ...' forecast every series for itself."""
    monkeypatch.chdir(tmp_path)
    for name, changes in NORMALISED.items():
        target = tiny_target(**changes)
        for prefix, more in (("", {}), ("uni_", {"data": UNIVARIATE})):
            keep_pair(f"checkpoints/{prefix}{name}", target, **more)
    return tmp_path


def frame(rows=ROWS, times=True):
    t = np.arange(rows)[:, None]
    waves = np.sin(2 * np.pi * t / np.array([7, 12, 30])) + 0.2 * np.random.default_rng(3).normal(size=(rows, 3))
    table = pd.DataFrame(waves * np.array([1.0, 50.0, 3.0]) + np.array([0.0, 1e4, 10.0]), columns=["a", "b", "c"])
    if times:
        table.insert(0, "day", pd.date_range("2021-02-01", periods=rows, freq="D"))
    return table


def numbers(table):
    return table.iloc[:, 2:].to_numpy()


def assert_same(got, expected, deviation=1.0, rtol=1e-6):
    assert np.abs(got - expected).max() <= rtol * np.max(deviation)


WAYS = {"alone": {}, "draft": {"draft": True}, "paths": {"num_samples": 5},
        "sigma": {"num_samples": 5, "spec": SpecSettings(sigma=0.5)},
        "exact": {"draft": True, "num_samples": 5, "spec": SpecSettings(rule="exact", sigma=0.5)}}


def forecaster(name, draft=False, **more):
    return Forecaster.load(f"checkpoints/{name}", draft=f"checkpoints/{name}_draft" if draft else None, quiet=True,
                           **more)


SOME = {("causal", "draft"), ("uni_norm", "paths"), ("norm", "alone")}  # the others are for the full run
MATRIX = [pytest.param(name, way, marks=[] if (name, way) in SOME else pytest.mark.slow)
          for name in (*NORMALISED, *(f"uni_{name}" for name in NORMALISED)) for way in WAYS]


@pytest.mark.parametrize("name, way", MATRIX)
def test_rows_before_the_context_do_not_matter(place, name, way):
    tested, clean = forecaster(name, **WAYS[way]), frame()
    expected = numbers(tested.predict(clean, HORIZON))
    spiked = clean.copy()
    spiked.loc[10, ["a", "c"]] = [1e6, -9999.0]  # before every window that a law is fitted to, too
    assert_same(numbers(tested.predict(spiked, HORIZON)), expected)
    if way != "paths":  # which needs older windows
        assert_same(numbers(tested.predict(clean[-CONTEXT:], HORIZON)), expected)


@pytest.mark.parametrize("name, way", MATRIX)
def test_the_unit_of_the_series_does_not_matter(place, name, way):
    tested, clean = forecaster(name, **WAYS[way]), frame()
    first, deviation = tested.predict(clean, HORIZON), clean.c[-CONTEXT:].std()
    others, mine = (first.unique_id != "c").to_numpy(), (first.unique_id == "c").to_numpy()
    for factor, offset in ((1e-6, 0.0), (1e6, 0.0), (1.0, 1e9), (1e250, 0.0), (1e-250, 0.0)):
        moved = tested.predict(clean.assign(c=factor * clean.c + offset), HORIZON)
        assert_same((numbers(moved)[mine] - offset) / factor, numbers(first)[mine], deviation, 1e-5)
        assert_same(numbers(moved)[others], numbers(first)[others], 1.0, 1e-4 if offset else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["norm", "uni_causal"])
@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("flags", ["", "--spec_draft_ckpt checkpoints/{}_draft", "--num_samples 5"])
def test_files_agree_with_frames(place, name, times, flags):
    saved = []
    for file, spike in (("clean", None), ("spiked", 1e6)):
        table = frame(times=times)
        table.loc[10, "a"] = spike or table.a[10]
        table.to_csv(f"{file}.csv", index=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("exp.predict.files.draw", lambda *_: None)
            assert run.main(f"--quiet --do_predict --root_path . --data_path {file}.csv --test_dir {name} "
                            f"--test_pred_len {HORIZON} {flags.format(name)}".split()) == 0
        saved.append(pd.read_csv(f"test_results/{name}_pl{HORIZON}_predict_{file}/forecast.csv"))
    assert_same(numbers(saved[0]), numbers(saved[1]))
    way = {"draft": "draft" in flags} | ({"num_samples": 5} if "samples" in flags else {})
    np.testing.assert_allclose(numbers(saved[0]), numbers(forecaster(name, **way).predict(frame(), HORIZON)), rtol=1e-8)


def test_a_longer_context_of_a_causal_model_is_scaled_by_its_newest_window(place):
    """The variance floor of the window that the next patch is normalised by must not be felt."""
    tested = forecaster("causal", context=2 * CONTEXT)
    table = frame()
    table.loc[ROWS - 2 * CONTEXT + 3, "c"] = 1e6
    got = numbers(tested.predict(table, HORIZON))[-HORIZON:]
    assert np.abs(got - 10).max() < 100  # it was 1e6 / 80 rows

    table.loc[ROWS - 2 * CONTEXT + 3, "c"] = 1e60
    with pytest.raises(UserError, match="the DataFrame: 'c' has values in the context that are too far"):
        tested.predict(table, HORIZON)


# --- constants

@pytest.mark.parametrize("name", ["norm", "plain", "causal", "uni_norm"])
@pytest.mark.parametrize("way", ["alone", "draft", "sigma"])
def test_a_variable_that_is_constant_in_the_context_is_forecast_as_that_constant(place, notes, name, way):
    table = frame()
    table.loc[ROWS - CONTEXT:, "b"] = 0.1 + 0.2
    table.loc[ROWS - 7:, "c"] = 4.0  # not in all of it
    got = forecaster(name, **WAYS[way]).predict(table, HORIZON)
    assert (numbers(got[got.unique_id == "b"]) == 0.1 + 0.2).all()
    assert numbers(got[got.unique_id == "c"]).std() > 0
    assert count(notes, "'b' is 0.3 in all of the newest 40 rows") == 1 and count(notes, "all of the newest") == 1


def test_windows_with_a_constant_context_do_not_count_for_a_law(place):
    """They have no deviation that an error could be relative to: quantiles were 66 to 275 times as wide."""
    table = frame(600)
    for name in ("norm", "uni_norm"):
        first = forecaster(name, num_samples=200).predict(table, HORIZON)
        gap = table.assign(c=table.c.where((table.index < 450) | (table.index > 540), 7.0))
        got = forecaster(name, num_samples=200).predict(gap, HORIZON)
        width, usual = ((part["q0.9"] - part["q0.1"])[part.index % HORIZON < PATCH] for part in (got, first))
        assert (0.8 * usual < width).all() and (width < 3 * usual).all()


def test_a_law_of_nothing_but_constant_contexts_is_refused(place):
    table = frame(600)
    table.loc[:596, "c"] = 7.0
    with pytest.raises(UserError, match="the DataFrame: 'c' is constant in the context .*fewer than 24 .*`sigma`"):
        forecaster("norm", num_samples=5).predict(table, HORIZON)
    forecaster("norm", num_samples=5, spec=SpecSettings(sigma=0.5)).predict(table, HORIZON)
    forecaster("norm", num_samples=5).predict(table[:590], HORIZON)  # a constant needs no law
    forecaster("uni_norm", num_samples=5).predict(table, HORIZON)  # has that of the other series
    forecaster("uni_norm", num_samples=5).predict(table[["day"]].assign(c=7.0), HORIZON)


# --- notes

def test_a_context_longer_than_that_of_training_is_noted(place, notes):
    for name, said in (("norm", 1), ("uni_norm", 1), ("plain", 1), ("causal", 0)):
        for context, expected in ((CONTEXT, 0), (CONTEXT - PATCH, 0), (2 * CONTEXT, said)):
            before = count(notes, "was trained with a context of 40 steps")
            forecaster(name, context=context).predict(frame(), HORIZON)
            assert count(notes, "was trained with a context of 40 steps") - before == expected
    before = count(notes, "is given 80")
    forecaster("norm", draft=True, context=2 * CONTEXT).predict(frame(), HORIZON)
    assert count(notes, "is given 80") - before == 2
    assert count(notes, "norm_draft/checkpoint.pth was trained with a context") == 1


@pytest.mark.parametrize("flags", ["--do_predict", "--is_training 0", "--is_training 0 --compare --season 7 "
                                   "--spec_draft_ckpt checkpoints/causal_draft"])
def test_the_program_notes_it_in_forecasts_and_tests(place, capsys, flags):
    frame(700).to_csv("mine.csv", index=False)
    base = f"--quiet --root_path . --data_path mine.csv --test_dir norm --test_pred_len 8 --test_windows 2 {flags}"
    if "predict" in flags or "compare" in flags:
        base = base.replace("--test_windows 2 ", "")
    for context, said in ((CONTEXT, 0), (2 * CONTEXT, 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("exp.evaluate.comparison.BATCH_1_REPEATS", 1)
            patch.setattr("exp.evaluate.comparison.BATCH_N_REPEATS", 1)
            assert run.main(f"{base} --test_seq_len {context}".split()) == 0
        assert capsys.readouterr().out.count("norm/checkpoint.pth was trained with a context of 40 steps") == said


def test_a_bare_checkpoint_without_normalisation_is_noted(place, notes, capsys):
    sizes = {"input_token_len": PATCH, "d_model": 16, "n_heads": 2, "d_ff": 32, "e_layers": 2}
    flags = " ".join(f"--{name} {value}" for name, value in sizes.items())
    save_tensors(Path("bare.pth"), tiny_target().state_dict())
    frame(700).to_csv("mine.csv", index=False)
    for given, asked, said in ((sizes | {"use_norm": True}, f"{flags} --use_norm", 0), (sizes, flags, 1)):
        Forecaster.load("bare.pth", context=CONTEXT, model=ModelSettings(asked=given)).predict(frame(), HORIZON)
        assert count(notes, "OpenLTM and STRIDE") == count(notes, "a model without normalisation expects") == said
        capsys.readouterr()
        assert run.main(f"--quiet --is_training 0 --root_path . --data_path mine.csv --checkpoints . --test_dir . "
                        f"--test_file_name bare.pth --seq_len {CONTEXT} --test_pred_len 8 --test_windows 2 {asked}"
                        .split()) == 0
        assert capsys.readouterr().out.count("note: bare.pth has no args.json and use_norm was not given") == said


def test_that_values_are_scaled_by_the_context_is_noted_for_a_model_without_normalisation(place, notes):
    for name, said in (("norm", 0), ("causal", 0), ("plain", 1), ("uni_plain", 1)):
        before = count(notes, "deviations from the mean of the context")
        forecaster(name).predict(frame(), HORIZON)
        assert count(notes, "deviations from the mean of the context") - before == said


# --- forecasts that are not finite

def spoil(name, key, value):
    path = f"checkpoints/{name}/checkpoint.pth"
    state = torch.load(path)
    state[key][-1] = value
    torch.save(state, path)
    return path


def test_a_target_that_overflows_is_named_with_its_checkpoint_and_the_series(place, capsys):
    for name, where in (("norm", "the DataFrame: "), ("uni_norm", "the DataFrame, 'a': ")):
        path = spoil(name, "head.weight", 3e38)
        with pytest.raises(NotFinite, match=rf"the model \(checkpoint {path}\), patch 1 .*{where}its"):
            forecaster(name).predict(frame(), HORIZON)
    frame().to_csv("mine.csv", index=False)
    assert run.main(f"--quiet --do_predict --root_path . --data_path mine.csv --test_dir norm --test_pred_len {HORIZON}"
                    .split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "checkpoints/norm/checkpoint.pth" in said and "mine.csv" in said
    assert not list(place.rglob("forecast.*"))


@pytest.mark.parametrize("name", ["norm", "causal"])
@pytest.mark.parametrize("way", ["draft", "exact"])
def test_a_draft_that_overflows_is_named_with_its_checkpoint(place, name, way):
    path = spoil(f"{name}_draft", "head_mean.weight", 3e38)
    with pytest.raises(NotFinite, match=rf"the draft \(checkpoint {path}\)"):
        forecaster(name, **WAYS[way]).predict(frame(), HORIZON)


def test_a_target_that_overflows_is_named_where_its_law_is_fitted(place):
    path = spoil("uni_norm", "head.weight", 3e38)
    with pytest.raises(NotFinite, match=rf"the model \(checkpoint {path}\).*window 0 .*calibration"):
        forecaster("uni_norm", num_samples=5).predict(frame(), HORIZON)


def test_a_forecast_beyond_float64_is_refused(place):
    table = frame()
    table["a"] = 1.7e308 * np.sin(table.index)

    def far(context, horizon):
        return torch.full((len(context), 3, horizon, context.shape[2]), 3.0)
    with pytest.raises(UserError, match="the DataFrame: the forecast does not fit into float64"):
        forecaster("norm").predict(table, HORIZON, sampler=far)
