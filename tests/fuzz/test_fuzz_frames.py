"""DataFrames, horizons and levels: a whole forecast, or one line."""
import datetime
import decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from fuzz.endings import ends_well, share
from helpers import save_pair
from hypothesis import given
from hypothesis import strategies as st

from exp.predict import Forecaster

ROWS = 40
VALUES = np.sin(np.arange(ROWS))
TIMES = pd.date_range("2024-01-01", periods=ROWS, freq="h")
CELLS = [None, np.nan, pd.NA, pd.NaT, "1", "x", "", True, 1, 2.5, 1e308, 10**400, np.inf, 1 + 2j, b"1", [1], {}, (1, 2),
         decimal.Decimal("1.5"), datetime.date(2024, 1, 1), pd.Timestamp("2024-01-01"), pd.Timedelta("1h"), object()]


def of_type(kind: str) -> pd.Series:
    """ROWS values of a kind that pandas has."""
    numbers = pd.Series(VALUES)
    makers = {
        "f4": lambda: numbers.astype("f4"), "f2": lambda: numbers.astype("f2"), "int": lambda: pd.Series(range(ROWS)),
        "bool": lambda: numbers > 0, "Int64": lambda: pd.Series(range(ROWS), dtype="Int64"),
        "Float64": lambda: numbers.astype("Float64"), "boolean": lambda: (numbers > 0).astype("boolean"),
        "string": lambda: numbers.astype("string"), "text": lambda: pd.Series(["x"] * ROWS),
        "object": lambda: numbers.astype(object), "complex": lambda: numbers + 1j,
        "timedelta": lambda: pd.Series(pd.timedelta_range("1h", periods=ROWS)), "category": lambda: pd.Series(
            list("abcd") * (ROWS // 4), dtype="category"), "number category": lambda: numbers.astype("category"),
        "sparse": lambda: numbers.astype(pd.SparseDtype("float")), "times": lambda: pd.Series(TIMES),
        "zoned": lambda: pd.Series(TIMES.tz_localize("Europe/Berlin")), "period": lambda: pd.Series(
            pd.period_range("2024-01", periods=ROWS, freq="M")), "bytes": lambda: pd.Series([b"1"] * ROWS),
        "interval": lambda: pd.Series(pd.interval_range(0, ROWS)), "constant": lambda: pd.Series([3.0] * ROWS),
        "huge": lambda: numbers * 1e300, "tiny": lambda: numbers * 1e-300, "lists": lambda: pd.Series([[1]] * ROWS),
        "missing": lambda: pd.Series([np.nan] * ROWS), "decimal": lambda: pd.Series([decimal.Decimal(1)] * ROWS)}
    return makers[kind]()


KINDS = ["f4", "f2", "int", "bool", "Int64", "Float64", "boolean", "string", "text", "object", "complex", "timedelta",
         "category", "number category", "sparse", "times", "zoned", "period", "bytes", "interval", "constant", "huge",
         "tiny", "lists", "missing", "decimal"]
NAMES = st.sampled_from(["a", "b", "ds", "date", "y", "unique_id", "", 0, 1, 2.5, None, np.nan, ("a", "b"), True, "ä$`",
                         pd.Timestamp("2024-01-01"), "x" * 500]) | st.text(max_size=4)
INDEXES = {
    "rows": lambda: pd.RangeIndex(ROWS), "times": lambda: TIMES, "named": lambda: TIMES.rename("ds"),
    "zoned": lambda: TIMES.tz_localize("UTC"), "summer": lambda: pd.date_range(
        "2024-03-30", periods=ROWS, freq="h", tz="Europe/Berlin"), "months": lambda: pd.period_range(
            "2020-01", periods=ROWS, freq="M"), "weeks": lambda: pd.period_range("2020-01-06", periods=ROWS, freq="W"),
    "backwards": lambda: TIMES[::-1], "twice": lambda: TIMES[[0] * ROWS], "gap": lambda: TIMES.delete(5).append(
        TIMES[-1:] + pd.Timedelta("1h")), "NaT": lambda: pd.DatetimeIndex([pd.NaT, *TIMES[1:]]),
    "text": lambda: pd.Index([str(time) for time in TIMES], name="ds"),
    "two levels": lambda: pd.MultiIndex.from_product([["a", "b"], range(ROWS // 2)], names=["unique_id", "ds"]),
    "odd": lambda: pd.Index(range(1, 2 * ROWS, 2)),
    "spans": lambda: pd.timedelta_range("0h", periods=ROWS, freq="h"), "late": lambda: pd.date_range(
        "2262-04-09", periods=ROWS, freq="h"), "nano": lambda: pd.date_range("2024", periods=ROWS, freq="ns")}


@st.composite
def frames(draw) -> pd.DataFrame:
    """One to three columns of any kind and name, any index, some odd cells, too few rows or none."""
    columns = [of_type(draw(st.sampled_from(KINDS) | st.just("f4"))) for _ in range(draw(st.integers(1, 3)))]
    frame = pd.concat(columns, axis=1, ignore_index=True)
    frame.columns = pd.Index([draw(NAMES) if draw(st.integers(0, 2)) == 0 else f"v{i}" for i in range(len(columns))],
                             dtype=object, tupleize_cols=False)
    frame.index = INDEXES[draw(st.sampled_from(sorted(INDEXES)) | st.just("rows"))]()
    if draw(st.integers(0, 3)) == 0:
        row, cell = draw(st.integers(0, ROWS - 1)), draw(st.sampled_from(CELLS))
        values = frame.iloc[:, 0].astype(object).tolist()
        values[row] = cell
        rest = frame.iloc[:, 1:]
        first = pd.DataFrame({"": pd.Series(values, index=frame.index, dtype=object)}, index=frame.index)
        first.columns = frame.columns[:1]
        frame = pd.concat([first, rest], axis=1)
    if draw(st.integers(0, 5)) == 0:
        frame = frame.iloc[:draw(st.integers(0, ROWS))]
    return frame


@st.composite
def long_frames(draw) -> pd.DataFrame:
    """unique_id, ds and y of one or two series, with cells that do not belong there."""
    ids = draw(st.sampled_from([["a"], ["a", "b"], [1, 2], ["a", None], [1, "a"], [True, 2.5], [("a",), "b"]]))
    frame = pd.DataFrame({"unique_id": pd.Series([name for name in ids for _ in range(ROWS)], dtype=object),
                          "ds": list(draw(st.sampled_from([TIMES, TIMES.tz_localize("UTC"), range(ROWS),
                                                           [str(t) for t in TIMES]]))) * len(ids),
                          "y": np.tile(VALUES, len(ids))})
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(["unique_id", "ds", "y"]))
        column = frame[name].astype(object).tolist()
        column[draw(st.integers(0, len(frame) - 1))] = draw(st.sampled_from(CELLS))
        frame[name] = pd.Series(column, dtype=object)
    return frame.sample(frac=draw(st.sampled_from([1.0, 0.99])), random_state=0) if draw(st.booleans()) else frame


@pytest.fixture(scope="module")
def forecasters(tmp_path_factory):
    """A target alone, and one with its draft and sampled paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("frames"))
        save_pair()
        return [Forecaster.load("given/target", context=24, quiet=True),
                Forecaster.load("given/target", "given/draft", context=24, quiet=True)]


def check(forecaster, frame, horizon=5, **keywords):
    def predict():
        out = forecaster.predict(frame, horizon, **keywords)
        assert len(out) % horizon == 0 and len(out) > 0
        assert np.isfinite(out.drop(columns=["unique_id", "ds"]).to_numpy(float)).all()
        assert not out["ds"].isna().any()
    ends_well(predict)


@share(14)
@given(frames())
def test_a_wide_frame(forecasters, frame):
    check(forecasters[0], frame)


@share(5)
@given(long_frames())
def test_a_long_frame(forecasters, frame):
    check(forecasters[0], frame)


def long(**changes):
    return pd.DataFrame({"unique_id": ["a"] * ROWS, "ds": TIMES, "y": VALUES} | changes)


def titled(*names):
    frame = pd.DataFrame(np.stack([VALUES] * len(names), axis=1))
    return frame.set_axis(pd.Index(names, dtype=object, tupleize_cols=False), axis=1)


FOUND = {
    "a list among the names of series": lambda: long(unique_id=[["a"]] + ["a"] * (ROWS - 1)),
    "a dictionary among the times": lambda: long(ds=[{}, *TIMES[1:]]),
    "a whole number beyond all floats": lambda: pd.DataFrame({"a": pd.Series([10**400] + ["1"] * (ROWS - 1))}),
    "a fraction beyond all floats": lambda: pd.DataFrame({"a": pd.Series([Fraction(10**400)] + ["1"] * (ROWS - 1))}),
    "a column without a name": lambda: titled("v0", "v1", None),
    "columns named None and NaN": lambda: titled(np.nan, None).set_index(TIMES),
    "ds as column and as index": lambda: pd.DataFrame({"ds": VALUES}, index=TIMES)}


@pytest.mark.parametrize("made", FOUND.values(), ids=FOUND.keys())
def test_frames_that_ended_in_an_exception(forecasters, made):
    check(forecasters[0], made())


PLAIN = pd.DataFrame({"a": VALUES, "b": VALUES + 1})
HORIZONS = st.sampled_from([0, 1, 5, 12, 13, 40, -1, 2**70, True, np.int64(3), np.float32(3), 2.0, "3", None, [3]])
LEVELS = st.sampled_from([0, 0.1, 0.5, 0.9, 1, -1, float("nan"), True, np.float32(0.3), 1e-9, None,
                          "0.5"])


def from_nowhere(context, horizon):
    """A sampler: paths that stay where the context ends."""
    return context[:, None, -1:].expand(-1, 3, horizon, -1).clone()


@share(4)
@given(st.integers(0, 1), HORIZONS,
       st.none() | st.lists(LEVELS, max_size=3))
def test_a_horizon_and_levels(forecasters, which, horizon, levels):
    keywords = {} if levels is None else {"levels": tuple(levels), "sampler": from_nowhere}
    out = ends_well(lambda: forecasters[which].predict(PLAIN, horizon, **keywords))
    assert out is None or len(out) == 2 * horizon


@pytest.mark.parametrize("horizon", [2.0, 2.5, "3", None, float("nan"), float("inf"), [3], b"3"], ids=repr)
def test_horizons_that_ended_in_an_exception(forecasters, horizon):
    ends_well(lambda: forecasters[0].predict(PLAIN, horizon))


@pytest.mark.parametrize("levels", [(), (None,), ("0.5",), None, 0.5], ids=repr)
def test_levels_that_ended_in_an_exception(forecasters, levels):
    ends_well(lambda: forecasters[0].predict(PLAIN, 3, sampler=from_nowhere, levels=levels))
