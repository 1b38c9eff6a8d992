"""Where series stand on their grids, and how they go on: pandas' own offsets are the reference."""
import numpy as np
import pandas as pd
import pytest

from data_provider.panel_clock import TimeColumn
from data_provider.panel_grid import BUSINESS, MONTHS, NONE, OTHER, STEPS, WALL, grids_of
from data_provider.series import Place
from utils.errors import UserError

ROWS, AHEAD = 30, 40
# pandas' frequency, first time, kind of grid
KINDS = [("min", "2024-01-01", STEPS), ("15min", "2024-02-28 23:00", STEPS), ("h", "2024-01-01", STEPS),
         ("6h", "2024-01-01", STEPS), ("D", "2024-02-10", STEPS), ("2D", "2024-02-10", STEPS),
         ("W-SUN", "2024-01-07", STEPS), ("W-WED", "2023-11-01", STEPS), ("MS", "2023-11-01", MONTHS),
         ("ME", "2023-10-31", MONTHS), ("ME", "2024-02-29", MONTHS), ("QE-DEC", "2020-03-31", MONTHS),
         ("QS-NOV", "2020-02-01", MONTHS), ("YE-DEC", "1990-12-31", MONTHS), ("YS-JAN", "1990-01-01", MONTHS),
         ("YE-JUN", "1990-06-30", MONTHS), ("B", "2024-01-03", BUSINESS), ("BME", "2020-01-31", OTHER),
         ("WOM-3FRI", "2020-01-17", OTHER), ("s", "2024-06-30 23:59:40", STEPS)]


def grids(*series, zone=None):
    """The grids of some indexes of one kind."""
    column = TimeColumn("ds", Place("here"))
    ticks = column.read(pd.concat([pd.Series(each) for each in series], ignore_index=True))
    starts = np.concatenate([[0], np.cumsum([len(each) for each in series])])
    return grids_of(ticks, starts, column.clock), column


def after(found, column, steps=AHEAD, number=0):
    return column.index(found.times(np.array([number]), np.arange(1, steps + 1))[0])


def same(index, other):
    assert list(index) == list(other)


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
@pytest.mark.parametrize("frequency, first, kind", KINDS)
def test_a_series_goes_on_as_pandas_does(frequency, first, kind, unit):
    times = pd.date_range(first, periods=ROWS + AHEAD, freq=frequency).as_unit(unit)
    found, column = grids(times[:ROWS])
    assert found.kind[0] == kind and found.holes[0] == 0 and not found.problems
    same(after(found, column), times[ROWS:])
    assert after(found, column).dtype == times.dtype
    back = column.index(found.times(np.array([0]), np.arange(1 - ROWS, 1))[0])
    same(back, times[:ROWS])


@pytest.mark.parametrize("frequency, first, kind", [case for case in KINDS if case[2] != OTHER])
def test_holes_are_places_on_the_same_grid(frequency, first, kind):
    times = pd.date_range(first, periods=ROWS + AHEAD, freq=frequency)
    kept = np.ones(ROWS, dtype=bool)
    kept[[3, 4, 11, 20]] = False
    found, column = grids(times[:ROWS][kept])
    assert found.kind[0] == kind and found.holes[0] == 4
    assert list(found.position) == list(np.flatnonzero(kept))
    same(after(found, column), times[ROWS:])


@pytest.mark.parametrize("frequency, first, kind", [
    ("h", "2024-03-28", STEPS), ("h", "2024-10-25", STEPS), ("15min", "2024-03-30 20:00", STEPS),
    ("D", "2024-03-01", WALL), ("D", "2024-10-01", WALL), ("D", "2024-06-01", WALL), ("W-SUN", "2024-01-07", WALL),
    ("MS", "2023-11-01", MONTHS), ("ME", "2023-10-31", MONTHS), ("B", "2024-03-01", BUSINESS)])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC"])
