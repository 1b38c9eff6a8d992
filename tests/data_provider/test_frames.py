"""What a notebook holds: forecast as what it means, or refused in one line. Every column is a variable, a time, or
named as left out."""
import datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from data_provider.frames import from_frame
from data_provider.times import continued
from utils.errors import UserError

N = 50
HOURS = pd.date_range("2024-03-28", periods=N, freq="h")
Y = np.sin(np.arange(N))
NEXT = pd.Timestamp("2024-03-30 02:00")
BERLIN = HOURS.tz_localize("UTC").tz_convert("Europe/Berlin")


def wide(**columns):
    return pd.DataFrame({"ds": HOURS, "y": Y} | columns)


def long(**columns):
    """Series b and a, in this order; b's values are -Y."""
    parts = [pd.DataFrame({"unique_id": name, "ds": HOURS, "y": sign * Y}) for name, sign in (("b", -1), ("a", 1))]
    return pd.concat(parts, ignore_index=True).assign(**columns)


def cells(values):
    return pd.Series(list(values), dtype=object)


def refusal(df):
    with pytest.raises(UserError) as caught:
        continued(from_frame(df), 3, "the DataFrame")
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400
    return said


def assert_panel(df, notes=()):
    got = from_frame(df)
    assert got.names == ["b", "a"] and got.notes == list(notes)
    np.testing.assert_array_equal(got.values, np.stack([-Y, Y], axis=1))
    assert continued(got, 3, "df").future[0] == NEXT


# --- long frames

@pytest.mark.parametrize("shape", [
    lambda df: df, lambda df: df.set_index(["unique_id", "ds"]), lambda df: df.set_index(["ds", "unique_id"]),
    lambda df: df.set_index("unique_id"), lambda df: df.set_index("ds"), lambda df: df.set_index(["unique_id", "ds"]).y,
    lambda df: df.set_index(["unique_id", "ds"]).y.rename("load"), lambda df: df[["y", "ds", "unique_id"]],
    lambda df: df.sort_values("ds", kind="stable"), lambda df: df.to_dict("list"),
    lambda df: df.astype({"unique_id": "category"}),
    lambda df: df.assign(unique_id=pd.Categorical(df.unique_id, categories=["a", "b", "unused"])),
    lambda df: df.assign(ds=df.ds.astype(str)), lambda df: df.assign(ds=df.ds.astype(str).astype("category")),
    lambda df: df.convert_dtypes(),
])
def test_a_long_frame_is_one_series_a_name_however_it_is_indexed(shape):
    assert_panel(shape(long()))


def test_other_columns_of_a_long_frame_are_named_as_left_out():
    assert_panel(long(price=1.0, no=3), ["left out: 'price', 'no' (of a long table only unique_id, ds and y are used)"])


def test_the_names_of_series_decide_nothing():
    """A series called 'no' that counts is a series."""
    frame = long(unique_id=np.repeat(["no", "hour"], N), y=np.tile(np.arange(N), 2))
    assert from_frame(frame).names == ["no", "hour"] and from_frame(frame).notes == []


def test_rows_of_a_long_frame_are_its_own_in_errors():
    for frame, row in ((long(), 30), (long().sort_values("ds", kind="stable").reset_index(drop=True), 59)):
        assert "data row 61, column 'y'" in refusal(frame.assign(y=frame.y.where(frame.index != 60)))
        assert f"data row {row} (2024-03-29 06:00:00) comes after row" in refusal(frame[frame.ds != HOURS[29]])
        assert "data row 61, column 'y': 'x'" in refusal(frame.assign(y=frame.y.astype(object).where(frame.index != 60,
                                                                                                      "x")))


