"""Windows: OpenLTM's splits and pairs, compared with a loop that cuts one window at a time."""
import signal

import numpy as np
import pandas as pd
import pytest
import torch

from data_provider import splits
from data_provider.data_factory import (
    DATASETS,
    ordered_loader,
    spread_windows,
    train_loader,
)
from data_provider.data_loader import UTSD, MultivariateDatasetBenchmark, UnivariateDatasetBenchmark
from data_provider.files import root
from data_provider.splits import Cut, split_borders
from utils.errors import UserError

CONTEXT, PATCH, HORIZON, ROWS = 24, 8, 20, 300
BENCHMARKS = ("MultivariateDatasetBenchmark", "UnivariateDatasetBenchmark")  # of 70/10/20 %


def series(rows=ROWS, variables=3, seed=0):
    return np.random.default_rng(seed).normal(loc=5, scale=3, size=(rows, variables)).round(4)


def write(path, values):
    frame = pd.DataFrame(values, columns=[f"v{i}" for i in range(values.shape[1])])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(values), freq="h"))
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def tiny(tmp_path):
    return write(tmp_path / "tiny.csv", series())


@pytest.fixture(scope="module")
def etth(tmp_path_factory):
    """A file of ETTh1's length and name; one variable keeps it small."""
    values = series(17420, variables=1)
    path = tmp_path_factory.mktemp("ett") / "ETTh1.npy"
    np.save(path, values)
    return path


def naive_windows(values, split, context, patch, horizon, stride=1):
    """(x, y) of every window, cut one at a time from the 70/10/20 split of a standardised series [T, C]."""
    n = len(values)
    train, test = int(n * 0.7), int(n * 0.2)
    mean, std = values[:train].mean(axis=0), values[:train].std(axis=0)
    scaled = (values - mean) / std
    first, last = {"train": (0, train), "val": (train - context, n - test), "test": (n - test - context, n)}[split]
    ahead = horizon if split == "test" else patch
    pairs = []
    for start in range(first, last - context - ahead + 1, stride if split == "train" else 1):
        x = scaled[start:start + context]
        y = scaled[start + context:start + context + horizon] if split == "test" \
            else scaled[start + patch:start + patch + context]
        pairs.append((x, y))
    return pairs


def dataset_of(path, split, kind="MultivariateDatasetBenchmark"):
    return DATASETS[kind](path, Cut(split, CONTEXT, PATCH, HORIZON))


def loader_of(dataset, batch_size=16, num_workers=0):
    """The loader of its split."""
    if dataset.cut.split == "train":
        return train_loader(dataset, batch_size, seed=1, num_workers=num_workers)
    return ordered_loader(dataset, batch_size, num_workers=num_workers)


def batches(loader):
    return [(x.clone(), y.clone()) for x, y in loader]


# --- splits

@pytest.mark.parametrize("name, quarter", [("ETTh1.csv", 1), ("ETTh2.csv", 1), ("ETTm1.csv", 4), ("ETTm2.npy", 4)])
def test_ett_files_are_split_at_twelve_four_and_four_months(name, quarter):
    month = 30 * 24 * quarter
    starts, ends = split_borders(name, rows=70_000)
    assert starts == [0, 12 * month, 16 * month] and ends == [12 * month, 16 * month, 20 * month]


def test_other_files_are_split_at_70_10_and_20_percent():
    # 52696 rows is weather: 36887 / 5270 / 10539, the rounding of OpenLTM
    assert split_borders("weather.csv", 52696) == ([0, 36887, 42157], [36887, 42157, 52696])


@pytest.mark.parametrize("horizon, windows", [(96, 2785), (192, 2689), (336, 2545), (720, 2161)])
def test_etth_has_the_published_number_of_test_windows(etth, horizon, windows):
    dataset = MultivariateDatasetBenchmark(etth, Cut("test", 672, 96, horizon))
    assert len(dataset) == windows


