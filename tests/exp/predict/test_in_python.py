"""A forecaster in a program of somebody else: it refuses in parameters, prints nothing and changes no global state."""
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import save
from helpers import ROOT, tiny_draft, tiny_series, tiny_target

from exp.predict import Forecaster
from exp.settings import ModelSettings
from exp.speculation import SpecSettings
from utils.errors import UserError

HORIZON = 20
DRAFT = {"draft": "draft"}


def frame():
    return pd.DataFrame(tiny_series(400), columns=["a", "b", "c"])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A target and its draft, both for a context of 40 steps."""
    monkeypatch.chdir(tmp_path)
    target = tiny_target()
    save("target", target, seq_len=40)
    save("draft", tiny_draft(target), seq_len=40)
    return tmp_path


@pytest.mark.parametrize("how, words", [
    (DRAFT | {"spec": {"k": "auto"}}, ["`k` auto", "give a number"]),
    (DRAFT | {"spec": {"rule": "exact", "emit": "sample"}}, ["`emit` sample", "mean"]),
    (DRAFT | {"spec": {"adaptive": True}}, ["`adaptive`"]),
    (DRAFT | {"spec": {"k": "auto", "adaptive": True}}, ["`k` auto", "`adaptive`"]),
    (DRAFT | {"spec": {"tol": -1.0}}, ["`tol` is -1.0", "from 0 to"]),
    (DRAFT | {"spec": {"rule": "best"}}, ["`rule` is 'best'", "tolerance"]),
    (DRAFT | {"spec": {"rule": "exact", "sigma_mode": "calibrated"}}, ["`sigma_mode` calibrated", "`num_samples`"]),
    (DRAFT | {"spec": {"rule": "exact", "tol": 0.3}}, ["`tol`", "`rule` exact", "tolerance"]),
    (DRAFT | {"spec": {"sigma": 0.3}}, ["`sigma`", "`rule` tolerance"]),
    (DRAFT | {"spec": {"rule": "parareal", "sigma": 0.3}}, ["`sigma`", "`rule` parareal", "`num_samples`"]),
    (DRAFT | {"spec": {"rule": "parareal", "repropose": "target"}}, ["`repropose`", "`rule` parareal", "leave it out"]),
    (DRAFT | {"spec": {"rule": "coupling", "repropose": "target"}}, ["`repropose` target", "`rule` coupling"]),
    (DRAFT | {"spec": {"rule": "exact", "covariance": "full"}}, ["`covariance` full", "`sigma_mode` calibrated"]),
    ({"num_samples": 9, "spec": {"sigma": 0.3, "width": "mixture"}}, ["`width` mixture", "`sigma_mode` calibrated"]),
    ({"num_samples": 9, "spec": {"width": "many"}}, ["`width` is 'many'", "mixture"]),
    (DRAFT | {"num_samples": 9, "spec": {"rule": "exact", "growth": "none"}}, ["`growth`", "validation part"]),
    ({"spec": {"tol": 0.3}}, ["`tol`", "without a draft"]),
    ({"spec": {"sigma": 0.3}}, ["`sigma`", "a draft or `num_samples`"]),
    ({"num_samples": 9, "spec": {"rule": "exact"}}, ["`rule`", "without a draft"]),
    ({"num_samples": 9, "spec": {"sigma_mode": "adaptive"}}, ["`sigma_mode` adaptive", "`num_samples`"]),
    ({"num_samples": 9, "spec": {"sigma_mode": "calibrated", "sigma": 1.0}}, ["`sigma` 1", "`sigma_mode` calibrated"]),
    ({"num_samples": 1}, ["`num_samples` is 1", "from 2 to"]),
    ({"context": 50}, ["`context` 50", "`input_token_len` 8", "use 48"]),
    ({"context": 0}, ["`context` is 0", "from 1 to"]),
    ({"batch_size": 0}, ["`batch_size` is 0"]),
    ({"seed": -1}, ["`seed` is -1"]),
    ({"gpu": -1}, ["`gpu` is -1"]),
    ({"draft": "nowhere"}, ["nowhere", "not exist"]),
    ({"draft": "target"}, ["target/checkpoint.pth", "timer_xl, not a timer_xl_draft"]),
    ({"model": {"asked": {"d_model": 64}}}, ["`d_model` 64", "contradicts", "16"]),
    ({"model": {"rolling": "slow"}}, ["`rolling`", "'slow'", "cache, window"]),
])
def test_what_the_command_line_refuses_python_refuses(place, how, words):
    """In its own words: parameters, and never a flag."""
    kinds = {"spec": SpecSettings, "model": ModelSettings}
    with pytest.raises(UserError) as caught:
        Forecaster.load("target", **{name: kinds[name](**value) if name in kinds else value
                                     for name, value in how.items()})
    said = str(caught.value)
    assert "\n" not in said and "--" not in said and not [word for word in words if word not in said], said


@pytest.mark.parametrize("how", [
    {}, DRAFT, {"num_samples": 9}, {"context": 24}, {"num_samples": 9, "spec": SpecSettings(sigma=0.5, temp=2.0)},
    {"num_samples": 9, "spec": SpecSettings(sigma_mode="calibrated", covariance="full")},
    DRAFT | {"spec": SpecSettings(tol=0.3, k=2, repropose="target")}, DRAFT | {"spec": SpecSettings(rule="simplified")},
    DRAFT | {"spec": SpecSettings(rule="exact", sigma=0.5, emit="mean")},
    DRAFT | {"num_samples": 9, "spec": SpecSettings(rule="coupling", sigma_mode="calibrated")},
    DRAFT | {"num_samples": 9, "spec": SpecSettings(sigma=0.5)},
    {"model": ModelSettings(rolling="cache", asked={"d_model": 16, "flash_attention": False})},
])
def test_what_has_a_meaning_python_accepts(place, how):
    got = Forecaster.load("target", quiet=True, **how).predict(frame(), HORIZON)
    assert len(got) == 3 * HORIZON and ("q0.5" in got) is ("num_samples" in how)


def test_the_context_is_that_of_the_training_unless_it_is_given(place):
    """Older rows only set the scale of the series, which a window's own normalisation undoes."""
    whole, cut = frame(), frame()
    cut.iloc[-40:-24] += 1.0
    for context, same in ((24, True), (40, False), (None, False)):
        first, second = (Forecaster.load("target", context=context).predict(each, 8)["mean"] for each in (whole, cut))
        assert bool(abs(first - second).max() < 1e-4) is same