@pytest.mark.parametrize("df, words", [
    (long().set_index(["unique_id", "ds"]).rename_axis(["k", "t"]), ["`df`", "['k', 't']", "reset_index"]),
    (long().set_index(["unique_id", "ds"]).rename_axis([None, None]), ["`df`", "levels", "unique_id and ds"]),
    (long().set_index(["unique_id", "ds"], drop=False), ["`df`", "'ds' both as index and as column"]),
    (pd.concat({"x": wide()}, axis=1), ["`df`", "columns of 2 levels"]),
    (long().drop(columns="ds"), ["'unique_id', but no 'ds'"]),
    (long().rename(columns={"y": "load"}), ["'unique_id', but no 'y'"]),
    (wide(unique_id=1).drop(columns=["ds", "y"]), ["no 'ds' and no 'y'"]),
    (long().iloc[:-5], ["'a' has 45 of 50 times"]),
    (long(ds=long().ds.where(long().index != 3)), ["data row 4", "ds is missing"]),
    (pd.concat([long(), long().iloc[[4]]], ignore_index=True), ["data row 101", "'b' has two values at 2024-03-28 04"]),
])
def test_a_panel_that_is_not_understood_is_refused(df, words):
    said = refusal(df)
    assert not [word for word in words if word not in said], said


# --- what holds the data

@pytest.mark.parametrize("df, names", [
    (pd.Series(Y), ["y"]), (pd.Series(Y, name="load"), ["load"]), (pd.Series(Y, name=("a", 1)), ["('a', 1)"]),
    (Y, ["var0"]), (np.stack([Y, Y], axis=1), ["var0", "var1"]), (Y.astype(np.float32), ["var0"]),
    ({"a": list(Y), "b": list(Y)}, ["a", "b"]), (pd.DataFrame({0: Y, 1: Y}), ["0", "1"]),
    (pd.DataFrame({"y": Y}, index=range(5, 5 + N)), ["y"]), (wide().iloc[:, 1:], ["y"]),
    (pd.DataFrame({"x": Y}).set_axis(pd.Index([("a", "b")], tupleize_cols=False), axis=1), ["('a', 'b')"]),
    (pd.Series(np.arange(N), name="no"), ["no"]), (pd.DataFrame({"id": np.arange(N)}), ["id"]),  # all that there is
])
def test_columns_without_times_are_variables(df, names):
    got = from_frame(df)
    assert got.names == names and got.dates is None and got.values.dtype == np.float64 and not got.notes
    np.testing.assert_allclose(got.values[:, 0], np.arange(N) if names[0] in ("no", "id") else Y, rtol=1e-7)


@pytest.mark.parametrize("df", [
    wide(), pd.Series(Y, index=HOURS), pd.DataFrame({"y": Y}, index=HOURS.astype(str)),
    pd.DataFrame({"y": Y}, index=pd.Index(HOURS.astype(str), name="date")), {"ds": list(HOURS), "y": list(Y)},
    wide().set_index("ds", drop=False),
    wide().set_index(pd.DatetimeIndex(HOURS)), wide().set_axis(pd.CategoricalIndex(["ds", "y"]), axis=1),
    wide()[["y", "ds"]], pd.DataFrame({"y": Y, "when": HOURS.astype(str)}), wide().iloc[:, ::-1].convert_dtypes(),
])
def test_times_are_found_wherever_they_are(df):
    got = from_frame(df)
    assert got.names == ["y"] and not got.notes and continued(got, 3, "df").future[0] == NEXT


@pytest.mark.parametrize("df, words", [
    (None, ["`df` is None", "give a DataFrame"]), (list(Y), ["`df`", "list"]), ("mine.csv", ["`df`", "str"]),
    (3, ["`df`", "int"]), (np.array(3.0), ["`df`", "shape ()"]), (np.ones((N, 2, 2)), ["`df`", "(50, 2, 2)"]),
    (np.array([1, "a"], dtype=object), ["`df`", "object"]), (Y + 1j, ["`df`", "complex128"]), ({}, ["no rows"]),
    (np.ma.masked_array(Y, mask=np.arange(N) == 3), ["data row 4", "missing"]), (np.ones((0, 3)), ["empty"]),
    (np.zeros(N, dtype=[("a", float)]), ["`df`", "layout"]), ({"a": [1], "b": [1, 2]}, ["`df`", "same length"]),
    (wide().iloc[:0], ["no rows"]), (wide()[[]], ["no rows, or no columns"]),
    (wide().set_axis(["ds", np.nan], axis=1), ["`df`", "column 2 has no name"]),
    (wide().set_axis(["ds", None], axis=1), ["`df`", "column 2 has no name"]),
    (pd.DataFrame({1: Y, "1": Y}), ["two columns are named '1'"]),
    (wide().set_index(pd.Index(HOURS + pd.Timedelta("1D"), name="ds")), ["'ds' both as index and as column", "differ"]),
    (pd.DataFrame(np.ones((3, 10**5)), columns=["a"] * 10**5), ["two columns are named 'a'"]),
    (wide(z="x" * 10**5), ["data row 1", "'xxx", "..."]), (wide(z=HOURS), ["'ds' and 'z' are both time columns"]),
    (wide().rename(columns={"y": "y" * 40_000}).assign(**{"y" * 40_000: np.nan}), ["yyy..."]),
])
def test_what_is_no_series_is_refused(df, words):
    said = refusal(df)
    assert not [word for word in words if word not in said], said