def test_clocks_of_a_zone_may_change(frequency, first, kind, zone):
    """Hours go on as instants, days by what the clocks show: as pandas does."""
    times = pd.date_range(first, periods=ROWS + AHEAD, freq=frequency, tz=zone)
    found, column = grids(times[:ROWS])
    assert found.kind[0] == kind
    same(after(found, column), times[ROWS:])
    assert after(found, column).dtype == times.dtype
    gapped, column = grids(times[:ROWS].delete([5, 6, 17]))
    assert gapped.holes[0] == 3
    same(after(gapped, column), times[ROWS:])


def test_a_time_that_the_clocks_skip_comes_after_the_gap():
    times = pd.date_range("2024-03-20 02:30", periods=8, freq="D", tz="Europe/Berlin")  # up to the 27th
    found, column = grids(pd.DatetimeIndex([t for t in times if t.day < 30]))
    got = after(found, column, 5)
    assert str(got[3]) == "2024-03-31 03:00:00+02:00" and str(got[4]) == "2024-04-01 02:30:00+02:00"


def test_a_time_that_the_clocks_show_twice_is_the_first():
    times = pd.date_range("2024-10-20 02:30", periods=7, freq="D", tz="Europe/Berlin")  # up to the 26th
    assert str(after(*grids(times), 1)[0]) == "2024-10-27 02:30:00+02:00"


def test_a_week_that_lacks_its_wednesday_is_of_days():
    """As many holes by days as by business days: nothing says that there is no weekend."""
    found, column = grids(pd.DatetimeIndex(["2024-01-01", "2024-01-02", "2024-01-04", "2024-01-05"]).as_unit("us"))
    assert found.kind[0] == STEPS and str(after(found, column, 1)[0].date()) == "2024-01-06"


@pytest.mark.parametrize("first, step", [(0, 1), (1990, 1), (-5, 7), (1700000000, 3600)])
def test_whole_numbers_go_on_in_their_steps(first, step):
    numbers = first + step * np.arange(ROWS + AHEAD)
    found, column = grids(pd.Index(np.delete(numbers[:ROWS], 7)))
    assert found.kind[0] == STEPS and found.holes[0] == 1
    same(after(found, column), numbers[ROWS:])


@pytest.mark.parametrize("frequency", ["M", "Q-DEC", "D", "h", "W-SUN", "Y-DEC"])
def test_periods_go_on(frequency):
    times = pd.period_range("2001-01-01", periods=ROWS + AHEAD, freq=frequency)
    found, column = grids(times[:ROWS].delete(4))
    assert found.holes[0] == 1
    same(after(found, column), times[ROWS:])


def test_series_of_all_kinds_go_on_in_one_call():
    """Each by its own frequency: the same as each in a call of its own."""
    every = [pd.date_range(first, periods=ROWS + AHEAD, freq=frequency).as_unit("us") for frequency, first, _ in KINDS]
    found, column = grids(*(times[:ROWS] for times in every))
    assert list(found.kind) == [kind for *_, kind in KINDS]
    ticks = found.times(np.arange(len(every)), np.arange(1, AHEAD + 1))
    for got, times in zip(ticks, every):
        same(column.index(got), times[ROWS:])
    assert sum(found.frequencies(np.arange(len(KINDS))).values()) == len(KINDS)
    for number in range(len(KINDS)):
        assert list(found.frequencies(np.array([number])).values()) == [1]


@pytest.mark.parametrize("times, words", [
    (["2024-01-01", "2024-01-02", "2024-01-02", "2024-01-03"], "two values at 2024-01-02"),
    (["2024-01-01", "2024-01-02", "2024-01-03 05:00", "2024-01-04"], "irregular: 2024-01-03 05:00:00"),
    (["2024-01-01", "2024-01-02", "2024-02-28"], "irregular"),  # less than half of that grid
])
def test_what_has_no_grid_is_told_why(times, words):
    regular = pd.date_range("2020-01-01", periods=5, freq="D").as_unit("us")
    found, _ = grids(pd.DatetimeIndex(times, dtype="M8[us]"), regular)
    assert found.kind[0] == NONE and words in found.problems[0]
    assert found.kind[1] == STEPS and 1 not in found.problems