def test_etth_train_and_val_windows_follow_from_the_borders(etth):
    assert len(MultivariateDatasetBenchmark(etth, Cut("train", 672, 96))) == 8640 - 672 - 96 + 1
    assert len(MultivariateDatasetBenchmark(etth, Cut("val", 672, 96))) == 2880 - 96 + 1


def test_the_first_step_to_forecast_is_the_first_test_row(etth):
    # with any context the same steps are forecast, so that figures of different contexts compare
    values = np.load(etth)
    scale = (values - values[:8640].mean(axis=0)) / values[:8640].std(axis=0)
    for context in (96, 672):
        y = MultivariateDatasetBenchmark(etth, Cut("test", context, 96, 96))[0][1]
        np.testing.assert_allclose(y, scale[11520:11616], atol=1e-5)


def test_a_cut_ett_file_is_refused_with_the_rows_it_needs(tmp_path):
    path = tmp_path / "ETTh1.npy"
    np.save(path, series(14000))
    with pytest.raises(UserError, match=r"14000.*14400"):
        MultivariateDatasetBenchmark(path, Cut("test", CONTEXT, PATCH, HORIZON))


# --- scaling

def test_the_scaler_sees_training_rows_only(tmp_path):
    values = series()
    changed = values.copy()
    changed[int(ROWS * 0.7):] *= 50
    before, after = write(tmp_path / "before.csv", values), write(tmp_path / "after.csv", changed)
    first, second = (MultivariateDatasetBenchmark(p, Cut("train", CONTEXT, PATCH)) for p in (before, after))
    torch.testing.assert_close(first.values, second.values, rtol=0, atol=0)
    np.testing.assert_allclose(first.table.scaler.mean_, values[:210].mean(axis=0))
    np.testing.assert_allclose(first.table.scaler.scale_, values[:210].std(axis=0))


def test_the_last_training_row_counts_for_the_scaler(tmp_path):
    values = series()
    values[209] += 1000
    dataset = MultivariateDatasetBenchmark(write(tmp_path / "t.csv", values), Cut("train", CONTEXT, PATCH))
    np.testing.assert_allclose(dataset.table.scaler.mean_, values[:210].mean(axis=0))


@pytest.mark.parametrize("row, value", [(0, 1e308), (299, 1e60)])
def test_values_that_overflow_are_refused(tmp_path, recwarn, row, value):
    values = series()
    values[row] = values[row + 1 if row == 0 else row - 1] = value
    with pytest.raises(UserError, match=r"t\.csv: values too large"):
        MultivariateDatasetBenchmark(write(tmp_path / "t.csv", values), Cut("test", CONTEXT, PATCH, HORIZON))
    assert not list(recwarn)


def test_a_constant_variable_does_not_become_nan(tmp_path):
    values = series()
    values[:, 1] = 4.0
    dataset = MultivariateDatasetBenchmark(write(tmp_path / "flat.csv", values), Cut("test", CONTEXT, PATCH, HORIZON))
    assert torch.isfinite(dataset.values).all()


# --- items

@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_multivariate_items_equal_a_naive_loop_over_windows(tiny, split):
    dataset = MultivariateDatasetBenchmark(tiny, Cut(split, CONTEXT, PATCH, HORIZON))
    expected = naive_windows(series(), split, CONTEXT, PATCH, HORIZON)
    assert len(dataset) == len(expected)
    for index, (x, y) in enumerate(expected):
        got_x, got_y = dataset[index]
        np.testing.assert_allclose(got_x, x, atol=1e-5)
        np.testing.assert_allclose(got_y, y, atol=1e-5)


