"""Pools: several files, each series with the splits and the scale of its own file, in memory or on disk."""
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_provider import tables
from data_provider.data_factory import evenly_spaced, spread_windows
from data_provider.data_loader import MultivariateDatasetBenchmark, UnivariateDatasetBenchmark
from data_provider.files import data_files
from data_provider.splits import Cut, Rows
from data_provider.times import season_of
from utils.errors import UserError

CONTEXT, PATCH, HORIZON = 24, 8, 20
SHAPES = {"a.csv": (300, 3), "b.npy": (520, 2), "c.npy": (410,), "d.csv": (330, 1)}


def values_of(name):
    seed = list(SHAPES).index(name)
    return np.random.default_rng(seed).normal(seed, 1 + seed, size=SHAPES[name]).cumsum(axis=0).round(3)


@pytest.fixture
def folder(tmp_path):
    for name in SHAPES:
        values = values_of(name)
        if name.endswith(".npy"):
            np.save(tmp_path / name, values.astype(np.float32))
        else:
            frame = pd.DataFrame(values, columns=[f"v{i}" for i in range(values.shape[1])])
            frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(values), freq="15min"))
            frame.to_csv(tmp_path / name, index=False)
    return tmp_path


ALL = ",".join(SHAPES)


def pool(folder, split="test", data_path=ALL, **changes):
    return UnivariateDatasetBenchmark(data_files(str(folder), data_path),
                                      Cut(split, CONTEXT, PATCH, HORIZON, **changes))


def by_hand(split):
    """(x, y) of all windows of all series, one at a time."""
    pairs = []
    for name in SHAPES:
        values = values_of(name).astype(np.float32 if name.endswith("npy") else np.float64).astype(np.float64)
        values = values[:, None] if values.ndim == 1 else values
        train, test = int(len(values) * 0.7), int(len(values) * 0.2)
        scaled = (values - values[:train].mean(axis=0)) / values[:train].std(axis=0)
        first, last = {"train": (0, train), "val": (train - CONTEXT, len(values) - test),
                       "test": (len(values) - test - CONTEXT, len(values))}[split]
        ahead = HORIZON if split == "test" else PATCH
        for column in scaled.T:
            for start in range(first, last - CONTEXT - ahead + 1):
                y = start + (CONTEXT if split == "test" else PATCH)
                pairs.append((column[start:start + CONTEXT], column[y:start + CONTEXT + ahead]))
    return pairs


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_items_of_a_pool_are_the_windows_of_its_series(folder, split):
    dataset, expected = pool(folder, split), by_hand(split)
    assert len(dataset) == len(expected) and dataset.n_series == 7 and dataset.variables == 1
    order = np.random.default_rng(0).permutation(len(expected))
    x, y = dataset.__getitems__(order.tolist())
    np.testing.assert_allclose(x[..., 0], np.stack([expected[i][0] for i in order]), atol=1e-5)
    np.testing.assert_allclose(y[..., 0], np.stack([expected[i][1] for i in order]), atol=1e-5)


def test_a_pool_of_one_file_is_that_file(folder):
    alone, among = pool(folder, data_path="b.npy"), pool(folder)
    first = int(among.first_items[3])  # after the three of a.csv
    assert alone.labels == [("b.npy", "var0"), ("b.npy", "var1")]
    assert [label for label in among.labels if label[0] == "b.npy"] == alone.labels
    x, y = among.__getitems__(list(range(first, first + len(alone))))
    assert all(map(torch.equal, (x, y), alone.__getitems__(list(range(len(alone))))))


def test_series_are_numbered_in_order(folder):
    dataset = pool(folder)
    assert dataset.counts.tolist() == [60 - 19] * 3 + [104 - 19] * 2 + [82 - 19] + [66 - 19]
    numbers = [number for number, count in enumerate(dataset.counts.tolist()) for _ in range(count)]
    assert dataset.series_of(torch.arange(len(dataset))).tolist() == numbers
    assert dataset.first_items.tolist() == [numbers.index(number) for number in range(7)]


def test_a_spread_takes_all_windows_of_a_shorter_series(folder):
    dataset = pool(folder)
    items = torch.tensor(spread_windows(dataset, 50))
    assert torch.bincount(dataset.series_of(items)).tolist() == [41] * 3 + [50] * 3 + [47]
    assert set(dataset.first_items.tolist()) < set(items.tolist())
    with pytest.raises(UserError, match="`val_windows` 86: the test part has 85 windows"):
        spread_windows(dataset, 86, "val_windows")


