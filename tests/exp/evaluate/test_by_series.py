"""Metrics by series and file: against a loop, and without work or memory that grows with all series or windows."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exp.evaluate.by_series import BySeries, Walk
from exp.report.results import files_table
from utils.scores import SeriesMetrics

WINDOWS = 3


def dataset_of(n_series, variables=1):
    """Windows of as many series, two of which are of one file."""
    labels = [(f"f{number // 2}.npy", f"var{variable}") for number in range(n_series) for variable in range(variables)]
    naive = torch.linspace(0, 1, len(labels))  # the first has no MASE
    return SimpleNamespace(labels=labels, naive_errors=naive, variables=variables,
                           series_of=lambda items: items // WINDOWS, seasons=torch.arange(n_series) + 1)


def forecasts(windows, variables=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, windows, 5, variables, generator=generator, dtype=torch.float64)


def scored(n_series, variables=1):
    dataset = dataset_of(n_series, variables)
    found = BySeries(Walk(dataset, range(n_series * WINDOWS)))
    forecast, truth = forecasts(n_series * WINDOWS, variables)
    for part in zip(forecast.split(4), truth.split(4)):  # batches across the borders of series
        found.update(*part)
    return found, dataset, (forecast - truth).abs().numpy()


@pytest.mark.parametrize("variables", [1, 3])
def test_metrics_are_those_of_a_loop(variables):
    found, dataset, errors = scored(5, variables)
    errors = errors.reshape(5, WINDOWS, 5, variables).transpose(0, 3, 1, 2).reshape(5 * variables, -1)

    def metrics(numbers):
        naive = dataset.naive_errors.numpy()
        known = [number for number in numbers if naive[number] > 0]
        mase = np.mean([errors[number] / naive[number] for number in known]) if known else None
        return {"mse": (errors[numbers]**2).mean(), "mae": errors[numbers].mean(), "mase": mase}
    for number, row in enumerate(found.rows()):
        assert (row.pop("file"), row.pop("series")) == dataset.labels[number]
        assert row == pytest.approx(metrics([number]))
    files = {}
    for number, (file, _) in enumerate(dataset.labels):
        files.setdefault(file, []).append(number)
    assert {file: pytest.approx(metrics(numbers)) for file, numbers in files.items()} == found.files()
    assert found.mase() == pytest.approx(metrics(list(range(5 * variables)))["mase"])


def test_series_without_a_window_have_no_row_and_files_no_score():
    dataset = dataset_of(4)
    found = BySeries(Walk(dataset, [0, 1, 9]))
    found.update(*forecasts(3))
    assert [row["file"] for row in found.rows()] == ["f0.npy", "f1.npy"] and found.rows()[0]["mase"] is None
    found = BySeries(Walk(dataset, [0]))
    found.update(*forecasts(1))
    assert found.files()["f1.npy"] == {"mse": None, "mae": None, "mase": None}


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_more_series_do_not_take_more_operations():
    counts = []
    for n_series in (4, 40):
        found, _, _ = scored(n_series)
        with Operations() as operations:
            found.rows(), found.files(), found.mase()
        counts.append(operations.count)
    assert counts[0] == counts[1] > 0


class Unlistable:
    """The items of 10^12 windows: only parts of them fit into memory."""

    def __len__(self):
        return 10**12

    def __getitem__(self, part):
        assert part.stop - part.start < 100
        return range(10**12)[part]


def test_only_the_windows_of_a_batch_are_looked_at():
    found = BySeries(Walk(dataset_of(3), Unlistable()))
    found.update(*forecasts(2))
    assert found.metrics.sums[2].tolist() == [10, 0, 0]


def test_a_series_that_repeats_itself_has_no_mase_and_spoils_that_of_none():
    found = SeriesMetrics(torch.tensor([0.0, 2.0, float("nan")]))
    found.update(torch.zeros(3, 4, 1), torch.ones(3, 4, 1), torch.tensor([[0], [1], [2]]))
    assert found.of()["mase"] == 0.5 and found.of()["mae"] == 1
    assert np.isnan([found.of_groups(torch.arange(3), 3)[number]["mase"] for number in (0, 2)]).all()


def test_the_table_on_the_terminal_is_short():
    scores = {"mse": 1.0, "mae": 1.0, "mase": None}
    text = files_table({f"{number}.npy": scores for number in range(1000)})
    assert text.count("\n") < 30 and text.endswith("and 980 more files (metrics.json has them all)")
    assert "more files" not in files_table({f"{number}.npy": scores for number in range(20)})