@pytest.mark.parametrize("kind", [DATASETS[kind] for kind in BENCHMARKS])
def test_rolled_validation_has_the_horizon_behind_each_context(tiny, kind):
    rolled = kind(tiny, Cut("val", CONTEXT, PATCH, HORIZON, rolled=True))
    values = MultivariateDatasetBenchmark(tiny, Cut("val", CONTEXT, PATCH)).values  # a context and the split's 30 rows
    assert len(values) == CONTEXT + 30 and rolled.counts[0] == 30 - HORIZON + 1
    for index in range(len(rolled)):
        start, variables = index % rolled.counts[0], slice(None)
        if rolled.n_series > 1:
            variables = slice(index // rolled.counts[0], index // rolled.counts[0] + 1)
        x, y = rolled[index]
        assert torch.equal(x, values[start:start + CONTEXT, variables])
        assert torch.equal(y, values[start + CONTEXT:start + CONTEXT + HORIZON, variables])


def test_rolled_validation_tells_the_rows_it_needs(tmp_path):
    def attempt(rows):
        path = write(tmp_path / "s.csv", series(rows))
        return MultivariateDatasetBenchmark(path, Cut("val", 24, PATCH, 48, rolled=True))

    with pytest.raises(UserError) as caught:
        attempt(300)
    wanted = int(str(caught.value).split("about ")[1].split()[0])
    assert len(attempt(wanted)) > 0
    with pytest.raises(UserError):
        attempt(int(wanted * 0.9))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_univariate_items_are_the_variables_one_by_one(tiny, split):
    dataset = UnivariateDatasetBenchmark(tiny, Cut(split, CONTEXT, PATCH, HORIZON))
    expected = naive_windows(series(), split, CONTEXT, PATCH, HORIZON)
    assert len(dataset) == 3 * len(expected)
    for variable in range(3):
        for window in (0, 1, len(expected) - 1):
            x, y = dataset[variable * len(expected) + window]
            np.testing.assert_allclose(x, expected[window][0][:, [variable]], atol=1e-5)
            np.testing.assert_allclose(y, expected[window][1][:, [variable]], atol=1e-5)


@pytest.mark.parametrize("kind", [MultivariateDatasetBenchmark, UnivariateDatasetBenchmark])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_batch_equals_its_items_one_by_one(tiny, kind, split):
    dataset = kind(tiny, Cut(split, CONTEXT, PATCH, HORIZON, subset_ratio=0.5))
    indices = [len(dataset) - 1, 0, 3, 3]
    x, y = dataset.__getitems__(indices)
    for row, index in enumerate(indices):
        one_x, one_y = dataset[index]
        assert torch.equal(x[row], one_x) and torch.equal(y[row], one_y)


def test_every_training_token_is_followed_by_its_next_patch(tiny):
    x, y = MultivariateDatasetBenchmark(tiny, Cut("train", CONTEXT, PATCH))[5]
    assert torch.equal(y[:-PATCH], x[PATCH:])
    longer = MultivariateDatasetBenchmark(tiny, Cut("train", CONTEXT + PATCH, PATCH))[5][0]
    assert torch.equal(y[-PATCH:], longer[-PATCH:])


def test_few_shot_keeps_every_strideth_window_of_training_only(tiny):
    expected = naive_windows(series(), "train", CONTEXT, PATCH, HORIZON, stride=4)
    few = MultivariateDatasetBenchmark(tiny, Cut("train", CONTEXT, PATCH, subset_ratio=0.25))
    assert len(few) == len(expected)
    for index, (x, y) in enumerate(expected):
        np.testing.assert_allclose(few[index][0], x, atol=1e-5)
        np.testing.assert_allclose(few[index][1], y, atol=1e-5)
    last_x, _ = UnivariateDatasetBenchmark(tiny, Cut("train", CONTEXT, PATCH, subset_ratio=0.25))[3 * len(few) - 1]
    np.testing.assert_allclose(last_x, expected[-1][0][:, [2]], atol=1e-5)
    for split in ("val", "test"):
        assert len(MultivariateDatasetBenchmark(tiny, Cut(split, CONTEXT, PATCH, HORIZON, subset_ratio=0.25))) \
            == len(naive_windows(series(), split, CONTEXT, PATCH, HORIZON))


def test_an_unknown_split_is_a_programming_error(tiny):
    with pytest.raises(ValueError, match="split"):
        MultivariateDatasetBenchmark(tiny, Cut("vali", CONTEXT, PATCH))


# --- too short

@pytest.mark.parametrize("split, context, horizon", [("train", 240, 8), ("val", 216, 8), ("test", 24, 96)])
def test_a_split_without_a_window_tells_the_rows_it_needs(tmp_path, split, context, horizon):
    path = write(tmp_path / "short.csv", series(ROWS if split != "val" else 60))
    with pytest.raises(UserError, match=rf"{split} split.*context of {context}.*rows are needed") as caught:
        MultivariateDatasetBenchmark(path, Cut(split, context, PATCH, horizon))
    assert "short.csv" in str(caught.value)


@pytest.mark.parametrize("split, context, horizon", [("train", 240, 8), ("val", 24, 8), ("test", 24, 96)])
def test_the_rows_asked_for_are_enough_and_hardly_more(tmp_path, split, context, horizon):
    def attempt(rows):
        path = write(tmp_path / "s.csv", series(rows))
        return MultivariateDatasetBenchmark(path, Cut(split, context, PATCH, horizon))

    with pytest.raises(UserError) as caught:
        attempt(50)
    wanted = int(str(caught.value).split("about ")[1].split()[0])
    assert len(attempt(wanted)) > 0
    with pytest.raises(UserError):
        attempt(int(wanted * 0.8))


@pytest.mark.parametrize("kind, share", [(MultivariateDatasetBenchmark, None), (UTSD, 0.9)])
@pytest.mark.parametrize("split, rolled", [("test", True), ("val", True), ("val", False)])
@pytest.mark.parametrize("context, horizon", [(240, 8), (24, 96), (2**31, 8), (24, 2**31)])
def test_the_rows_needed_are_found_without_trying_them_all(tmp_path, monkeypatch, context, horizon, split, rolled, kind,
                                                           share):
    tried = []

    def noted(name, rows, share):
        tried.append(rows)
        assert len(tried) < 50
        return split_borders(name, rows, share)
    monkeypatch.setattr(splits, "split_borders", noted)
    with pytest.raises(UserError) as caught:
        kind(write(tmp_path / "s.csv", series(50)), Cut(split, context, PATCH, horizon, rolled=rolled))

    def enough(rows):
        train, val, test = (end - start for start, end in zip(*split_borders("", rows, share)))
        return train >= context + PATCH and val >= (horizon if (split, rolled) == ("val", True) else PATCH) \
            and test >= horizon
    own, first, *more = tried
    wanted = (more or [first])[-1]
    assert own == 50 and f"about {wanted} rows" in str(caught.value)
    assert enough(wanted)
    ahead = horizon if rolled else PATCH
    assert first == context + ahead or not enough(first)  # none was skipped


# --- loaders

@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 1000])
def test_no_window_is_dropped_with_the_last_batch(tiny, split, batch_size):
    dataset = dataset_of(tiny, split)
    seen = batches(loader_of(dataset, batch_size))
    assert len(dataset) == len(naive_windows(series(), split, CONTEXT, PATCH, HORIZON))
    assert sum(len(x) for x, _ in seen) == len(dataset)
    assert [len(x) for x, _ in seen[:-1]] == [batch_size] * (len(seen) - 1)