def test_an_index_that_holds_no_times_is_named_as_left_out():
    got = from_frame(pd.DataFrame({"y": Y}, index=pd.Index([f"r{i}" for i in range(N)], name="station")))
    assert got.notes == ["left out: the index 'station', which holds no times"] and got.names == ["y"]


# --- kinds of cells

@pytest.mark.parametrize("column", [
    Y.astype(np.float16), pd.Series(Y, dtype="Float64"), [str(value) for value in Y], cells(Y), cells(map(str, Y)),
    pd.Series([str(value) for value in Y], dtype="string"), pd.arrays.SparseArray(Y), [Decimal(str(v)) for v in Y],
])
def test_numbers_are_numbers_in_every_dtype(column):
    np.testing.assert_allclose(from_frame(wide(z=column)).values[:, 1], Y, atol=1e-3)


@pytest.mark.parametrize("column", [Y > 0, pd.Series(Y > 0, dtype="boolean"), cells(Y > 0), (Y > 0).astype(np.uint8)])
def test_true_and_false_are_one_and_zero(column):
    np.testing.assert_array_equal(from_frame(wide(z=column)).values[:, 1], Y > 0)


@pytest.mark.parametrize("column, words", [
    (Y + 1j, ["complex128"]), (pd.to_timedelta(np.arange(N), unit="h"), ["timedelta64"]), ([b"1"] * N, ["b'1'"]),
    (cells([1.0] * (N - 1) + [b"1"]), ["data row 50", "b'1'"]), (cells([pd.Timedelta(1)] * N), ["Timedelta"]),
    (cells([np.timedelta64(1, "s")] * N), ["timedelta64"]), (cells([1j] * N), ["1j"]), (cells([[1]] * N), ["[1]"]),
    (cells([datetime.date(2020, 1, 1)] * N), ["datetime.date"]), (["NW"] * N, ["'NW'"]),
    (pd.Series([1, 2] * 25).astype("category"), ["category"]), (pd.interval_range(0, N), ["interval"]),
    (pd.Series([1] * (N - 1) + [None], dtype="Int64"), ["data row 50", "missing"]),
    (cells([1.0] * (N - 1) + [pd.NaT]), ["data row 50", "missing"]), (np.r_[np.inf, Y[1:]], ["data row 1", "infinite"]),
])
def test_what_is_no_number_is_refused_by_its_column(column, words):
    said = refusal(wide(z=column))
    assert "column 'z'" in said and not [word for word in words if word not in said], said


@pytest.mark.parametrize("column", [Y + 1j, pd.to_timedelta(np.arange(N), unit="h"), [b"1"] * N, [[1]] * N,
                                    pd.Series([None] * N, dtype="Int64"), pd.Series([1, 2] * 25).astype("category")])
def test_it_is_refused_alone_too(column):
    """Where no column is called a time, all of them are looked at."""
    assert "column 'z'" in refusal(pd.DataFrame({"z": column}))


def test_arrow_backed_columns():
    arrow = pytest.importorskip("pyarrow")
    got = from_frame(wide(ds=BERLIN, flag=Y > 0).convert_dtypes(dtype_backend="pyarrow"))
    assert continued(got, 3, "df").future[0] == NEXT.tz_localize("UTC")
    np.testing.assert_array_equal(got.values, np.stack([Y, Y > 0], axis=1))
    assert_panel(long().convert_dtypes(dtype_backend="pyarrow"))
    assert from_frame(arrow.table({"ds": HOURS, "y": Y})).names == ["y"]
    days = pd.Series([datetime.timedelta(1)] * N, dtype=pd.ArrowDtype(arrow.duration("s")))
    assert "'z': duration" in refusal(wide(z=days))


