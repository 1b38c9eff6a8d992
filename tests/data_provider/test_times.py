"""Times: continued as pandas would have written the longer series, or refused with the row where they go wrong."""
import numpy as np
import pandas as pd
import pytest

from data_provider.frames import from_frame
from data_provider.series import Series
from data_provider.times import continued
from utils.errors import UserError

STEPS = 5


def series(dates, rows=None):
    dates = None if dates is None else pd.Series([str(date) for date in dates])
    return Series(np.zeros((rows or len(dates), 1)), ["a"], dates)


def calendar(dates, rows=None):
    return continued(series(dates, rows), STEPS, "mine.csv")


def refusal(dates):
    with pytest.raises(UserError) as caught:
        calendar(dates)
    message = str(caught.value)
    assert message.startswith("mine.csv") and "\n" not in message
    return message


@pytest.mark.parametrize("zone", [None, "UTC"])
@pytest.mark.parametrize("frequency", ["15min", "h", "2h", "D", "W-SUN", "W-WED", "ME", "MS", "B", "QE", "YE", "2MS",
                                       "36h"])
def test_a_regular_series_goes_on_as_it_is(frequency, zone):
    whole = pd.date_range("2019-12-30", periods=60 + STEPS, freq=frequency, tz=zone)
    got = calendar(whole[:60])
    assert list(got.history) == list(whole[:60]) and list(got.future) == list(whole[60:])
    assert got.frequency == whole.freqstr


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%Y", "%Y%m%d", "%d.%m.%Y", "%Y-%m-%dT00:00:00Z"])
def test_dates_in_any_form_that_is_regular_in_one_reading(form):
    whole = pd.date_range("2020-01-25", periods=30 + STEPS, freq="D")
    got = calendar(whole[:30].strftime(form))
    assert list(got.future.tz_localize(None)) == list(whole[30:])


def test_a_mixture_of_iso_forms_is_one_form():
    dates = ["2020-01-01", "2020-01-01 12:00:00", "2020-01-02", "2020-01-02 12:00"]
    assert str(calendar(dates).future[0]) == "2020-01-03 00:00:00"


def test_years_quarters_and_counters():
    assert list(calendar(range(1990, 2020)).future) == list(range(2020, 2020 + STEPS))
    assert list(calendar(range(0, 300, 10)).future) == [300, 310, 320, 330, 340]
    assert str(calendar(["2020Q1", "2020Q2", "2020Q3", "2020Q4"]).future[0])[:10] == "2021-01-01"


def test_without_dates_rows_are_numbered_from_zero():
    got = calendar(None, rows=7)
    assert list(got.history) == list(range(7)) and list(got.future) == list(range(7, 7 + STEPS))


HOURS = pd.date_range("2020-01-01", periods=100, freq="h")


def test_a_gap_is_named_by_row_and_times_with_the_regular_rest():
    said = refusal(HOURS.delete([40, 41]))
    assert "data row 41 (2020-01-02 18:00:00)" in said and "row 40 (2020-01-02 15:00:00)" in said
    assert "not one step of h" in said and "the last 58 are" in said and "nothing is filled in" in said


@pytest.mark.parametrize("dates, words", [
    (HOURS.insert(7, HOURS[6]), ["data row 8 (2020-01-01 06:00:00)", "row 7 (2020-01-01 06", "repeats", "1 such"]),
    (HOURS[::-1], ["data row 2", "earlier", "99 such"]),
    (["2020-01-01", "2020-01-02", "soon", "2020-01-04"], ["data row 3", "'soon'", "not a time"]),
    (["2020-01-01", "2020-01-02", "nan", "2020-01-04"], ["data row 3", "'nan'", "not a time"]),
    (["10:00:00", "11:00:00", "12:00:00"], ["data row 1", "'10:00:00'", "no date"]),
    (["01/02/2020", "01/03/2020", "01/04/2020"], ["'01/02/2020'", "day first or month first"]),
    (["0", "1", "3", "4"], ["data row 3 (3)", "row 2 (1)", "equal steps"]),
    (["5", "5", "5"], ["data row 2 (5)", "equal steps"]),
    (["2020-01-01", "2020-01-02"], ["2 rows", "3 are needed"]),
])
def test_what_cannot_be_continued_is_refused_and_named(dates, words):
    said = refusal(dates)
    assert not [word for word in words if word not in said], said