@pytest.mark.parametrize("split", ["val", "test"])
def test_val_and_test_windows_stay_in_order(tiny, split):
    dataset = dataset_of(tiny, split)
    joined = torch.cat([x for x, _ in batches(loader_of(dataset))])
    assert torch.equal(joined, dataset.__getitems__(list(range(len(dataset))))[0])


def test_training_windows_come_once_each_and_shuffled(tiny):
    dataset = dataset_of(tiny, "train")
    joined = torch.cat([x for x, _ in batches(loader_of(dataset))])
    ordered = dataset.__getitems__(list(range(len(dataset))))[0]
    assert not torch.equal(joined, ordered)
    assert torch.equal(joined[:, 0].sort(dim=0).values, ordered[:, 0].sort(dim=0).values)


def test_the_processes_of_a_training_share_its_windows(tiny):
    dataset = dataset_of(tiny, "train")
    shares = [batches(train_loader(dataset, 8, seed=1, rank=rank, world_size=2)) for rank in range(2)]
    whole = batches(train_loader(dataset, 16, seed=1))
    assert [len(share) for share in shares] == [len(whole)] * 2
    for (x, _), (a, _), (b, _) in zip(whole, *shares):
        assert torch.equal(x[:, 0].sort(dim=0).values, torch.cat([a, b])[:, 0].sort(dim=0).values)


