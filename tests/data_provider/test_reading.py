"""Reading: what users have in their files is read as it is, or refused with a line that leads to the cell."""
import numpy as np
import pandas as pd
import pytest

from data_provider.frames import from_frame
from data_provider.reading import read_series
from utils.errors import UserError

VALUES = np.array([[1.5, -2.0, 3.25], [4.0, 5.5, -6.125], [7.0, 0.0, 9.75]])
# Max Planck's weather file as it is passed around: CRLF, a header that lost its degree signs and superscripts,
# the sensor's error code -9999 and a clock change
WEATHER = ("date,p (mbar),PAR (\ufffdmol/m\ufffd/s),OT\r\n"
           "2020-01-01 00:10:00,1008.89,-9999.0,0.5\r\n"
           "2020-01-01 00:20:00,1008.76,0.0,-9999\r\n"
           "2020-01-01 00:20:00,1008.66,1.25,0.75\r\n")


def in_every_format(folder):
    """The same numbers as csv, txt (both separators), npz and npy (also with PEMS' third axis)."""
    frame = pd.DataFrame(VALUES, columns=["a", "b", "c"])
    frame.to_csv(folder / "plain.csv", index=False)
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=3, freq="h"))
    frame.to_csv(folder / "dated.csv", index=False)
    np.savetxt(folder / "comma.txt", VALUES, delimiter=",")
    np.savetxt(folder / "space.txt", VALUES)
    np.savez(folder / "two.npz", data=VALUES)
    np.savez(folder / "pems.npz", data=np.stack([VALUES, VALUES + 100], axis=2))
    np.save(folder / "two.npy", VALUES)
    return sorted(folder.iterdir())


def message(path):
    with pytest.raises(UserError) as caught:
        read_series(path)
    return str(caught.value)


def test_csv_txt_npz_and_npy_of_the_same_numbers_read_the_same(tmp_path):
    paths = in_every_format(tmp_path)
    assert len(paths) == 7
    for path in paths:
        series = read_series(path)
        np.testing.assert_array_equal(series.values, VALUES, err_msg=path.name)
        assert series.values.dtype == np.float64
        assert len(series.names) == 3


def test_a_csv_keeps_names_and_dates_others_number_theirs(tmp_path):
    in_every_format(tmp_path)
    dated, bare = read_series(tmp_path / "dated.csv"), read_series(tmp_path / "two.npy")
    assert dated.names == ["a", "b", "c"]
    assert list(dated.dates)[0].startswith("2020-01-01")
    assert bare.names == ["var0", "var1", "var2"] and bare.dates is None
    assert read_series(tmp_path / "plain.csv").dates is None


def test_a_one_dimensional_array_is_one_variable(tmp_path):
    np.save(tmp_path / "one.npy", np.arange(5))
    assert read_series(tmp_path / "one.npy").values.shape == (5, 1)


def test_a_weather_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "weather.csv"
    path.write_bytes(WEATHER.encode())
    series = read_series(path)
    np.testing.assert_array_equal(series.values, [[1008.89, -9999, 0.5], [1008.76, 0, -9999], [1008.66, 1.25, 0.75]])
    assert series.names == ["p (mbar)", "PAR (\ufffdmol/m\ufffd/s)", "OT"]
    assert series.dates[1] == series.dates[2] == "2020-01-01 00:20:00"  # nothing is merged or dropped