def test_a_holiday_is_a_gap_in_business_days():
    days = pd.date_range("2020-01-01", periods=60, freq="B")
    assert f"data row 31 ({days[31]})" in refusal(days.delete(30))


def test_a_day_of_eight_hours_is_not_business_hours_of_pandas():
    hours = pd.date_range("2020-01-06", periods=500, freq="h")
    assert "data row" in refusal(hours[(hours.hour >= 8) & (hours.hour < 16) & (hours.day_of_week < 5)])


# --- time stamps and periods that are already such, and offsets that change

def frame_calendar(times):
    return continued(from_frame(pd.DataFrame({"ds": times, "y": np.arange(float(len(times)))})), STEPS, "mine")


@pytest.mark.parametrize("frequency", ["h", "D", "15min"])
@pytest.mark.parametrize("start", ["2024-03-20", "2024-10-20"])
def test_a_zone_is_kept_across_a_change_of_clocks(frequency, start):
    longer = pd.date_range(start, periods=400, freq=frequency, tz="Europe/Berlin")
    found = frame_calendar(longer[:-STEPS])
    assert found.future.equals(longer[-STEPS:]) and found.history.equals(longer[:-STEPS])
    assert str(found.future.tz) == "Europe/Berlin"


@pytest.mark.parametrize("frequency", ["M", "W", "Q", "h"])
def test_periods_are_continued_as_periods(frequency):
    longer = pd.period_range("2020-01-06", periods=40, freq=frequency)
    found = frame_calendar(longer[:-STEPS])
    assert isinstance(found.future, pd.PeriodIndex) and found.future.equals(longer[-STEPS:])


def test_a_period_that_is_missing_is_named():
    periods = pd.period_range("2020-01", periods=9, freq="M").delete(4)
    with pytest.raises(UserError, match="data row 5 .2020-06. comes after row 4 .2020-04."):
        frame_calendar(periods)


def test_text_with_changing_offsets_is_read_as_instants():
    longer = pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin")
    found = calendar([time.isoformat(sep=" ") for time in longer[:-STEPS]])
    assert found.frequency == "h" and (found.future == longer[-STEPS:]).all() and str(found.future.tz) == "UTC"


@pytest.mark.parametrize("empty", [pd.NaT, None])
def test_an_empty_first_time_is_named(empty):
    times = [empty, *pd.date_range("2020-01-01", periods=8, freq="h")]
    with pytest.raises(UserError, match="data row 1"):
        frame_calendar(pd.Series(times))
    with pytest.raises(UserError, match="data row 1"):
        continued(Series(np.zeros((9, 1)), ["a"], pd.Series([None, *map(str, times[1:])])), STEPS, "mine")


def test_a_date_that_begins_with_the_year_has_one_meaning():
    """Days 1 to 8 could be months to pandas, which then reads 2020-01-02 as the first of February."""
    assert str(calendar(pd.date_range("2020-01-01", periods=8).strftime("%Y-%m-%d")).future[0]) == "2020-01-09 00:00:00"


def test_months_without_a_separator_are_months_once_they_cannot_count():
    months = pd.date_range("2018-01-01", periods=30 + STEPS, freq="MS")
    assert list(calendar(months[:30].strftime("%Y%m")).future) == list(months[30:])
    assert calendar(range(200001, 200013)).future[0] == 200013


def test_a_cell_without_the_offset_that_others_have_is_named():
    times = [time.isoformat() for time in pd.date_range("2024-03-30", periods=60, freq="h", tz="Europe/Berlin")]
    times[50] = times[50][:19]
    assert "data row 51: '2024-04-01T03:00:00' has no offset" in refusal(times)