@pytest.mark.parametrize("split", ["train", "test"])
def test_workers_do_not_change_the_batches(tiny, split):
    alone, helped = (batches(loader_of(dataset_of(tiny, split), num_workers=n)) for n in (0, 2))
    assert len(alone) == len(helped)
    for (x, y), (other_x, other_y) in zip(alone, helped):
        assert torch.equal(x, other_x) and torch.equal(y, other_y)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_left_to_the_parent_of_the_workers(tiny, monkeypatch, number):
    def ignored(self, indices):
        return torch.tensor(signal.getsignal(number) == signal.SIG_IGN), torch.tensor(True)
    monkeypatch.setattr(MultivariateDatasetBenchmark, "__getitems__", ignored)
    assert all(bool(x) for x, _ in loader_of(dataset_of(tiny, "test"), num_workers=1))


def test_a_loader_leaves_the_random_numbers_of_training_alone(tiny):
    # else a resumed run, which opens its loader once more, would draw other dropout masks than an uninterrupted one
    for split in ("train", "val"):
        loader = loader_of(dataset_of(tiny, split))
        before = torch.get_rng_state()
        next(iter(loader))
        assert torch.equal(before, torch.get_rng_state()), split


def test_a_loader_may_walk_over_some_windows_only(tiny):
    dataset = dataset_of(tiny, "test")
    joined = torch.cat([x for x, _ in batches(ordered_loader(dataset, 2, [5, 0, 7]))])
    assert torch.equal(joined, dataset.__getitems__([5, 0, 7])[0])


def test_data_are_in_root_path_or_dataset_root_or_dataset(monkeypatch):
    monkeypatch.delenv("DATASET_ROOT", raising=False)
    assert root(None).as_posix() == "dataset"
    monkeypatch.setenv("DATASET_ROOT", "/elsewhere")
    assert root(None).as_posix() == "/elsewhere"
    assert root("/given").as_posix() == "/given"


# --- some windows of each series

@pytest.mark.parametrize("kind, n_series, variables", [("MultivariateDatasetBenchmark", 1, 3),
                                                       ("UnivariateDatasetBenchmark", 3, 1)])
def test_series_and_their_variables_are_counted(tiny, kind, n_series, variables):
    dataset = dataset_of(tiny, "test", kind)
    assert (dataset.n_series, dataset.variables) == (n_series, variables)
    assert dataset[0][0].shape == (CONTEXT, variables) and len(dataset) == n_series * dataset.counts[0]


@pytest.mark.parametrize("count", [1, 2, 7, 41])
@pytest.mark.parametrize("kind", BENCHMARKS)
def test_windows_are_spread_from_the_first_to_the_last(tiny, kind, count):
    dataset = dataset_of(tiny, "test", kind)
    assert dataset.counts[0] == 41
    items = np.array(spread_windows(dataset, count)).reshape(dataset.n_series, count)
    assert np.array_equal(items - items[:1], np.arange(dataset.n_series)[:, None] * 41 + np.zeros(count))
    assert items[0, 0] == 0 and (count == 1 or items[0, -1] == 40)
    gaps = np.diff(items[0])
    assert count == 1 or gaps.min() > 0 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("kind", BENCHMARKS)
def test_without_a_number_all_windows_are_walked_over(tiny, kind):
    dataset = dataset_of(tiny, "test", kind)
    assert list(spread_windows(dataset, None)) == list(range(len(dataset)))


def test_more_windows_than_there_are_is_refused(tiny):
    with pytest.raises(UserError, match="`test_windows` 42: the test part has 41 windows"):
        spread_windows(dataset_of(tiny, "test", "UnivariateDatasetBenchmark"), 42)
