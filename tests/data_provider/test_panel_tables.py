"""Long tables: the same series from every kind of file, in blocks of any size; and what is refused."""
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_provider.panel import KNOWN, PanelColumns, PanelTable, Scattered, names_of, panel_columns
from utils.errors import UserError

COLUMNS = PanelColumns("unique_id", "ds", "y")


def ragged(count=9, seed=0):
    """A long table of `count` series of 1 to 12 rows."""
    rng = np.random.default_rng(seed)
    parts = [pd.DataFrame({"unique_id": f"s{i:03d}", "ds": pd.date_range("2024-01-01", periods=rows, freq="h"),
                           "y": rng.normal(size=rows).round(3)})
             for i, rows in enumerate(rng.integers(1, 13, count))]
    return pd.concat(parts, ignore_index=True)


def read(source, block=7, gathered=False):
    """[(id, values, times as text)] of all series, and the shares read."""
    table = PanelTable(source, COLUMNS, block)
    found, shares = [], []
    for rows in table.series(gathered):
        shares.append(rows.read)
        for i, name in enumerate(rows.ids):
            own = slice(rows.starts[i], rows.starts[i + 1])
            found.append((name, list(rows.values[own]), list(table.times.text(rows.ticks[own]))))
    return found, shares


def expected(frame):
    return [(name, list(part.y), [str(time) for time in part.ds]) for name, part in
            frame.sort_values("ds", kind="stable").groupby("unique_id", sort=False)]


def write(frame, kind):
    path = Path(f"panel{kind}")
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("block", [1, 2, 7, 50, 10**6])
@pytest.mark.parametrize("kind", [".csv", ".csv.gz", ".parquet", "frame"])
def test_every_kind_of_table_has_the_same_series(tmp_path, monkeypatch, kind, block):
    monkeypatch.chdir(tmp_path)
    frame = ragged()
    source = frame if kind == "frame" else write(frame, kind)
    found, shares = read(source, block)
    wanted = [(name, values, [time.replace(" 00:00:00", " 00:00:00") for time in times])
              for name, values, times in expected(frame)]
    assert [(name, values) for name, values, _ in found] == [(name, values) for name, values, _ in wanted]
    assert [pd.Timestamp(time) for *_, times in found for time in times] == list(frame.ds)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_series_are_cut_at_the_same_places_in_a_file_and_in_a_frame(tmp_path, monkeypatch):
    """Else a resumed run, or one in Python, would make other batches."""
    monkeypatch.chdir(tmp_path)
    frame = ragged(50)
    counts = [[len(rows.ids) for rows in PanelTable(source, COLUMNS, 40).series()]
              for source in (frame, write(frame, ".csv"), write(frame, ".parquet"))]
    assert len(counts[0]) > 3 and counts[0] == counts[1] == counts[2]


def test_rows_are_put_in_order_of_time_and_counted():
    frame = ragged()
    mixed = frame.sample(frac=1, random_state=1).sort_values("unique_id", kind="stable")
    table = PanelTable(mixed, COLUMNS, 10)
    every = list(table.series())
    assert [rows.values.tolist() for rows in every] == [rows.values.tolist() for rows in
                                                        PanelTable(frame, COLUMNS, 10).series()]
    long = frame.groupby("unique_id").size() > 1
    assert 3 < sum(rows.unsorted for rows in every) <= long.sum()
    assert not sum(rows.unsorted for rows in PanelTable(frame, COLUMNS, 10).series())


@pytest.mark.parametrize("kind", [".csv", "frame"])
@pytest.mark.parametrize("block", [5, 10**6])
def test_scattered_rows_are_gathered(tmp_path, monkeypatch, kind, block):
    monkeypatch.chdir(tmp_path)
    frame = ragged()
    mixed = frame.sample(frac=1, random_state=2)
    order = mixed.unique_id.drop_duplicates()
    source = mixed if kind == "frame" else write(mixed, kind)
    with pytest.raises(Scattered):
        read(source, block)
    found, _ = read(source, block, gathered=True)
    by_name = {name: values for name, values, _ in expected(frame)}
    assert [(name, values) for name, values, _ in found] == [(name, by_name[name]) for name in order]