def in_a_process(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=100,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == 0, done.stderr
    return done


IMPORTING = """
import logging, matplotlib, pathlib, sys
matplotlib.use("svg")
handlers, level = list(logging.root.handlers), logging.root.level
import exp.predict
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
import exp.predict.files, exp.exp_forecast, exp.sweep.plots, numpy
from exp.report.plots import attention_figure
attention_figure(pathlib.Path("a.png"), [numpy.eye(4)[None]])
assert matplotlib.get_backend() == "svg" and "matplotlib.pyplot" not in sys.modules
assert logging.root.handlers == handlers and logging.root.level == level
for name in ("exp", "exp.predict", "exp.predict.forecaster"):
    logger = logging.getLogger(name)
    assert not logger.handlers and logger.propagate and logger.level == logging.NOTSET, name
"""


@pytest.mark.slow
def test_importing_the_forecaster_changes_nothing_of_a_notebook(place):
    done = in_a_process(IMPORTING)
    assert done.stdout == done.stderr == ""


FORECASTING = """
import matplotlib, pandas, torch
matplotlib.use("svg")
from exp.predict import Forecaster
threads = torch.get_num_threads()
forecaster = Forecaster.load("target", draft="draft", num_samples=20, quiet=True)
state = torch.get_rng_state()
got = forecaster.predict(pandas.read_csv("series.csv"), 20)
assert len(got) == 60 and matplotlib.get_backend() == "svg"
assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
"""


@pytest.mark.slow
def test_forecasting_prints_nothing_but_warnings(place):
    frame().to_csv("series.csv", index=False)
    done = in_a_process(FORECASTING)
    assert done.stdout == ""
    assert [line[:5] for line in done.stderr.splitlines()] == ["note:"] * 3


def test_quantiles_of_a_rule_without_a_law_are_refused(place):
    with pytest.raises(UserError, match="simplified preserves no law"):
        Forecaster.load("target", **DRAFT, num_samples=9, spec=SpecSettings(rule="simplified"))


@pytest.mark.parametrize("horizon", [12, 12.0, np.int64(12), np.float32(12), np.uint8(12), torch.tensor(12)])
def test_a_horizon_is_a_whole_number_of_any_type(place, horizon):
    assert len(Forecaster.load("target").predict(frame(), horizon)) == 3 * 12


@pytest.mark.parametrize("horizon", ["12", True, np.True_, None, 0, -3, 12.5, float("nan"), float("inf"), [12],
                                     (), np.array([1, 2]), 1j, pd.NA, pd.NaT, pd.Timedelta("12h"), b"12"])
def test_another_horizon_is_refused(place, horizon):
    with pytest.raises(UserError, match="^`horizon` is") as caught:
        Forecaster.load("target").predict(frame(), horizon)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("horizon", [10**9, 10**30])
def test_a_horizon_that_cannot_fit_into_memory_is_refused(place, horizon):
    with pytest.raises(UserError, match="of memory, but .* lower `horizon`"):
        Forecaster.load("target").predict(frame(), horizon)


@pytest.mark.parametrize("levels", [[0.1, 0.9], (0.5,), np.array([0.25, 0.75]), [np.float32(0.5)]])
def test_levels_are_numbers_in_any_sequence(place, levels):
    forecaster = Forecaster.load("target", num_samples=40, spec=SpecSettings(sigma=0.5))
    got = forecaster.predict(frame(), HORIZON, levels=levels)
    assert list(got.columns[3:]) == [f"q{level:g}" for level in levels]


@pytest.mark.parametrize("levels", [(), [], 0.5, "0.5", ["0.5"], [None], [True], [0, 0.5], [0.5, 1], (10, 90),
                                    [0.5, 0.5], [float("nan")], [0.1, 0.1 + 1e-9], {"a": 1}, 3, [[0.5]], [1j]])
@pytest.mark.parametrize("samples", [None, 9])
def test_other_levels_are_refused(place, levels, samples):
    spec = SpecSettings(sigma=0.5) if samples else None
    with pytest.raises(UserError, match="^`levels` is") as caught:
        Forecaster.load("target", num_samples=samples, spec=spec).predict(frame(), HORIZON, levels=levels)
    assert "\n" not in str(caught.value)


def test_levels_without_paths_are_refused(place):
    with pytest.raises(UserError, match="`levels` has no effect without paths"):
        Forecaster.load("target").predict(frame(), HORIZON, levels=(0.1, 0.9))


def test_an_array_a_series_and_a_dict_are_forecast_as_their_frame_is(place):
    forecaster, whole = Forecaster.load("target"), frame()
    first = forecaster.predict(whole, 8)
    assert (forecaster.predict(whole.to_numpy(), 8)["mean"] == first["mean"]).all()
    assert forecaster.predict(whole.to_dict("list"), 8).equals(first)
    assert forecaster.predict(whole["a"], 8).equals(forecaster.predict(whole[["a"]], 8))


def test_a_panel_in_the_index_is_as_many_series(place):
    """It was forecast as one of twice the length, without times."""
    times = pd.date_range("2024-01-01", periods=400, freq="h", name="ds")
    wide = frame().set_index(times)
    panel = wide.rename_axis(columns="unique_id").unstack().rename("y").to_frame()
    assert panel.index.names == ["unique_id", "ds"]
    forecaster = Forecaster.load("target")
    assert forecaster.predict(panel, 8).equals(forecaster.predict(wide, 8))


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_a_forecast_across_a_change_of_clocks_keeps_the_type_of_its_times(place, unit):
    times = pd.date_range("2024-03-14", periods=420, freq="h", tz="Europe/Berlin", unit=unit)  # clocks change at 410
    got = Forecaster.load("target").predict(frame().set_index(times[:400]), 20)
    assert got["ds"].dtype == times.dtype and list(got["ds"][:20]) == list(times[400:])


@pytest.mark.parametrize("df", [None, [1.0, 2.0], "mine.csv", 3, np.ones((400, 2, 2)), pd.DataFrame()])
def test_what_is_no_frame_is_refused(place, df):
    with pytest.raises(UserError) as caught:
        Forecaster.load("target").predict(df, 8)
    assert "\n" not in str(caught.value) and "--" not in str(caught.value)