def test_a_season_is_a_day_a_week_or_a_year():
    every = {"h": 24, "15min": 96, "D": 7, "B": 5, "W-SUN": 52, "MS": 12, "QE-DEC": 4, "YE-DEC": 1}
    found, _ = grids(*(pd.date_range("2001-01-01", periods=ROWS, freq=frequency).as_unit("us") for frequency in every))
    assert list(found.seasons()) == list(every.values())
    monthly, _ = grids(pd.period_range("2001-01", periods=ROWS, freq="M"))
    numbered, _ = grids(pd.RangeIndex(ROWS))
    assert list(monthly.seasons()) == [12] and list(numbered.seasons()) == [24]


def test_times_past_the_range_of_time_stamps_are_refused():
    found, _ = grids(pd.date_range("2200-01-01", periods=5, freq="YE").as_unit("ns"))
    with pytest.raises(UserError, match="exceed the range of time stamps: lower `horizon`"):
        found.times(np.array([0]), np.arange(1, 200))


# --- reading and writing times

@pytest.mark.parametrize("cells", [
    ["2024-01-31", "2024-02-01"], ["2024-01-31 05:00:00", "2024-02-01 06:30:00"],
    ["2024-01-31T05:00", "2024-02-01T06:30"], ["2024-01-31 05:00:00.250000", "2024-02-01 06:30:00.500000"],
    ["2024-01-31T05:00:00Z", "2024-02-01T06:30:00Z"], ["2024-01-31 05:00:00+01:00", "2024-02-01 06:30:00+01:00"],
    ["2024-01-31 05:00:00-0530", "2024-02-01 06:30:00-0530"], ["2024/01/31", "2024/02/01"], ["20240131", "20240201"],
    ["2024-01", "2024-02"], ["12", "-3"], ["1700000000", "1700003600"]])
def test_text_is_written_as_it_was_read(cells):
    column = TimeColumn("ds", Place("here"))
    ticks = column.read(pd.Series(cells, dtype=str))
    assert list(column.text(ticks)) == cells
    assert list(column.text(column.read(pd.Series(cells, dtype=str), 2))) == cells


def test_dates_that_are_numbers_stay_numbers():
    column = TimeColumn("ds", Place("here"))
    ticks = column.read(pd.Series([20240130, 20240131]))
    assert list(column.index(ticks + 2 * 86400 * 10**6)) == [20240201, 20240202]


def test_offsets_that_change_are_read_as_instants():
    column = TimeColumn("ds", Place("here"))
    ticks = column.read(pd.Series(["2024-03-31 01:00:00+01:00", "2024-03-31 03:00:00+02:00"], dtype=str))
    assert list(np.diff(ticks)) == [3600 * 10**6] and str(column.index(ticks)[0]) == "2024-03-31 00:00:00+00:00"


@pytest.mark.parametrize("cells, words", [
    (["2024-01-01", "soon"], "here, data row 12, column 'ds': 'soon', not a time"), (["2024-01-01", None], "missing"),
    (["1", "one"], "'one'"), (["01/02/2024", "02/03/2024"], "may be day first or month first"),
    (["20240131", "20240132"], None)])
def test_a_cell_that_is_no_time_is_named(cells, words):
    column = TimeColumn("ds", Place("here"))
    if words is None:  # not all are dates: they count
        assert list(column.read(pd.Series(cells, dtype=str))) == [20240131, 20240132]
        return
    with pytest.raises(UserError, match=words):
        column.read(pd.Series(cells, dtype=str), 10)


def test_day_first_is_read_where_it_can_only_be_that():
    column = TimeColumn("ds", Place("here"))
    ticks = column.read(pd.Series(["13.02.2024", "01.03.2024"], dtype=str))
    assert list(column.text(ticks)) == ["2024-02-13", "2024-03-01"]


def test_a_later_block_of_another_kind_is_refused():
    column = TimeColumn("ds", Place("here"))
    column.read(pd.Series(["2024-01-01"], dtype=str))
    for cells in (["5"], ["2024-01-01T00:00:00Z"]):
        with pytest.raises(UserError, match="here, data row 8"):
            column.read(pd.Series(cells, dtype=str), 7)