def test_a_series_that_comes_back_much_later_is_noticed():
    frame = pd.DataFrame({"unique_id": list("aabbccddaa"), "ds": [*range(8), 8, 9], "y": np.arange(10.0)})
    with pytest.raises(Scattered):
        read(frame, 2)
    assert [(name, len(values)) for name, values, _ in read(frame, 2, gathered=True)[0]] == [
        ("a", 4), ("b", 2), ("c", 2), ("d", 2)]


def test_too_many_scattered_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("data_provider.panel.MOST_GATHERED", 20)
    path = write(ragged().sample(frac=1, random_state=2), ".csv")
    with pytest.raises(UserError, match="panel.csv: .* sort the table by unique_id and ds"):
        read(path, 5, gathered=True)


@pytest.mark.parametrize("ids", [[7, 8], ["007", "08"], ["NA", "null"], ["a,b", 'c"d']])
def test_ids_of_a_file_are_its_text(tmp_path, monkeypatch, ids):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({"unique_id": ids, "ds": [1, 2], "y": [1.0, 2.0]})
    assert [name for name, *_ in read(write(frame, ".csv"))[0]] == [str(name) for name in ids]


@pytest.mark.parametrize("dtype", ["int64", "category", "str", "object"])
def test_ids_of_a_frame_keep_their_type(dtype):
    frame = pd.DataFrame({"unique_id": pd.Series([3, 3, 5, 6]).astype("int64"), "ds": [1, 2, 1, 1], "y": [1, 2, 3, 4]})
    frame["unique_id"] = frame["unique_id"].astype(dtype)
    ids = [rows.ids for rows in PanelTable(frame, COLUMNS, 2).series()]
    assert [name for part in ids for name in part.tolist()] == list(frame.unique_id.drop_duplicates())
    assert ids[0].dtype == frame.unique_id.dtype


