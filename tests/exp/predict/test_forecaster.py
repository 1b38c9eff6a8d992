"""Forecasts beyond the end: what csv and DataFrame hold is what an independent loop computes, in the same units."""
import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import NORMALISED, assert_picture, count, keep, keep_pair
from helpers import PATCH, tiny_target

import run
from exp.evaluate.methods import make_speculative
from exp.predict import Forecaster
from exp.predict.decoding import quantiles_of
from exp.speculation import SpecSettings
from utils.calibration import variance_of
from utils.errors import UserError
from utils.scores import QUANTILES

CONTEXT, HORIZON, ROWS = 5 * PATCH, 20, 70


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Pairs of a target and a draft; the target named 'uni' forecasts every series for itself."""
    monkeypatch.chdir(tmp_path)
    for name, changes in NORMALISED.items():
        keep_pair(f"checkpoints/{name}", tiny_target(**changes))
    keep("checkpoints/uni", tiny_target(use_norm=False), data="UnivariateDatasetBenchmark")
    return tmp_path


def values(rows=ROWS, seed=0):
    """[rows, 4], each variable with a level and a scale of its own."""
    t = np.arange(rows)[:, None]
    waves = np.sin(2 * np.pi * t / np.array([7, 7, 12, 30])) + 0.2 * np.random.default_rng(seed).normal(size=(rows, 4))
    return waves * np.array([1.0, 50.0, 0.01, 3.0]) + np.array([0.0, 1e4, -5.0, 100.0])


def daily(rows=ROWS):
    frame = pd.DataFrame(values(rows), columns=["a", "b/2", "c $", "d"])
    frame.insert(0, "day", pd.date_range("2021-02-01", periods=rows, freq="D"))
    return frame


def rolled(model, series, horizon=HORIZON):
    """An independent loop: [T, C] -> [horizon, C], in units; a causal model reads all patches, others a window."""
    mean, deviation = series[-CONTEXT:].mean(axis=0), series[-CONTEXT:].std(axis=0)
    past = torch.from_numpy(((series - mean) / deviation)[-CONTEXT:].astype(np.float32))[None]
    for _ in range(-(-horizon // PATCH)):
        seen = past if model.config.causal else past[:, -CONTEXT:]
        with torch.no_grad():
            past = torch.cat([past, model(seen)[:, -PATCH:]], dim=1)
    return past[0, CONTEXT:CONTEXT + horizon].double().numpy() * deviation + mean


def wide(table, column="mean"):
    """[H, C] of a long table, in the order of its series."""
    return np.stack([part[column].to_numpy() for _, part in table.groupby("unique_id", sort=False)], axis=1)


def predict(flags, name="plain", pictures=False):
    command = (f"--quiet --do_predict --root_path . --data_path mine.csv --test_dir {name} --test_pred_len {HORIZON} "
               f"{flags}")
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:  # they take longer than all the rest
            patch.setattr("exp.predict.files.draw", lambda *_: None)
        return run.main(command.split())


def results(name="plain", horizon=HORIZON):
    return Path(f"test_results/{name}_pl{horizon}_predict_mine")


@pytest.mark.parametrize("name", NORMALISED)
@pytest.mark.parametrize("draft", ["", "--spec_tol 0"])
def test_the_csv_holds_the_forecast_in_units_and_times_of_the_file(place, name, draft):
    daily().to_csv("mine.csv", index=False)
    flags = f"{draft} --spec_draft_ckpt checkpoints/{name}_draft/checkpoint.pth" if draft else ""
    assert predict(flags, name) == 0
    table = pd.read_csv(results(name) / "forecast.csv", parse_dates=["ds"])
    assert list(table.columns) == ["unique_id", "ds", "mean"]  # no quantiles without a law
    assert list(table.unique_id) == list(np.repeat(["a", "b/2", "c $", "d"], HORIZON))
    expected = rolled(tiny_target(**NORMALISED[name]), values())
    np.testing.assert_allclose(wide(table), expected, rtol=1e-5, atol=1e-5 * np.array([1, 50, 0.01, 3]).max())
    assert list(table.ds[:HORIZON]) == list(pd.date_range("2021-02-01", periods=ROWS + HORIZON, freq="D")[ROWS:])


def test_a_univariate_model_forecasts_every_series_for_itself(place):
    daily().to_csv("mine.csv", index=False)
    assert predict("--batch_size 3", "uni") == 0
    got = wide(pd.read_csv(results("uni") / "forecast.csv"))
    for c in range(4):
        np.testing.assert_allclose(got[:, c], rolled(tiny_target(use_norm=False), values()[:, [c]])[:, 0], rtol=1e-5)


def test_python_and_the_command_line_give_the_same_forecast(place):
    daily().to_csv("mine.csv", index=False)
    assert predict("--spec_tol 0.2 --spec_draft_ckpt checkpoints/norm_draft/checkpoint.pth", "norm") == 0
    got = Forecaster.load("checkpoints/norm", draft="checkpoints/norm_draft",
                          spec=SpecSettings(tol=0.2)).predict(daily(), HORIZON)
    saved = pd.read_csv(results("norm") / "forecast.csv", parse_dates=["ds"])
    pd.testing.assert_frame_equal(got, saved, rtol=1e-8, check_dtype=False)


def test_a_long_frame_and_a_wide_one_hold_the_same_series(place):
    frame = daily()
    forecaster = Forecaster.load("checkpoints/plain")
    frame = frame.rename(columns={"a": "z"})  # the order is that of the frame, not of the alphabet
    long = frame.melt("day", var_name="unique_id", value_name="y").rename(columns={"day": "ds"})
    first = forecaster.predict(frame, HORIZON)
    last = frame[["z", "b/2", "c $", "d", "day"]]
    for other in (long, long.sort_values("ds", kind="stable"), frame.set_index("day"), last):
        pd.testing.assert_frame_equal(forecaster.predict(other, HORIZON), first)


def test_one_forecaster_serves_many_frames_and_repeats_itself(place):
    forecaster = Forecaster.load("checkpoints/plain", draft=Path("checkpoints/plain_draft/checkpoint.pth"),
                                 spec=SpecSettings(tol=0.0))
    for horizon, columns in ((3, ["day", "a"]), (40, ["day", "d", "a"]), (3, ["day", "a"])):
        got = forecaster.predict(daily()[columns], horizon)
        expected = rolled(tiny_target(use_norm=False), daily()[columns[1:]].to_numpy(), horizon)
        np.testing.assert_allclose(wide(got), expected, rtol=1e-5, atol=1e-6)  # values come close to 0


def test_a_draft_alone_can_be_loaded_too(place):
    assert len(Forecaster.load("checkpoints/plain_draft").predict(daily(), HORIZON)) == 4 * HORIZON


def test_other_units_give_the_same_forecast_in_other_units(place):
    forecaster = Forecaster.load("checkpoints/norm")
    frame = daily()
    first = forecaster.predict(frame, HORIZON)
    frame["a"] = 1e6 + 1000 * frame["a"]
    moved = forecaster.predict(frame, HORIZON)
    np.testing.assert_allclose(moved["mean"][:HORIZON], 1e6 + 1000 * first["mean"][:HORIZON], rtol=1e-6)
    np.testing.assert_allclose(moved["mean"][HORIZON:], first["mean"][HORIZON:], rtol=1e-6)


def test_without_dates_the_rows_are_numbered_on(place):
    daily().drop(columns="day").to_csv("mine.csv", index=False)
    assert predict("") == 0
    assert list(pd.read_csv(results() / "forecast.csv").ds[:HORIZON]) == list(range(ROWS, ROWS + HORIZON))


def test_a_constant_column_stays_constant_and_that_is_said(place, capsys):
    frame = daily()
    frame["d"] = 1e7
    frame.to_csv("mine.csv", index=False)
    assert predict("") == 0
    said = capsys.readouterr().out
    assert "note: 'd' is 1e+07 in all of the newest 40 rows" in said
    assert (wide(pd.read_csv(results() / "forecast.csv"))[:, 3] == 1e7).all()


def test_that_there_are_no_quantiles_is_said_in_a_line(place, capsys):
    daily().to_csv("mine.csv", index=False)
    assert predict("") == 0
    assert capsys.readouterr().out.count("without quantiles") == 1


def test_a_picture_a_variable_and_how_the_forecast_was_made(place):
    daily().to_csv("mine.csv", index=False)
    results().mkdir(parents=True)
    older = results() / "forecast_009_old.png"
    older.touch()
    assert predict("--spec_draft_ckpt checkpoints/plain_draft/checkpoint.pth", pictures=True) == 0
    names = sorted(path.name for path in results().iterdir())
    assert names == ["forecast.csv", "forecast.json", "forecast_000_a.png", "forecast_001_b_2.png",
                     "forecast_002_c.png", "forecast_003_d.png", "settings.json"]
    assert_picture(results() / "forecast_003_d.png")
    record = json.loads((results() / "forecast.json").read_text())
    assert record["frequency"] == "D" and record["rows"] == ROWS and record["context"] == CONTEXT
    assert record["cost"]["target_passes"] >= 1 and record["settings"]["spec_tol"] == 0.15


def test_a_model_with_covariates_forecasts_its_last_variable(place, notes):
    keep("checkpoints/cov", tiny_target(covariate=True))
    got = Forecaster.load("checkpoints/cov").predict(daily(), HORIZON)
    assert set(got.unique_id) == {"d"} and len(got) == HORIZON
    assert count(notes, "last variable only") == 1


def test_columns_that_are_no_variables_are_noted(place, notes, capsys):
    frame = daily().drop(columns="day").assign(No=range(1, ROWS + 1))
    frame.to_csv("mine.csv")
    assert predict("") == 0
    note = "left out as counters of rows: 'Unnamed: 0', 'No' (rename a column to forecast it)"
    assert capsys.readouterr().out.count(f"note: {note}") == 1
    assert note in json.loads((results() / "forecast.json").read_text())["notes"]
    assert set(pd.read_csv(results() / "forecast.csv").unique_id) == {"a", "b/2", "c $", "d"}
    Forecaster.load("checkpoints/plain").predict(frame, HORIZON)
    assert count(notes, "left out as counters of rows: 'No' (") == 1


def test_a_long_file_is_forecast_as_a_wide_one(place):
    frame = daily()
    tables = []
    for table in (frame, frame.melt("day", var_name="unique_id", value_name="y").rename(columns={"day": "ds"})):
        table.to_csv("mine.csv", index=False)
        assert predict("") == 0
        tables.append((results() / "forecast.csv").read_text())
    assert tables[0] == tables[1]


# --- a law, where something samples it

def paths(context, horizon, count=4000):
    """[B, S, H, C]: standard normal around 1."""
    generator = torch.Generator().manual_seed(0)
    return 1 + torch.randn(len(context), count, horizon, context.shape[2], generator=generator)


@pytest.mark.parametrize("name", ["plain", "uni"])
def test_sampled_paths_become_quantiles_in_the_units_of_the_series(place, name):
    got = Forecaster.load(f"checkpoints/{name}").predict(daily(), HORIZON, sampler=paths)
    assert list(got.columns[3:]) == ["q0.025", "q0.1", "q0.25", "q0.5", "q0.75", "q0.9", "q0.975"]
    mean, deviation = values()[-CONTEXT:].mean(axis=0), values()[-CONTEXT:].std(axis=0)
    for level, z in ((0.025, -1.96), (0.5, 0.0), (0.9, 1.2816)):
        standardised = (wide(got, f"q{level:g}") - mean) / deviation - 1
        assert np.abs(standardised.mean(axis=0) - z).max() < 0.05  # 20 steps of 4000 paths: a standard error of 0.01


ONE_WIDTH = SpecSettings(sigma_mode="calibrated", width="one")


@pytest.mark.parametrize("name", ["norm", "uni", "causal"])
def test_the_law_is_that_of_the_targets_errors_on_the_newest_windows(place, name):
    """Of the first patch: later ones are drawn after sampled ones."""
    rows, model = 400, tiny_target(**NORMALISED["plain" if name == "uni" else name])
    frame = daily(rows)
    older = frame.index < 300  # wilder, so that a law of older windows would be wider
    frame.iloc[older, 1:] += 1.5 * values(rows).std(axis=0) * np.random.default_rng(1).normal(size=(older.sum(), 4))
    series = frame.iloc[:, 1:].to_numpy()
    errors = []
    count = rows - CONTEXT - PATCH + 1
    unit = 1.0 if name == "uni" else (1 + 1e-5)**0.5  # of a window on its own scale
    for first in range(count - count // 5, count):
        part = series[first:first + CONTEXT + PATCH]
        part = (part - part[:CONTEXT].mean(axis=0)) / part[:CONTEXT].std(axis=0)
        window, truth = torch.from_numpy(part).float().tensor_split([CONTEXT])
        with torch.no_grad():
            mean = model(window[None])[0, -PATCH:] if name != "uni" else \
                torch.cat([model(window[None, :, c:c + 1])[0, -PATCH:] for c in range(4)], dim=1)
        errors.append((truth - mean) / unit)
    squares = torch.stack(errors).square()
    squares = squares.mean(dim=2, keepdim=True) if name == "uni" else squares
    sigma = variance_of(squares, torch.ones(len(errors), dtype=torch.bool)).sqrt()
    got = Forecaster.load(f"checkpoints/{name}", num_samples=4000, spec=ONE_WIDTH).predict(frame, HORIZON)
    width = (wide(got, "q0.9") - wide(got, "q0.1"))[:PATCH] / series[-CONTEXT:].std(axis=0)
    assert np.abs(width / (2 * 1.2816 * (sigma * unit).numpy()) - 1).max() < 0.12  # 5 standard errors of 2.4 %


def test_paths_of_a_prediction_may_differ_in_width(place):
    """One series in spells: a mixture has more paths near the middle than one width, and more far from it."""
    frame = daily(400)
    calm = frame.index % 60 < 40
    frame.iloc[~calm, 1:] += 2 * values(400).std(axis=0) * np.random.default_rng(1).normal(size=((~calm).sum(), 4))

    def tails(width):
        spec = SpecSettings(sigma_mode="calibrated", width=width)
        got = Forecaster.load("checkpoints/causal", num_samples=2000, spec=spec).predict(frame, PATCH)
        quantiles = {level: wide(got, f"q{level}") for level in ("0.025", "0.25", "0.75", "0.975")}
        return ((quantiles["0.975"] - quantiles["0.025"]) / (quantiles["0.75"] - quantiles["0.25"])).mean()
    assert tails("one") == pytest.approx(1.96 / 0.674, rel=0.05) and tails("mixture") > 1.05 * tails("one")


def test_a_fixed_sigma_is_in_deviations_of_the_context_and_repeats_itself(place):
    daily().to_csv("mine.csv", index=False)
    draft = "--spec_draft_ckpt checkpoints/plain_draft/checkpoint.pth"
    assert predict(f"--num_samples 4000 --spec_sigma 0.5 {draft}") == 0
    got = pd.read_csv(results() / "forecast.csv")
    width = (wide(got, "q0.9") - wide(got, "q0.1"))[:PATCH] / values()[-CONTEXT:].std(axis=0)
    assert np.abs(width / (2 * 1.2816 * 0.5) - 1).max() < 0.12
    again = Forecaster.load("checkpoints/plain", num_samples=4000, spec=SpecSettings(sigma=0.5)).predict(daily(),
                                                                                                      HORIZON)
    assert np.allclose(wide(again, "q0.9"), wide(got, "q0.9"))


@pytest.fixture
def used(monkeypatch):
    """The rules that forecasts were decoded by."""
    rules = []

    def spy(target, draft, spec, horizon, seed, rule):
        rules.append(rule)
        return make_speculative(target, draft, spec, horizon, seed, rule)
    monkeypatch.setattr("exp.predict.forecaster.make_speculative", spy)
    return rules


@pytest.mark.parametrize("flags, relative", [("", True), ("--spec_sigma 0.5", False)])
def test_a_rule_that_keeps_a_law_judges_by_the_law_of_the_paths(place, used, flags, relative):
    daily(400).to_csv("mine.csv", index=False)
    draft = "--spec_draft_ckpt checkpoints/norm_draft/checkpoint.pth"
    assert predict(f"--num_samples 8 --spec_accept_rule exact {draft} {flags}", "norm") == 0
    assert [rule.law.relative for rule in used] == [relative]


@pytest.mark.parametrize("law, relative", [({}, True), ({"sigma_mode": "calibrated"}, True),
                                           ({"sigma": 0.5}, False)])
def test_in_python_too_a_rule_judges_by_the_law_of_the_paths(place, used, law, relative):
    forecaster = Forecaster.load("checkpoints/norm", draft="checkpoints/norm_draft", num_samples=8,
                                 spec=SpecSettings(rule="exact", **law))
    forecaster.predict(daily(400), HORIZON)
    assert [(rule.name, rule.emit, rule.law.relative) for rule in used] == [("exact", "mean", relative)]


def test_too_few_paths_for_the_outermost_quantiles_are_noted(place, notes):
    for paths, said in ((38, 1), (39, 0)):
        Forecaster.load("checkpoints/plain", num_samples=paths, spec=SpecSettings(sigma=0.5)).predict(daily(), HORIZON)
        assert count(notes, "outermost quantiles") == said
        notes.clear()


def test_notes_are_warnings_and_name_no_flags(place, notes):
    frame = daily(400).assign(d=1e7)
    Forecaster.load("checkpoints/norm", num_samples=20, quiet=True).predict(frame, HORIZON)
    assert [level for level, _ in notes] == [logging.WARNING] * 4
    for words in ("recent windows", "outermost quantiles", "set `num_samples` to", "1e+07 in all of the newest 40 rows",
                  "forecast together"):
        assert count(notes, words) == 1
    assert not [text for _, text in notes if "--" in text]


def test_quantiles_are_of_every_step_for_itself():
    ladder = torch.arange(1.0, 100.0)[None, :, None, None] + torch.tensor([0.0, 1000.0])  # 99 paths cut 100 equal parts
    assert quantiles_of(ladder, QUANTILES).shape == (len(QUANTILES), 1, 1, 2)
    assert quantiles_of(ladder, (0.1, 0.5))[:, 0, 0].tolist() == [[10, 1010], [50, 1050]]


# --- refusals in Python

@pytest.mark.parametrize("spoil, words", [
    (lambda frame: frame.head(30), ["30 rows", "takes 40", "`context` 24"]),
    (lambda frame: frame.assign(a=frame.a.where(frame.index != 50)), ["the DataFrame, data row 51, column 'a'"]),
    (lambda frame: frame.assign(a="high"), ["data row 1", "'a'", "'high'", "not a number"]),
    (lambda frame: frame.drop(index=33), ["data row 34 (2021-03-07 00:00:00)", "not one step of D"]),
    (lambda frame: frame.assign(day=frame.day[0]), ["data row 2", "repeats"]),
    (lambda frame: frame.rename(columns={"a": "d"}), ["two columns", "'d'"]),
    (lambda frame: frame[[]], ["no rows"]),
    (lambda frame: frame.melt("day", var_name="unique_id", value_name="y").rename(columns={"day": "ds"}).iloc[:-3],
     ["'d' has 67 of 70 times", "same times"]),
    (lambda frame: pd.DataFrame({"unique_id": "x", "ds": frame.day[0], "y": [1.0, 2.0]}), ["'x' has two values"]),
    (lambda frame: pd.DataFrame({"unique_id": ["x", None], "ds": [1, 2], "y": [1.0, 2]}), ["data row 2", "unique_id"]),
    (lambda frame: frame[::-1], ["data row 2 (2021-04-10 00:00:00)", "earlier"]),
    (lambda frame: frame.assign(date=frame.day), ["'day' and 'date'", "keep one"]),
])
def test_a_frame_that_cannot_be_forecast_is_refused_in_a_line(place, spoil, words):
    with pytest.raises(UserError) as caught:
        Forecaster.load("checkpoints/plain").predict(spoil(daily()), HORIZON)
    said = str(caught.value)
    assert "\n" not in said and "--" not in said and not [word for word in words if word not in said], said


def test_a_horizon_of_nothing_is_refused(place):
    with pytest.raises(UserError, match="at least 1"):
        Forecaster.load("checkpoints/plain").predict(daily(), 0)
