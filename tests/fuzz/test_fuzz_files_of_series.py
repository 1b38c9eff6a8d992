"""csv, txt, npz and npy: a consistent series, or one line."""
import io
import zipfile

import numpy as np
import pytest
from fuzz.damage import damaged
from fuzz.endings import ends_well, share
from hypothesis import example, given
from hypothesis import strategies as st

from data_provider.reading import read_series
from data_provider.times import continued

GOOD = ("date,load,temperature\n" + "".join(f"2024-01-01 {hour:02d}:00:00,{hour / 4},{(hour * 7) % 5}\n"
                                            for hour in range(24))).encode()
CELLS = st.sampled_from([
    "", "1", "-2.5", "1e400", "-1e308", "nan", "inf", "NaT", "None", "1,5", "1;5", "0x10", "1_000", "١", "½", "TRUE",
    "2024-01-01", "2024-01-01 01:00:00+02:00", "01/02/2024", "24:00", "20240101", "99999999999999999999", "1\x00", "#",
    '"', '"a', "a\nb", "a", "ä", "\ufeff1", "\u2028", " 3 ", "1e5", "-", "+"]) | st.text(max_size=5)
NAMES = st.sampled_from(["date", "ds", "time", "load", "load", "0", "1", "", " ", "Unnamed: 0", "y", "unique_id", "$x$",
                         "a`b", "\n"]) | st.text(max_size=5)


@st.composite
def tables(draw) -> bytes:
    """Rows of any cells, in any encoding, with any separator and any end of lines."""
    columns = draw(st.integers(1, 4))
    separator = draw(st.sampled_from([",", ",", ",", ";", "\t", " ", "|"]))
    dated = draw(st.booleans())
    rows = []
    for number in range(draw(st.integers(0, 8))):
        width = columns if draw(st.integers(0, 9)) else draw(st.integers(0, 6))
        cells = [draw(CELLS) if not draw(st.integers(0, 5)) else str(number / 2) for _ in range(width)]
        rows.append([f"2024-01-{number + 1:02d}", *cells] if dated and draw(st.integers(0, 9)) else cells)
    header = [*(["date"] if dated else []), *draw(st.lists(NAMES, min_size=columns, max_size=columns))]
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"]))
    text = end.join(separator.join(row) for row in [header, *rows])
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "cp037"])), "replace")


def check(path):
    """Reads the file and continues its times; what comes out must hold together."""
    def read():
        series = read_series(path)
        assert series.values.dtype == np.float64 and series.values.ndim == 2 and np.isfinite(series.values).all()
        assert len(series.names) == series.values.shape[1] > 0 and all(isinstance(name, str) for name in series.names)
        assert series.dates is None or len(series.dates) == len(series.values)
        calendar = continued(series, 3, str(path))
        assert len(calendar.history) == len(series.values) and len(calendar.future) == 3
        return series
    return ends_well(read)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("series")


@share(10)
@given(damaged(GOOD))
@example(b"")
def test_a_damaged_csv(folder, content):
    (folder / "a.csv").write_bytes(content)
    check(folder / "a.csv")


@share(10)
@given(tables())
def test_a_csv_of_anything(folder, content):
    (folder / "a.csv").write_bytes(content)
    check(folder / "a.csv")


@share(4)
@given(damaged(b"1.5 2\n3 4\n5 6\n7 8\n") | damaged(b"1,2\n3,4\n5,6\n") | st.binary(max_size=40))
def test_a_txt(folder, content):
    (folder / "a.txt").write_bytes(content)
    check(folder / "a.txt")


TYPES = ["f8", "f4", "f2", "i8", "u1", "?", "c16", "U3", "S3", "M8[h]", "m8[h]", ">f4", "O", "i4,f4", "V5"]


@st.composite
def arrays(draw) -> np.ndarray:
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    array = np.zeros(shape, dtype=draw(st.sampled_from(TYPES)))
    if array.dtype.kind == "f" and array.size:
        array.flat[0] = draw(st.sampled_from([0, 1, np.nan, np.inf, -6e4]))
    return array


def saved(array, npz: bool, name: str = "data") -> bytes:
    written = io.BytesIO()
    np.savez(written, **{name: array}) if npz else np.save(written, array)
    return written.getvalue()


@share(5)
@given(arrays(), st.booleans(), st.sampled_from(["data", "data", "x", "ä"]), st.data())
def test_an_array(folder, array, npz, name, data):
    content = saved(array, npz, name)
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    path = folder / ("a.npz" if npz else "a.npy")
    path.write_bytes(content)
    check(path)


@pytest.mark.parametrize("shape", ["(999999999999, 9)", "(2, -3)", "(9, 9, 9, 9)", "()", "('a', 2)"])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_an_array_whose_header_lies(folder, shape, kind):
    content = saved(np.zeros((3, 2)), npz=False)
    at = content.index(b"(3, 2), }")
    end = content.index(b"\n")
    content = content[:at] + f"{shape}, }}".encode().ljust(end - at) + content[end:]
    path = folder / f"lies.{kind}"
    if kind == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.npy", content)
    else:
        path.write_bytes(content)
    assert check(path) is None
