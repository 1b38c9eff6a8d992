"""Panels in Python: every series is forecast as it would be by itself, whatever stands around it."""
import logging

import numpy as np
import pandas as pd
import pytest
from exp_helpers import keep, keep_pair
from helpers import PATCH, tiny_target

from exp.evaluate.methods import SpeculativeMethod
from exp.panels import PanelSettings
from exp.predict import Forecaster, panel
from exp.speculation import SpecSettings
from utils.errors import UserError
from utils.planner import Plan

CONTEXT, HORIZON = 5 * PATCH, 20
UNIVARIATE = "UnivariateDatasetBenchmark"
SKIP = PanelSettings(on_bad="skip")
KINDS = {"causal": {"norm_mode": "causal", "norm_window": 5}, "window": {}}
LENGTHS = (70, 8, 15, 16, 41, 39, 40, 300, 23)
FREQUENCIES = ("h", "D", "MS", "B", "ME", "15min", "W-SUN", "QE-DEC", "YS-JAN")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, changes in KINDS.items():
        keep_pair(name, tiny_target(**changes), data=UNIVARIATE)
    keep("together", tiny_target())
    return tmp_path


def one(name, rows, frequency="h", seed=0, start="2001-01-31"):
    rng = np.random.default_rng((seed, rows))
    values = np.sin(np.arange(rows) / 3) * 10.0**rng.integers(-2, 4) + rng.normal(size=rows) + 5
    return pd.DataFrame({"unique_id": name, "ds": pd.date_range(start, periods=rows, freq=frequency).as_unit("us"),
                         "y": values})


def ragged():
    """Series of different length and frequency, none of them in the alphabet's order."""
    return pd.concat([one(f"s{9 - i}", rows, frequency)
                      for i, (rows, frequency) in enumerate(zip(LENGTHS, FREQUENCIES))], ignore_index=True)