def test_few_shot_windows_are_spread_over_every_series(folder):
    few, every = pool(folder, "train", subset_ratio=0.1), pool(folder, "train")
    assert few.counts.tolist() == [-(-count // 10) for count in every.counts.tolist()]
    last = int(few.first_items[1]) - 1
    assert torch.equal(few[last][0], every[10 * last][0])


@pytest.mark.parametrize("ratio", [0.07, 0.01, 0.14, 0.29, 0.56, 0.57, 1.0])
def test_few_shot_windows_lie_within_the_split(ratio):
    cut = Cut("train", CONTEXT, PATCH, subset_ratio=ratio)
    for every in range(1, 700):
        places = cut.place(torch.arange(cut.windows(Rows(every, 0, every + cut.span - 1))))
        assert 0 == places[0] <= places[-1] < every and (places.diff() > 0).all(), every


def test_windows_are_spread_over_series_longer_than_single_precision_counts():
    size = 2**26 + 2
    assert evenly_spaced(3, size).tolist() == [0, 2**25, size - 1]
    assert evenly_spaced(3, 2**24).tolist() == [0, 2**23 - 1, 2**24 - 1]


def test_blocks_do_not_change_statistics_and_errors_of_a_file_on_disk(folder, monkeypatch):
    whole = pool(folder)
    for cached in (tables._statistics, tables._naive_error_sums):
        cached.cache_clear()
    monkeypatch.setattr(tables, "BLOCK", 70)
    parts = pool(folder)
    torch.testing.assert_close(parts.naive_errors, whole.naive_errors)
    assert torch.allclose(parts[200][0], whole[200][0], atol=1e-6)


def test_naive_errors_are_those_of_the_training_part(folder):
    dataset = pool(folder)
    assert dataset.seasons.tolist() == [96] * 3 + [24] * 3 + [96]  # a day of 15 minutes; 24 without times
    values = values_of("b.npy").astype(np.float32).astype(np.float64)
    train = values[:364]
    scaled = (train - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(dataset.naive_errors[3:5], np.abs(scaled[24:] - scaled[:-24]).mean(axis=0))
    assert pool(folder, season=5).seasons.tolist() == [5] * 7
    assert not hasattr(pool(folder, "val"), "seasons")  # nothing of it is scored


def test_a_file_on_disk_is_not_read_as_a_whole(folder, monkeypatch):
    dataset = pool(folder, "train", "b.npy")
    monkeypatch.setattr(tables, "_mapped", lambda path, real=tables._mapped: Counted(real(path)))
    dataset.__getitems__([3, 5])
    assert Counted.read == 2 * (CONTEXT + PATCH)


class Counted:
    read = 0

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __getitem__(self, where):
        found = self.values[where]
        Counted.read += found.size
        return found


def test_a_changed_file_has_other_statistics(folder):
    first = pool(folder, data_path="c.npy")[0][0]
    np.save(folder / "c.npy", values_of("c.npy")[::-1].astype(np.float32))
    os.utime(folder / "c.npy", ns=(1, 1))
    assert not torch.equal(pool(folder, data_path="c.npy")[0][0], first)


@pytest.mark.parametrize("spoil, words", [
    (lambda values: values.__setitem__((200, 1), np.nan), ["data row 201", "column 'var1'", "missing or infinite"]),
    (lambda values: values.__setitem__((500, 0), 1e300), ["too large"]),
    (lambda values: values.__setitem__(slice(0, 100), 1e308), ["too large"]),
])
def test_bad_values_on_disk_are_refused(folder, spoil, words, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 150)
    values = values_of("b.npy")
    spoil(values)
    np.save(folder / "b.npy", values)
    with pytest.raises(UserError, match="b.npy") as caught:
        pool(folder)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("array, words", [
    (np.array(["x"]), "table of numbers"), (np.zeros((2, 3, 4, 5)), "[2, 3, 4, 5]"), (np.zeros((0, 3)), "[0, 3]"),
    (np.zeros(300, complex), "complex"), (np.zeros(300, bool), "bool"), (np.zeros(300, "f4,i4"), "'f0'"),
])
def test_other_arrays_on_disk_are_refused(folder, array, words):
    np.save(folder / "b.npy", array)
    with pytest.raises(UserError, match="b.npy") as caught:
        pool(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f8", "i1", "u8", "g"])
@pytest.mark.parametrize("order, shape", [("C", (420, 3)), ("F", (420, 3)), ("C", (420, 3, 2))])
def test_a_file_on_disk_has_the_values_of_one_that_is_read_as_a_whole_bit_by_bit(folder, dtype, order, shape):
    values = (20 * np.random.default_rng(5).normal(size=shape)).round()
    np.save(folder / "e.npy", np.asarray(np.abs(values) if dtype == "u8" else values, dtype=dtype, order=order))
    for split in ("train", "val", "test"):
        single, together = pool(folder, split, "e.npy"), MultivariateDatasetBenchmark(
            data_files(str(folder), "e.npy"), Cut(split, CONTEXT, PATCH, HORIZON))
        count = len(together)
        assert single.counts.tolist() == [count] * 3 and single.labels == together.labels
        for got, wanted in zip(single.__getitems__(list(range(3 * count))), together.__getitems__(list(range(count)))):
            assert torch.equal(got.reshape(3, count, -1).permute(1, 2, 0), wanted)
    assert torch.equal(single.naive_errors, together.naive_errors)


def test_a_file_that_changes_during_a_run_is_refused(folder):
    dataset = pool(folder, "train", "b.npy")
    dataset.__getitems__([3])
    np.save(folder / "b.npy", 2 * np.load(folder / "b.npy"))  # as long as it was
    os.utime(folder / "b.npy", ns=(1, 1))
    with pytest.raises(UserError, match="b.npy has changed since this run began"):
        dataset.__getitems__([3])


@settings(max_examples=60)
@given(st.data())
def test_a_header_damaged_in_any_way_is_a_user_error_or_read(damaged_npy, data):
    content = bytearray(damaged_npy.with_suffix(".whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    damaged_npy.write_bytes(content)
    try:
        UnivariateDatasetBenchmark(damaged_npy, Cut("train", CONTEXT, PATCH, HORIZON)).__getitems__([0])
    except UserError as error:
        assert str(damaged_npy) in str(error)


@pytest.fixture(scope="module")
def damaged_npy(tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "x.npy"
    np.save(path, values_of("b.npy"))
    path.with_suffix(".whole").write_bytes(path.read_bytes())
    return path


def test_a_damaged_file_on_disk_is_refused(folder):
    (folder / "b.npy").write_bytes((folder / "b.npy").read_bytes()[:200])
    with pytest.raises(UserError, match=r"b.npy: cannot be read as npy"):
        pool(folder)


def test_found_files_that_are_too_short_are_left_out_with_a_note_named_ones_are_errors(folder):
    np.save(folder / "short.npy", np.arange(30.0))
    dataset = pool(folder, data_path="*.npy")
    assert dataset.notes == ["1 of 3 files are too short for a window of the test split and left out: 'short.npy'"]
    assert {file for file, _ in dataset.labels} == {"b.npy", "c.npy"}
    with pytest.raises(UserError, match="short.npy: 30 rows are too few for the test split"):
        pool(folder, data_path="*.npy,short.npy")
    np.save(folder / "one.npy", np.arange(30.0))
    for only in ("short.npy", "[so][hn]*.npy"):
        with pytest.raises(UserError, match="30 rows are too few"):
            pool(folder, data_path=only)


def test_several_files_are_not_forecast_together(folder):
    with pytest.raises(UserError, match="names 4 files.*UnivariateDatasetBenchmark"):
        MultivariateDatasetBenchmark(data_files(str(folder), ALL), Cut("test", CONTEXT, PATCH, HORIZON))


def test_notes_of_a_pool_name_the_file(folder):
    frame = pd.read_csv(folder / "a.csv")
    frame.insert(1, "hour", pd.to_datetime(frame["date"]).dt.hour)
    frame.to_csv(folder / "a.csv", index=False)
    assert all(note.startswith("a.csv: ") for note in pool(folder).notes) and pool(folder).notes


# --- seasons

@pytest.mark.parametrize("freq, season", [("h", 24), ("15min", 96), ("10min", 144), ("6h", 4), ("D", 7), ("W", 52),
                                          ("MS", 12), ("QS", 4), ("YS", 1)])
def test_a_season_is_a_day_a_week_or_a_year(freq, season):
    dates = pd.Series(pd.date_range("2001-01-01", periods=40, freq=freq))
    assert season_of(dates, "here") == season_of(dates.astype(str), "here") == season
    assert season_of(dates.drop([7, 8]), "here") == season_of(pd.concat([dates[:3], dates[2:]]), "here") == season


@pytest.mark.parametrize("dates", [None, pd.Series(["x"] * 9), pd.Series(["1", "2", "3", "4"]),
                                   pd.Series(["2020-01-01"] * 5), pd.Series(["2020-01-01"])])
def test_without_times_a_season_has_24_steps(dates):
    assert season_of(dates, "here") == 24