def test_a_header_in_another_encoding_does_not_stop_the_reading(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("date,T (°C)\n2020-01-01,1.0\n2020-01-02,2.0\n".encode("latin-1"))
    series = read_series(path)
    np.testing.assert_array_equal(series.values, [[1.0], [2.0]])
    assert series.names[0].startswith("T (") and series.names[0].endswith("C)")


def test_columns_named_by_numbers_as_in_electricity_are_names(tmp_path):
    path = tmp_path / "electricity.csv"
    path.write_text("date,0,1,OT\n2016-07-01 02:00:00,14,69,5\n2016-07-01 03:00:00,18,92,6\n")
    assert read_series(path).names == ["0", "1", "OT"]


@pytest.mark.parametrize("header", ["0,1", "date,0,1", "0,1,2"])
def test_columns_that_pandas_has_numbered_keep_their_numbers(tmp_path, header):
    dated = "2016-07-01," if header.count(",") == 2 else ""
    (tmp_path / "numbered.csv").write_text(f"{header}\n{dated}14,69\n{dated}18,92\n")
    np.testing.assert_array_equal(read_series(tmp_path / "numbered.csv").values, [[14, 69], [18, 92]])


def test_the_ending_of_a_file_may_be_in_capitals(tmp_path):
    (tmp_path / "DATA.CSV").write_text("a,b\n1,2\n")
    np.testing.assert_array_equal(read_series(tmp_path / "DATA.CSV").values, [[1, 2]])


def test_a_comma_at_the_end_of_every_row_is_no_column(tmp_path):
    (tmp_path / "comma.csv").write_text("a,b\n1,2,\n3,4,\n")
    np.testing.assert_array_equal(read_series(tmp_path / "comma.csv").values, [[1, 2], [3, 4]])


def test_dates_are_recognised_under_any_column_name(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("when,x\n2016-07-01 02:00,1\n2016-07-01 03:00,2\n")
    assert read_series(path).names == ["x"]


def test_text_in_a_numeric_cell_is_named_by_file_line_and_column(tmp_path):
    path = tmp_path / "typo.csv"
    path.write_text("date,a,b\n2020-01-01,1,2\n2020-01-02,3,4,\n2020-01-03,5,6o\n".replace("4,\n", "4\n"))
    said = message(path)
    assert "typo.csv" in said and "line 4" in said and "'b'" in said and "6o" in said


def test_the_line_of_a_bad_cell_counts_blank_lines_too(tmp_path):
    # an editor that jumps to the named line must land on the bad cell
    path = tmp_path / "blank.csv"
    path.write_text("date,a\n2020-01-01,1\n\n2020-01-02,oops\n")
    assert "line 4" in message(path)


def test_a_gap_is_named_with_its_row_column_and_length(tmp_path):
    path = tmp_path / "gap.csv"
    path.write_text("date,a,b\nd1,1,2\nd2,3,\nd3,5,NaN\nd4,7,\nd5,9,10\nd6,9,\n")
    said = message(path)
    assert "gap.csv" in said and "row 2" in said and "'b'" in said and "run of 3" in said and "4 such cells" in said


def test_a_gap_up_to_the_end_of_the_file_has_its_full_length(tmp_path):
    path = tmp_path / "tail.npy"
    np.save(path, np.array([1.0, 2.0, np.nan, np.nan]))
    assert "row 3" in message(path) and "run of 2" in message(path)


@pytest.mark.parametrize("name, content, words", [
    ("absent.csv", None, ["absent.csv", "does not exist", "data_provider.download"]),
    ("data.feather", b"PAR1", ["data.feather", ".parquet", ".csv"]),
    ("dates.csv", b"date\n2020-01-01\n2020-01-02\n", ["dates.csv", "no numeric column"]),
    ("header.csv", b"date,a\n", ["header.csv", "no rows"]),
    ("nothing.csv", b"", ["nothing.csv", "cannot be read"]),
    ("headless.csv", b"1.5,2.5\n3.5,4.5\n", ["headless.csv", "header"]),
    ("headless_int.csv", b"1,2\n3,4\n", ["headless_int.csv", "'1'", "header"]),
    ("headless_twice.csv", b"1.5,1.5\n3.5,4.5\n", ["headless_twice.csv", "header"]),
    ("headless_one.csv", b"1.5\n3.5\n", ["headless_one.csv", "header"]),
    ("headless_dated.csv", b"2020-01-01,7,-1e3\n2020-01-02,1,2\n", ["headless_dated.csv", "'7'", "header"]),
    ("more_cells.csv", b"date,a,b\n2020,1,2,3\n2021,4,5,6\n", ["more_cells.csv", "more cells", "(3)", "commas"]),
    ("one_longer_row.csv", b"a,b\n1,2\n3,4,5\n", ["one_longer_row.csv", "line 3", "commas", "UTF-8"]),
    ("semicolon.csv", b"date;a\n2020;1.5\n", ["semicolon.csv", "'date;a'", "commas"]),
    ("decimal_comma.csv", b"date;a;b\n2020;1,5;2,5\n", ["decimal_comma.csv", "'date;a;b'", "commas", "point"]),
    ("tabs.csv", b"date\ta\n2020\t1.5\n", ["tabs.csv", "commas"]),
    ("long_cell.csv", b"a,b\n1," + b"x" * 10**5 + b"\n", ["long_cell.csv", "line 2", "xxx..."]),
    ("long_cell.txt", b"1 2\n3 " + b"x" * 10**5 + b"\n", ["long_cell.txt", "line 2", "xxx..."]),
    ("typo.txt", b"1 2\n3 x4\n", ["typo.txt", "line 2", "column 2", "x4"]),
    ("ragged.txt", b"1 2\n3\n", ["ragged.txt", "line 2", "1 cells", "2"]),
    ("empty.txt", b"\n", ["empty.txt", "empty"]),
    ("cut.npz", b"PK\x03\x04half", ["cut.npz", "damaged"]),
    ("cut.npy", b"\x93NUMPY", ["cut.npy", "damaged"]),
])
def test_an_unusable_file_is_refused_with_a_reason(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = message(tmp_path / name)
    assert "\n" not in said and len(said) < 300 + len(str(tmp_path))
    for word in words:
        assert word in said


def test_an_array_that_needs_a_pickle_is_refused(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([[1, "a"]], dtype=object))
    assert "objects.npy" in message(tmp_path / "objects.npy")


@pytest.mark.parametrize("array, word", [
    (np.ones((4, 2), dtype=np.complex64), "complex64"), (np.ones((4, 2), dtype=bool), "bool"),
    (np.ones((4, 2), dtype="m8[s]"), "timedelta64"), (np.ones((0, 2)), "empty"), (np.ones((4, 0)), "empty"),
    (np.ones((4, 2, 0)), "empty"),
])
def test_an_array_without_real_numbers_is_refused(tmp_path, array, word):
    np.save(tmp_path / "odd.npy", array)
    assert "odd.npy" in message(tmp_path / "odd.npy") and word in message(tmp_path / "odd.npy")


def test_an_npz_without_the_array_data_tells_what_it_found(tmp_path):
    np.savez(tmp_path / "other.npz", values=VALUES)
    assert "values" in message(tmp_path / "other.npz")


# --- long tables, and what a file shares with a frame

HOURS = pd.date_range("2020-01-01", periods=20, freq="h")


def long(lengths):
    return pd.concat([pd.DataFrame({"unique_id": name, "ds": HOURS[:length], "y": np.arange(length) + 100.0 * i})
                      for i, (name, length) in enumerate(lengths.items())])


def test_a_long_table_is_one_series_a_name(tmp_path):
    long({"b": 20, "a": 20}).assign(price=1).to_csv(tmp_path / "long.csv", index=False)
    got = read_series(tmp_path / "long.csv")
    np.testing.assert_array_equal(got.values, np.arange(20)[:, None] + [0, 100])
    assert got.names == ["b", "a"] and got.notes == ["left out: 'price' (of a long table only unique_id, ds and y are "
                                                     "used)"]
    assert list(got.dates) == list(map(str, HOURS))


def test_a_ragged_long_table_names_the_short_series(tmp_path):
    long({"a": 20, "b": 15}).to_csv(tmp_path / "long.csv", index=False)
    assert "'b' has 15 of 20 times" in message(tmp_path / "long.csv")


@pytest.mark.parametrize("spoil, words", [
    (lambda frame: frame.assign(y=frame.y.where(frame.y != 103)), ["data row 24 (line 25), column 'y'", "missing"]),
    (lambda frame: frame.assign(y=frame.y.astype(object).where(frame.y != 103, "x")), ["data row 24 (line 25)", "'x'"]),
    (lambda frame: frame.drop(columns="ds"), ["'unique_id', but no 'ds'"]),
])
def test_rows_of_a_long_table_are_those_of_the_file(tmp_path, spoil, words):
    spoil(long({"a": 20, "b": 20})).to_csv(tmp_path / "long.csv", index=False)
    said = message(tmp_path / "long.csv")
    assert not [word for word in words if word not in said], said


def test_rows_are_counted_alike_in_every_kind_of_file_and_in_a_frame(tmp_path):
    values = np.where(np.arange(9) == 4, np.nan, np.arange(9.0))
    frame = pd.DataFrame({"y": values})
    frame.to_csv(tmp_path / "a.csv", index=False, na_rep="nan")
    np.save(tmp_path / "a.npy", values)
    np.savetxt(tmp_path / "a.txt", values)
    for path in ("a.csv", "a.npy", "a.txt"):
        assert "data row 5" in message(tmp_path / path)
    with pytest.raises(UserError, match="data row 5"):
        from_frame(frame)
    frame.astype(object).where(frame.notna(), "x").to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "a.txt").write_text("1\n\n2\n3\n4\nx\n")
    assert "data row 5 (line 6)" in message(tmp_path / "a.csv") and "data row 5 (line 6)" in message(tmp_path / "a.txt")


def test_equal_names_are_refused_before_pandas_spends_minutes_on_them(tmp_path):
    (tmp_path / "equal.csv").write_text(",".join(["a"] * 10**5) + "\n" + ",".join(["1"] * 10**5) + "\n")
    assert "two columns are named 'a'" in message(tmp_path / "equal.csv")


def test_a_file_of_dates_last_is_read_as_a_frame_is(tmp_path):
    pd.DataFrame({"y": np.arange(20), "when": HOURS}).to_csv(tmp_path / "last.csv", index=False)
    assert read_series(tmp_path / "last.csv").names == ["y"]


def test_memory_lies_as_it_always_did(tmp_path):
    """Sums, and with them the scale of a training, depend on it to the last bit."""
    in_every_format(tmp_path)
    assert all(read_series(path).values.flags.c_contiguous for path in tmp_path.glob("*.csv"))