def alone(table, name, kind, **how):
    """The forecast of one series in a wide frame, with the context that it fills."""
    part = table[table.unique_id == name]
    context = min(CONTEXT, len(part) // PATCH * PATCH)
    got = Forecaster.load(kind, context=context, quiet=True, **how).predict(part[["ds", "y"]], HORIZON)
    return got["mean"].to_numpy(), got["ds"]


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_series_is_forecast_as_by_itself(place, kind, draft):
    table, how = ragged(), {}
    if draft:
        how = {"draft": f"{kind}_draft", "spec": SpecSettings(tol=0.3, k=2)}
    got = Forecaster.load(kind, quiet=True, batch_size=2, **how).predict(table, HORIZON)
    assert list(got.columns) == ["unique_id", "ds", "mean"] and got.ds.dtype == table.ds.dtype
    assert list(got.unique_id) == list(np.repeat(table.unique_id.unique(), HORIZON))
    for name, part in got.groupby("unique_id"):
        values, future = alone(table, name, kind, **how)
        np.testing.assert_allclose(part["mean"], values, rtol=2e-5, atol=1e-5 * np.abs(values).max())
        assert list(part.ds) == list(future)


def test_the_size_of_batches_and_blocks_changes_nothing(place, monkeypatch):
    table = ragged()
    first = Forecaster.load("causal", quiet=True).predict(table, HORIZON)
    for batch, block in ((1, 10**6), (3, 50), (100, 9)):
        monkeypatch.setattr("data_provider.panel.BLOCK", block)
        got = Forecaster.load("causal", quiet=True, batch_size=batch).predict(table, HORIZON)
        pd.testing.assert_frame_equal(got, first, rtol=1e-4)


def test_scattered_and_unsorted_rows_are_put_in_order_and_that_is_said_once(place, notes):
    table = ragged()
    first = Forecaster.load("causal", quiet=True).predict(table, HORIZON)
    notes.clear()
    mixed = table.sample(frac=1, random_state=0)
    got = Forecaster.load("causal", quiet=True).predict(mixed, HORIZON)
    assert list(got.unique_id.unique()) == list(mixed.unique_id.unique())
    both = [part.sort_values(["unique_id", "ds"]).reset_index(drop=True) for part in (got, first)]
    pd.testing.assert_frame_equal(*both, rtol=1e-4)
    assert [text for _, text in notes if "not in order of time" in text] == \
        ["note: the rows of 9 series were not in order of time, and were sorted"]


def test_a_context_shorter_than_in_training_is_said(place, notes):
    Forecaster.load("causal", quiet=True).predict(ragged(), HORIZON)
    short = sum(rows < CONTEXT for rows in LENGTHS)
    assert [text for _, text in notes] == [f"note: {short} series are shorter than the {CONTEXT} steps of context: "
                                           "theirs is the longest multiple of the patch that they fill"]
    notes.clear()
    Forecaster.load("causal", quiet=True).predict(one("a", 70), HORIZON)
    assert not notes


@pytest.mark.parametrize("ids", ["int64", "category", "str"])
@pytest.mark.parametrize("times", ["numbers", "zone", "period", "index"])
def test_ids_and_times_keep_their_types(place, ids, times):
    table = pd.concat([one(str(i), 50) for i in (12, 3)], ignore_index=True)
    table["unique_id"] = table["unique_id"].astype(ids)
    if times == "numbers":
        table["ds"] = np.tile(np.arange(1950, 2000), 2)
    elif times == "zone":
        table["ds"] = table["ds"].dt.tz_localize("Europe/Berlin")
    elif times == "period":
        table["ds"] = table["ds"].dt.to_period("h")
    given = table.set_index(["unique_id", "ds"]) if times == "index" else table
    got = Forecaster.load("causal", quiet=True).predict(given, HORIZON)
    assert got.dtypes["unique_id"] == table.dtypes["unique_id"] and got.dtypes["ds"] == table.dtypes["ds"]
    step = table.ds[1] - table.ds[0]
    assert list(got.ds[:2]) == [table.ds.iloc[49] + step, table.ds.iloc[49] + 2 * step]


def test_columns_of_other_names_are_forecast_under_their_names(place):
    table = ragged()
    first = Forecaster.load("causal", quiet=True).predict(table, HORIZON)
    named = PanelSettings(id_col="shop", time_col="when", target_col="sold")
    for names, settings in ((["item_id", "timestamp", "target"], None), (["shop", "when", "sold"], named)):
        other = table.set_axis(names, axis=1).assign(price=1.0)
        got = Forecaster.load("causal", quiet=True).predict(other, HORIZON, panel=settings)
        assert list(got.columns) == [*names[:2], "mean"]
        assert (got["mean"] == first["mean"]).all()


# --- what cannot be forecast

def spoiled():
    """Good series, and one of each kind that is none."""
    repeated = one("twice", 60)
    repeated.loc[5, "ds"] = repeated.loc[4, "ds"]
    odd = one("odd", 60)
    odd.loc[30, "ds"] += pd.Timedelta("7min")
    return pd.concat([one("good", 70), one("short", 7), one("flat", 60).assign(y=3.0), repeated, odd,
                      one("few", 2), one("empty", 60).assign(y=np.nan), one("fine", 41, "D")], ignore_index=True)


REASONS = {"short": "is too short: 7 rows, a patch takes 8", "flat": "is constant in all of its newest 40 rows",
           "twice": "has two values at 2001-01-31 04:00:00", "few": "is too short: 2 rows, a patch takes 8",
           "odd": "is irregular: 2001-02-01 06:07:00 comes after 2001-02-01 05:00:00, which is no step like the one "
                  "before",
           "empty": "has no values: all of its rows are missing ones"}


def test_series_that_cannot_be_forecast_are_an_error_that_counts_and_names_them(place):
    with pytest.raises(UserError) as caught:
        Forecaster.load("window", quiet=True).predict(spoiled(), HORIZON)
    said = str(caught.value)
    assert "the DataFrame: 6 series cannot be forecast: 'short' is too short" in said and "; and 1 more; " in said
    assert "`on_bad` skip leaves them out" in said and "--" not in said


def test_days_whose_offsets_change_are_told_what_to_write(place):
    """2024-03-31 is a day of 23 hours in Berlin, which the text of times does not tell."""
    days = pd.date_range("2024-03-01", periods=60, freq="D", tz="Europe/Berlin")
    table = one("a", 60).assign(ds=days.astype(str))
    with pytest.raises(UserError, match="is irregular: .* write local times without them, or a zone in parquet"):
        Forecaster.load("window", quiet=True).predict(table, HORIZON)
    for times in (days, days.tz_localize(None).astype(str)):
        got = Forecaster.load("window", quiet=True).predict(table.assign(ds=times), HORIZON)
        assert str(got.ds.iloc[0])[:10] == "2024-04-30"


def test_or_they_are_left_out_and_listed(place, notes):
    table = spoiled()
    got = Forecaster.load("window", quiet=True).predict(table, HORIZON, panel=SKIP)
    assert got.attrs["skipped"] == REASONS and list(got.unique_id.unique()) == ["good", "fine"]
    assert [text for _, text in notes if "6 series are left out" in text]
    for name in ("good", "fine"):
        np.testing.assert_allclose(got[got.unique_id == name]["mean"], alone(table, name, "window")[0], rtol=2e-5)


def test_values_that_are_too_far_from_the_newest_are_a_reason(place):
    keep("narrow", tiny_target(norm_mode="causal", norm_window=2), data=UNIVARIATE)
    far = one("far", 60)
    far.loc[25, "y"] = 1e30
    got = Forecaster.load("narrow", quiet=True).predict(pd.concat([far, one("a", 60)]), HORIZON, panel=SKIP)
    assert got.attrs["skipped"] == {"far": "has values in the context that are too far from its newest ones"}


def holed():
    table = pd.concat([one("a", 70), one("b", 60, "MS"), one("c", 50, "D")], ignore_index=True)
    table.loc[[60, 61, 100, 129], "y"] = np.nan
    return table.drop(index=[40, 41, 150])


def test_missing_values_are_an_error_with_the_count_of_every_series(place):
    for on_bad in ("error", "skip"):
        with pytest.raises(UserError) as caught:
            Forecaster.load("window", quiet=True).predict(holed(), HORIZON, panel=PanelSettings(on_bad=on_bad))
        assert "3 series have 7 missing values: 'a' 4; 'b' 2; 'c' 1; `missing` interpolate" in str(caught.value)


@pytest.mark.parametrize("way", ["interpolate", "last", "seasonal"])
def test_or_they_are_filled_in(place, way, notes):
    got = Forecaster.load("window", quiet=True).predict(holed(), HORIZON, panel=PanelSettings(missing=way))
    assert [text for _, text in notes if f"3 series had 7 missing values, filled in by `missing` {way}" in text]
    filled = []
    for (name, part), (frequency, season) in zip(holed().groupby("unique_id"), (("h", 24), ("MS", 12), ("D", 7))):
        y = part.set_index("ds")["y"].asfreq(frequency)
        y = {"interpolate": y.interpolate, "last": y.ffill,
             "seasonal": lambda: y.fillna(y.shift(season)).interpolate()}[way]()  # noqa: B023
        filled.append(y.reset_index().assign(unique_id=name))
    wanted = Forecaster.load("window", quiet=True).predict(pd.concat(filled), HORIZON)
    pd.testing.assert_frame_equal(got, wanted, rtol=1e-5, check_like=True)


def test_a_series_goes_on_from_its_last_row_even_where_that_has_no_value(place):
    table = one("a", 70)
    table.loc[69, "y"] = np.nan
    got = Forecaster.load("window", quiet=True).predict(table, HORIZON, panel=PanelSettings(missing="last"))
    assert got.ds[0] == table.ds[69] + pd.Timedelta("1h")


def test_a_lower_limit_holds_for_every_series(place, notes):
    table = ragged()
    free = Forecaster.load("causal", quiet=True).predict(table, HORIZON)
    low = float(free["mean"].quantile(0.2))
    limited = Forecaster.load("causal", quiet=True, clip_min=low).predict(table, HORIZON, panel=SKIP)
    kept = free[free.unique_id.isin(limited.unique_id)]["mean"].to_numpy()
    np.testing.assert_array_equal(limited["mean"], np.maximum(kept, low))
    assert [text for _, text in notes if "are raised to it" in text]


@pytest.mark.parametrize("how, words", [
    ({"panel": PanelSettings(id_col="shop")}, "no column 'shop' for `id_col`"),
    ({"panel": PanelSettings(out="x.csv")}, "`out` has no effect on a DataFrame"),
    ({"panel": PanelSettings(backtest=2)}, "`backtest` has no effect on a DataFrame")])
def test_settings_without_effect_are_refused(place, how, words):
    with pytest.raises(UserError, match=words):
        Forecaster.load("causal").predict(ragged(), HORIZON, **how)


def test_a_target_that_forecasts_all_together_takes_no_panel(place):
    with pytest.raises(UserError, match="`panel` has no effect on a target .* `kind` UnivariateDatasetBenchmark"):
        Forecaster.load("together").predict(ragged(), HORIZON, panel=SKIP)
    with pytest.raises(UserError, match=r"same times; .* each by itself \(`kind` UnivariateDatasetBenchmark\)"):
        Forecaster.load("together").predict(ragged(), HORIZON)
    got = Forecaster.load("together", kind=UNIVARIATE, quiet=True).predict(ragged(), HORIZON)
    assert len(got) == len(LENGTHS) * HORIZON


def test_a_panel_of_wide_columns_is_refused(place):
    with pytest.raises(UserError, match="has no columns unique_id, ds and y"):
        Forecaster.load("causal").predict(pd.DataFrame({"a": np.arange(50.0)}), HORIZON, panel=SKIP)


# --- quantiles

def test_the_paths_of_a_series_depend_on_its_number_alone(place):
    table = ragged()
    how = dict(quiet=True, num_samples=50, spec=SpecSettings(sigma=0.5))
    first = Forecaster.load("causal", batch_size=2, **how).predict(table, HORIZON)
    other = Forecaster.load("causal", batch_size=32, **how).predict(table, HORIZON)
    pd.testing.assert_frame_equal(first, other, rtol=1e-4)
    again = Forecaster.load("causal", **how).predict(table[table.unique_id != "s1"], HORIZON)
    kept = first[first.unique_id != "s1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, kept, rtol=1e-4)  # s1 is the last one
    widths = (first["q0.9"] - first["q0.1"]).to_numpy().reshape(len(LENGTHS), HORIZON)[:, :PATCH]
    scales = [table[table.unique_id == name].y.iloc[-min(CONTEXT, rows // PATCH * PATCH):].std(ddof=0)
              for name, rows in zip(table.unique_id.unique(), LENGTHS)]
    assert np.abs((widths / np.array(scales)[:, None]).mean() / (2 * 1.2816 * 0.5) - 1) < 0.08


def test_two_parts_of_a_table_do_not_share_their_random_numbers(place, monkeypatch):
    monkeypatch.setattr("data_provider.panel.BLOCK", 100)
    seeds, real = [], panel.decode_windows

    def spy(windows, horizon, batch_size, method, *rest, **more):
        seeds.append(method.generator.initial_seed())
        return real(windows, horizon, batch_size, method, *rest, **more)
    monkeypatch.setattr(panel, "decode_windows", spy)
    table = pd.concat([one(f"s{i}", 50) for i in range(6)], ignore_index=True)
    Forecaster.load("causal", draft="causal_draft", quiet=True,
                    spec=SpecSettings(rule="exact", sigma=0.5)).predict(table, HORIZON)
    assert len(seeds) > 2 and len(set(seeds)) == len(seeds)


def test_two_series_do_not_share_their_noise(place):
    table = pd.concat([one("a", 70), one("a", 70).assign(unique_id="b")])
    got = Forecaster.load("causal", quiet=True, num_samples=20, spec=SpecSettings(sigma=0.5)).predict(table, HORIZON)
    a, b = (got[got.unique_id == name].reset_index(drop=True) for name in "ab")
    assert np.allclose(a["mean"], b["mean"]) and np.abs(a["q0.9"] - b["q0.9"]).min() > 1e-6


def test_the_law_of_a_panel_is_that_of_its_errors(place):
    """White noise that no model can foresee: bands of 80 % of the next patch cover about as much of it."""
    rng = np.random.default_rng(0)
    table = pd.concat([one(f"s{i}", 80).assign(y=rng.normal(size=80) * 10.0**(i % 3)) for i in range(120)])
    short, truth = table.groupby("unique_id", sort=False).head(72), table.groupby("unique_id", sort=False).tail(8)
    got = Forecaster.load("causal", quiet=True, num_samples=200).predict(short, PATCH)
    inside = (got["q0.1"].to_numpy() <= truth.y.to_numpy()) & (truth.y.to_numpy() <= got["q0.9"].to_numpy())
    assert 0.72 < inside.mean() < 0.88  # 960 values, standard error 1.3 %, and the law's own


def test_series_too_short_for_a_law_are_refused(place):
    with pytest.raises(UserError, match="the first series leave .* windows to calibrate a law on"):
        Forecaster.load("causal", quiet=True, num_samples=50).predict(one("a", 30), HORIZON)
    with pytest.raises(UserError, match="none of the first series that can be forecast has two patches"):
        Forecaster.load("causal", quiet=True, num_samples=50).predict(one("a", 15), HORIZON)


# --- a plan

@pytest.mark.parametrize("proposals", [0, 1])
def test_k_is_chosen_on_the_panel_itself(place, notes, monkeypatch, proposals):
    seen = []

    def plan(target, draft, context, *_):
        seen.append(context.shape)
        return Plan(proposals, len(context), 0.5, {0: 1.0, 1: 1.0})
    monkeypatch.setattr("exp.evaluate.methods.make_plan", plan)
    used = []
    real = SpeculativeMethod.proposals_for
    monkeypatch.setattr(SpeculativeMethod, "proposals_for",
                        lambda self, batch: used.append(real(self, batch)) or used[-1])
    Forecaster.load("causal", draft="causal_draft", spec=SpecSettings(k="auto"), quiet=True,
                    batch_size=3).predict(ragged(), HORIZON)
    assert seen == [(3, CONTEXT, 1)] and set(used) == {proposals}  # the most usual context
    assert [text for _, text in notes if "`k` auto measured on 3 series with a context of 40 steps" in text]


def test_k_is_not_chosen_where_there_is_one_window(place):
    with pytest.raises(UserError, match="`k` auto measures on many series, but .* give a number"):
        Forecaster.load("together", draft="causal_draft", spec=SpecSettings(k="auto"))
    forecaster = Forecaster.load("causal", draft="causal_draft", spec=SpecSettings(k="auto"))
    with pytest.raises(UserError, match="`k` auto measures on many series, but this is no long table"):
        forecaster.predict(pd.DataFrame({"a": np.sin(np.arange(50.0))}), HORIZON)


def test_notes_name_no_flags(place, caplog):
    with caplog.at_level(logging.WARNING, "exp.predict.forecaster"):
        Forecaster.load("causal", quiet=True, num_samples=20, spec=SpecSettings(sigma=0.5)).predict(
            spoiled(), HORIZON, panel=PanelSettings(on_bad="skip", missing="last"))
    assert len(caplog.records) >= 3 and not [record for record in caplog.records if "--" in record.getMessage()]
