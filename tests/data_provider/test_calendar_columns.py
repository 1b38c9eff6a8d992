"""Counters and parts of the calendar are never forecast unseen; real variables under such names always are."""
import numpy as np
import pandas as pd
import pytest

from data_provider.frames import from_frame
from data_provider.reading import read_series
from data_provider.times import continued
from utils.errors import UserError

N = 1500  # hours: more than two months
HOURS = pd.date_range("2010-01-30", periods=N, freq="h")
DAYS = pd.date_range("2010-01-30", periods=N, freq="D")
Y = np.sin(np.arange(N))
RANDOM = np.random.default_rng(0)
NOTE = "left out as {}: {} (rename a column to forecast it)"


def parts(times, *names, **columns):
    """A frame of parts of `times`, then y."""
    return pd.DataFrame({name: getattr(times, name.lower()) for name in names} | columns | {"y": Y})


@pytest.fixture(params=["frame", "file"])
def read(request, tmp_path):
    """Reads a frame as it is, or from a csv file."""
    def of_file(frame):
        frame.to_csv(tmp_path / "mine.csv", index=False)
        return read_series(tmp_path / "mine.csv")
    return from_frame if request.param == "frame" else of_file


@pytest.mark.parametrize("name, values", [
    ("Unnamed: 0", np.arange(N)), ("Unnamed: 0", np.arange(0, 2 * N, 2)), ("Unnamed: 0", RANDOM.permutation(N)),
    ("No", np.arange(1, N + 1)), ("id", np.arange(N)), ("index", np.arange(N)[::-1]), ("Row_ID", np.arange(7.0, N + 7)),
])
@pytest.mark.parametrize("dated", [False, True])
def test_a_counter_of_rows_is_left_out(read, name, values, dated):
    frame = pd.DataFrame({name: values} | ({"date": HOURS} if dated else {}) | {"y": Y})
    got = read(frame)
    assert got.names == ["y"] and got.notes == [NOTE.format("counters of rows", repr(name))]
    assert (got.dates is not None) is dated
    np.testing.assert_allclose(got.values[:, 0], Y)