def test_frames_of_polars():
    polars = pytest.importorskip("polars")
    got = from_frame(polars.DataFrame({"ds": list(HOURS.to_pydatetime()), "y": Y}))
    assert got.names == ["y"] and continued(got, 3, "df").future[0] == NEXT


class Foreign:
    """A frame of another library, whose to_pandas needs a package that is not installed."""

    def to_pandas(self):
        raise ModuleNotFoundError("pyarrow is required")

    def to_dict(self, as_series=True):
        assert not as_series
        return {"ds": list(HOURS.to_pydatetime()), "y": list(Y)}


def test_a_frame_of_another_library_is_converted_or_refused():
    got = from_frame(Foreign())
    assert got.names == ["y"] and continued(got, 3, "df").future[0] == NEXT

    class Broken(Foreign):
        def to_dict(self, as_series=True):
            raise RuntimeError("two\nlines")
    assert "`df` is of type Broken and cannot be made into a DataFrame ('two lines')" in refusal(Broken())


# --- kinds of times

@pytest.mark.parametrize("times, following", [
    (HOURS.as_unit("s"), NEXT), (HOURS.as_unit("ns"), NEXT), (BERLIN.as_unit("s"), NEXT.tz_localize("UTC")),
    (cells(HOURS.values), NEXT), (cells(HOURS.to_pydatetime()), NEXT),
    (cells(time.to_pydatetime() for time in BERLIN), NEXT.tz_localize("UTC")),
    (cells(time.to_pydatetime().astimezone(ZoneInfo("Europe/Berlin")) for time in BERLIN), NEXT.tz_localize("UTC")),
    (cells(datetime.date(2024, 2, 1) + datetime.timedelta(i) for i in range(N)), pd.Timestamp("2024-03-22")),
    (cells(pd.period_range("2020-01-06", periods=N, freq="W")), pd.Period("2020-12-21", "W")),
    (1_700_000_000 + 3600 * np.arange(N), 1_700_180_000), (1_700_000_000 + 3600.0 * np.arange(N), 1_700_180_000),
    ([f"{year}{month:02d}" for year in range(2018, 2023) for month in range(1, 13)][:N], pd.Timestamp("2022-03-01")),
    (pd.period_range("2019-12-30", periods=N, freq="W-WED"), pd.Period("2020-12-10", "W-WED")),
])
def test_times_of_every_kind_are_continued(times, following):
    got = continued(from_frame(wide(ds=times)), 3, "df")
    assert got.future[0] == following and got.history.dtype == got.future.dtype


@pytest.mark.parametrize("times, words", [
    (HOURS.where(np.arange(N) > 0), ["data row 1", "NaT"]), (cells([None, *HOURS[1:]]), ["data row 1"]),
    (cells([None, *map(str, HOURS[1:])]), ["data row 1", "(1 such cells)"]), (cells([None] * N), ["data row 1"]),
    (np.r_[np.nan, np.arange(1.0, N)], ["data row 1", "(1 such cells)"]), (0.5 * np.arange(N), ["data row 1", "'0.0'"]),
    (HOURS[::-1], ["data row 2", "earlier"]), (np.arange(N)[::-1], ["data row 2 (48)", "row 1 (49)"]),
    (cells([HOURS[0].to_pydatetime(), *(t.to_pydatetime() for t in BERLIN[1:])]), ["data row 1", "no offset from UTC"]),
    ([*map(str, HOURS[:-5].tz_localize("UTC").tz_convert("Europe/Paris")), *map(str, HOURS[-5:])],
     ["data row 46", "data row"]),
    ([datetime.time(1)] * N, ["data row 1", "no date"]),
])
def test_times_that_cannot_be_continued_are_refused_by_row(times, words):
    said = refusal(wide(ds=times))
    assert not [word for word in words if word not in said], said


def test_text_dates_with_a_change_of_clocks_need_no_name():
    """Every 50 of them were read to see whether they are dates, and that failed on two offsets."""
    clocks = pd.date_range("2024-03-31", periods=N, freq="h", tz="Europe/Berlin")
    got = continued(from_frame(pd.DataFrame({"when": clocks.map(str), "y": Y})), 3, "df")
    assert got.future[0] == clocks[-1] + pd.Timedelta("1h")