def test_missing_values_are_kept_as_such(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("panel.csv").write_text("y,unique_id,ds,other\n1,a,1,x\n,a,2,x\nNaN,a,3,x\n-inf,b,1,x\n")
    (_, first, _), (_, second, _) = read(Path("panel.csv"))[0]
    assert first[0] == 1 and np.isnan(first[1:]).all() and second == [-np.inf]


@pytest.mark.parametrize("rows, words", [
    ("a,1,x", "data row 3, column 'y': 'x' is not a number"), (",1,5", "data row 3: unique_id is missing"),
    ("a,,5", "data row 3, column 'ds': missing"), ("a,b,5", "data row 3, column 'ds': 'b', not a time")])
@pytest.mark.parametrize("block", [2, 100])
def test_a_cell_that_cannot_be_used_is_named(tmp_path, monkeypatch, rows, words, block):
    monkeypatch.chdir(tmp_path)
    Path("panel.csv").write_text(f"unique_id,ds,y\na,1,1\na,2,2\n{rows}\n")
    with pytest.raises(UserError) as caught:
        read(Path("panel.csv"), block)
    assert "panel.csv" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize("kind", [".csv", ".csv.gz", ".parquet"])
def test_a_damaged_file_is_refused_in_a_line(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = write(ragged(200), kind)
    whole = path.read_bytes()
    path.write_bytes(b'unique_id,ds,y\n"a,1,1\n' if kind == ".csv" else whole[:-40])
    with pytest.raises(UserError, match="panel.* (cannot be read|missing)"):
        names_of(path)
        read(path)


@pytest.mark.parametrize("content", [b"unique_id,ds,y\na,1,1\n", gzip.compress(b"unique_id,ds,y\n" * 99)[:-30], b""],
                         ids=["text", "cut", "empty"])  # a compressed file holds the time, which no name of a test may
def test_what_is_no_gz_file_is_refused_as_one_before_anything_is_read(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    Path("panel.csv.gz").write_bytes(content)
    with pytest.raises(UserError, match="panel.csv.gz: cannot be read as csv.gz"):
        names_of(Path("panel.csv.gz"))


@pytest.mark.parametrize("index", [["unique_id"], ["ds"], ["unique_id", "ds"], []])
def test_columns_of_a_parquet_file_may_be_the_index_of_a_frame(tmp_path, monkeypatch, index):
    monkeypatch.chdir(tmp_path)
    frame = ragged()[::-1]
    path = write(frame.set_index(index) if index else frame, ".parquet")
    assert sorted(names_of(path)) == ["ds", "unique_id", "y"]  # not the numbers of the rows
    assert [(name, values) for name, values, _ in read(path)[0]] == [
        (name, values) for name, values, _ in expected(frame)]


def test_ids_that_are_lists_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({"unique_id": [["a"], ["a"]], "ds": [1, 2], "y": [1.0, 2.0]})
    for source in (frame, write(frame, ".parquet")):
        with pytest.raises(UserError, match="data row 1: unique_id is .*: name series by text or numbers"):
            read(source)


@pytest.mark.parametrize("block", [2, 100])
def test_ids_that_are_not_utf_8_are_refused_as_they_might_look_alike(tmp_path, monkeypatch, block):
    monkeypatch.chdir(tmp_path)
    Path("panel.csv").write_bytes("unique_id,ds,y,z\na,1,1,\xff\na,2,2,\xff\n\xe9,1,1,\n\xe8,2,2,\n".encode("latin-1"))
    with pytest.raises(UserError, match="data row 3: unique_id .* not UTF-8: save the file in UTF-8"):
        read(Path("panel.csv"), block)


@pytest.mark.parametrize("kind", [".csv", ".csv.gz"])
@pytest.mark.parametrize("row", ["a,1,1,1", "a,1,1,1,1"])
def test_surplus_cells_shift_no_column(tmp_path, monkeypatch, kind, row):
    monkeypatch.chdir(tmp_path)
    text = f"unique_id,ds,y\n{row}\n{row}\n".encode()
    Path(f"panel{kind}").write_bytes(gzip.compress(text) if kind == ".csv.gz" else text)
    with pytest.raises(UserError, match="more cells than the header has names"):
        read(Path(f"panel{kind}"))


def test_a_table_without_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("panel.csv").write_text("unique_id,ds,y\n")
    with pytest.raises(UserError, match="panel.csv: no rows"):
        read(Path("panel.csv"))


# --- which table is long

@pytest.mark.parametrize("names", [*KNOWN, ("x", *KNOWN[0], "z")])
def test_long_tables_are_known_by_their_columns(names):
    assert panel_columns(names) is not None
    assert panel_columns([name for name in names if name not in ("y", "target")]) is None


def test_columns_can_be_named():
    names = ["shop", "when", "sales", "ds"]
    assert panel_columns(names) is None
    assert panel_columns(names, "shop", "when", "sales") == PanelColumns("shop", "when", "sales")
    assert panel_columns(names, "shop", target_col="sales") == PanelColumns("shop", "ds", "sales")
    assert panel_columns(["item_id", "timestamp", "sales"], target_col="sales") == \
        PanelColumns("item_id", "timestamp", "sales")
    with pytest.raises(UserError, match="mine: no column 'store' for `id_col`: name one of 'shop', 'when'"):
        panel_columns(names, "store", "when", "sales", where="mine")
    with pytest.raises(UserError, match="three columns"):
        panel_columns(names, "shop", "when", "shop")


@pytest.mark.parametrize("given", [None, "y"])
def test_a_name_that_two_columns_have_is_refused(given):
    with pytest.raises(UserError, match="mine: two columns are named 'y': rename one"):
        panel_columns(["unique_id", "ds", "y", "y"], target_col=given, where="mine")
    assert panel_columns(["unique_id", "ds", "y", "z", "z"]) == COLUMNS