@pytest.mark.parametrize("name, values", [
    ("Unnamed: 0", Y), ("no", Y), ("id", np.arange(N) // 2), ("id", np.full(N, 5)), ("index", 100 + np.cumsum(Y)),
    ("count", np.arange(N)), ("trend", np.arange(N)), ("day", 3 * Y), ("hour", RANDOM.integers(0, 24, N)),
    ("day", RANDOM.integers(0, 2, N)), ("day", RANDOM.integers(1, 32, N)), ("month", RANDOM.integers(1, 13, N)),
    ("day", np.sort(RANDOM.integers(0, 10**6, N))), ("week", 1e6 + Y), ("year", RANDOM.integers(1990, 2010, N)),
    ("minute", np.where(np.arange(N) == 3, np.nan, 5.0)),
])
@pytest.mark.parametrize("dated", [False, True])
def test_a_variable_under_such_a_name_stays(read, name, values, dated):
    frame = pd.DataFrame(({"date": HOURS} if dated else {}) | {name: values, "y": Y})
    if np.isnan(values).any():
        with pytest.raises(UserError, match="data row 4.*'minute': missing"):
            read(frame)
    else:
        got = read(frame)
        assert got.names == [name, "y"] and not got.notes
        np.testing.assert_allclose(got.values[:, 0], values)


@pytest.mark.parametrize("frame, used, following", [
    (parts(HOURS, "year", "month", "day", "hour"), "'year', 'month', 'day', 'hour'", HOURS[-1] + pd.Timedelta("1h")),
    (parts(HOURS, "Hour", "Day", "Month", "Year"), "'Year', 'Month', 'Day', 'Hour'", HOURS[-1] + pd.Timedelta("1h")),
    (parts(HOURS, "year", "month", "day", hr=HOURS.hour + 1), "'year', 'month', 'day', 'hr'",
     HOURS[-1] + pd.Timedelta("2h")),  # hours from 1 to 24: the hour that ends
    (parts(DAYS, "year", "month", "day"), "'year', 'month', 'day'", DAYS[-1] + pd.Timedelta("1D")),
    (parts(pd.date_range("1880", periods=N, freq="MS"), "YEAR", mo=np.tile(np.arange(1, 13), N // 12)), "'YEAR', 'mo'",
     pd.Timestamp("2005-01-01")),
    (pd.DataFrame({"year": 1959 + np.arange(200) // 4, "quarter": 1 + np.arange(200) % 4, "y": Y[:200]}),
     "'year', 'quarter'", pd.Timestamp("2009-01-01")),
    (pd.DataFrame({"YEAR": np.arange(1700, 2009), "y": Y[:309]}), "'YEAR'", 2009),
    (pd.DataFrame({"date": HOURS.normalize(), "hour": HOURS.hour, "y": Y}), "'date', 'hour'",
     HOURS[-1] + pd.Timedelta("1h")),
    (pd.DataFrame({"Time": HOURS.strftime("%H:%M:%S"), "Date": HOURS.strftime("%d/%m/%Y"), "y": Y}), "'Date', 'Time'",
     HOURS[-1] + pd.Timedelta("1h")),
])
def test_columns_that_make_times_together_are_the_times(read, frame, used, following):
    got = read(frame)
    assert got.names == ["y"] and got.notes == [f"the times are those of {used}"]
    assert continued(got, 3, "mine").future[0] == following


@pytest.mark.parametrize("name", ["day", "Datum", "y2"])
def test_days_written_as_numbers_are_times_under_any_name(read, name):
    got = read(pd.DataFrame({"y": Y, name: DAYS.strftime("%Y%m%d").astype(int)}))
    assert got.names == ["y"] and got.notes == [f"the times are those of {name!r}"]
    assert continued(got, 3, "mine").future[0] == DAYS[-1] + pd.Timedelta("1D")


def test_numbers_of_that_size_are_a_variable(read):
    assert read(pd.DataFrame({"meter": 20200101 + np.arange(N), "y": Y})).names == ["meter", "y"]


def test_a_file_like_beijings_has_a_counter_and_four_columns_of_times(read):
    frame = parts(HOURS, "year", "month", "day", "hour", DEWP=Y)
    frame.insert(0, "No", np.arange(1, N + 1))
    got = read(frame)
    assert got.names == ["DEWP", "y"] and len(got.notes) == 2 and "'No'" in got.notes[0] and "'hour'" in got.notes[1]
    with pytest.raises(UserError, match="data row 31 .2010-01-31 07:00:00. comes after row 30 .2010-01-31 05:00:00."):
        continued(read(frame.drop(index=30)), 3, "mine")
    with pytest.raises(UserError, match="data row 1.*'cbwd': 'NW' is not a number"):
        read(frame.assign(cbwd="NW"))


REPEATED = {"year": HOURS.year, "month": HOURS.month, "day": HOURS.day, "hour": HOURS.hour, "minute": HOURS.minute,
            "weekday": HOURS.day_of_week, "dow": (HOURS.day_of_week + 1) % 7, "day_of_week": HOURS.day_of_week + 1,
            "doy": HOURS.day_of_year, "quarter": HOURS.quarter, "week": HOURS.isocalendar()["week"].to_numpy(int),
            "hr": HOURS.hour + 1}


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("times", [HOURS, HOURS.to_period("h")])
def test_a_column_that_repeats_the_times_is_left_out(read, name, times):
    got = read(pd.DataFrame({"date": times, name: REPEATED[name], "y": Y}))
    assert got.names == ["y"] and got.notes == [NOTE.format("parts of the calendar", repr(name))]


@pytest.mark.parametrize("name", ["hour", "weekday", "dow", "day_of_week", "month", "day", "doy", "quarter", "hr"])
def test_without_times_a_column_that_runs_like_a_clock_is_left_out(read, name):
    got = read(pd.DataFrame({name: REPEATED[name], "y": Y}))
    assert got.names == ["y"] and got.dates is None and got.notes == [NOTE.format("parts of the calendar", repr(name))]


def test_days_of_business_run_like_a_calendar(read):
    days = pd.date_range("2010-01-30", periods=N, freq="B")
    assert read(pd.DataFrame({"weekday": days.day_of_week, "day": days.day, "y": Y})).names == ["y"]


def test_an_empty_column_without_a_name_is_left_out(tmp_path):
    (tmp_path / "mine.csv").write_text("date,a,\n" + "".join(f"2020-01-{day},{day},\n" for day in range(10, 20)))
    got = read_series(tmp_path / "mine.csv")
    assert got.names == ["a"] and got.notes == ["left out as empty: 'Unnamed: 2'"]


def test_a_number_with_fractions_called_time_is_a_variable(read):
    got = read(pd.DataFrame({"y": Y, "time": Y / 3}))
    assert got.names == ["y", "time"] and got.dates is None
