"""The data of a run: which split has which context, and which windows are walked over."""
import logging
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import PATCH, TINY, tiny_series, write_series

from exp.exp_basic import Exp_Basic
from exp.settings import DataSettings, ModelSettings, Settings

CONTEXT, HORIZON = 3 * PATCH, 20


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """An experiment on a tiny series; changes: of its DataSettings."""
    monkeypatch.chdir(tmp_path)
    write_series(tiny_series(300))
    data = DataSettings(root_path=".", data_path="tiny.csv", context=CONTEXT, test_context=CONTEXT, horizon=HORIZON)

    def make(**changes):
        return Exp_Basic(Settings(data=replace(data, **changes), model=ModelSettings(config=TINY)))
    return make


def joined(loader):
    return torch.cat([x for x, _ in loader])


def test_testing_may_use_another_context_than_training(experiment):
    other = experiment(test_context=2 * CONTEXT)
    assert other.tested_split()[0][0].shape == other.test_part()[0][0][0].shape == (2 * CONTEXT, 3)
    assert other.dataset("train")[0][0].shape == other.dataset("val")[0][0].shape == (CONTEXT, 3)
    dataset, loader = other.validation_part()  # what a law is fitted on has the context of the test
    assert dataset.cut.split == "val" and joined(loader).shape[1:] == (2 * CONTEXT, 3)
    assert other.dataset("train", context=PATCH)[0][0].shape == (PATCH, 3)


@pytest.mark.parametrize("kind", ["MultivariateDatasetBenchmark", "UnivariateDatasetBenchmark"])
def test_the_test_part_is_all_of_its_windows_in_order(experiment, kind):
    dataset, loader = experiment(kind=kind, batch_size=7).test_part()
    assert dataset.cut.split == "test" and dataset[0][1].shape[0] == HORIZON
    assert torch.equal(joined(loader), dataset.__getitems__(list(range(len(dataset))))[0])


def test_settings_are_chosen_on_horizons_of_the_validation_part(experiment):
    chosen = experiment(test_flag="V", test_context=2 * CONTEXT)
    dataset, loader = chosen.test_part()
    assert dataset.cut.split == "val"
    assert dataset[0][0].shape == (2 * CONTEXT, 3) and dataset[0][1].shape == (HORIZON, 3)
    assert len(joined(loader)) == len(dataset) == 30 - HORIZON + 1  # a tenth of 300 rows
    assert torch.equal(dataset[0][1][:PATCH], chosen.validation_part()[0][0][1][-PATCH:])  # of the same steps


def test_test_windows_limits_the_walk_but_not_the_data_set(experiment):
    dataset, loader = experiment(kind="UnivariateDatasetBenchmark", test_windows=3).test_part()
    assert len(dataset) == 3 * 41
    places = [series * 41 + window for series in range(3) for window in (0, 20, 40)]
    assert torch.equal(joined(loader), dataset.__getitems__(places)[0])


def test_few_shot_training_leaves_the_other_splits_whole(experiment):
    few, all_of_it = experiment(subset_ratio=0.25), experiment()
    assert len(few.dataset("train")) == -(-len(all_of_it.dataset("train")) // 4)
    for split in ("val", "test"):
        assert len(few.dataset(split)) == len(all_of_it.dataset(split))


def test_what_is_left_out_of_the_data_is_said_once_for_all_splits(experiment):
    frame = pd.read_csv("tiny.csv")
    plain = experiment().dataset("train")
    frame.assign(No=range(1, len(frame) + 1)).to_csv("tiny.csv")
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("exp.exp_basic")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    counted = experiment()
    datasets = [counted.dataset(split) for split in ("train", "val", "test")]
    logger.removeHandler(handler)
    logger.setLevel(level)
    assert datasets[0].names == plain.names and torch.equal(datasets[0].values, plain.values)
    assert said == ["note: tiny.csv: left out as counters of rows: 'Unnamed: 0', 'No' (rename a column to forecast it)"]
