"""Parquet files: read as a csv of the same table is, and mixed with other files in a pool."""
import builtins
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from data_provider.data_factory import train_loader
from data_provider.data_loader import UnivariateDatasetBenchmark
from data_provider.files import data_files
from data_provider.reading import read_series
from data_provider.splits import Cut
from utils.errors import UserError


def table(rows, variables, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, variables)).cumsum(axis=0).round(3)
    frame = pd.DataFrame(values, columns=[f"v{i}" for i in range(variables)])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="15min"))
    return frame


def long(frame):
    return frame.rename(columns={"date": "ds"}).melt("ds", var_name="unique_id", value_name="y")


LAYOUTS = {"columns": lambda frame: frame, "indexed": lambda frame: frame.set_index("date"),
           "nameless index": lambda frame: frame.set_index("date").rename_axis(None), "long": long,
           "indexed long": lambda frame: long(frame).set_index(["unique_id", "ds"])}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_parquet_is_read_as_the_csv_of_the_same_table(tmp_path, layout):
    pytest.importorskip("pyarrow")
    frame = table(60, 3)
    frame.to_csv(tmp_path / "a.csv", index=False)
    LAYOUTS[layout](frame).to_parquet(tmp_path / "a.parquet")
    one, other = (read_series(tmp_path / f"a.{kind}") for kind in ("csv", "parquet"))
    np.testing.assert_array_equal(one.values, other.values)
    assert one.names == other.names
    assert pd.to_datetime(one.dates).tolist() == pd.to_datetime(other.dates).tolist()


def message(path):
    with pytest.raises(UserError) as caught:
        read_series(path)
    return str(caught.value)


def test_what_a_parquet_cannot_hold_is_refused_with_its_place(tmp_path):
    pytest.importorskip("pyarrow")
    frame = table(9, 2)
    frame.loc[4, "v1"] = np.nan
    frame.to_parquet(tmp_path / "gap.parquet")
    assert re.search(r"gap\.parquet, data row 5, column 'v1': missing", message(tmp_path / "gap.parquet"))
    pd.DataFrame({"v0": [[1.0], [2.0]]}).to_parquet(tmp_path / "nested.parquet")
    assert "nested.parquet, data row 1, column 'v0'" in message(tmp_path / "nested.parquet")
    whole = (tmp_path / "gap.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:len(whole) // 2])
    assert "cut.parquet: cannot be read as parquet" in message(tmp_path / "cut.parquet")


def test_without_pyarrow_the_requirements_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert "requirements-parquet.txt, or save the series as csv or npy" in message(tmp_path / "a.parquet")


SIZES = {"a.csv": (300, 3), "b.parquet": (520, 2), "c.npy": (410, 1), "d.parquet": (280, 4)}
CUT = Cut("train", 24, 8)


@pytest.fixture
def mixed(tmp_path):
    """A mixture of files, and the same with csv in place of parquet."""
    pytest.importorskip("pyarrow")
    for number, (name, (rows, variables)) in enumerate(SIZES.items()):
        frame, path = table(rows, variables, number), tmp_path / name
        if name.endswith("npy"):
            np.save(path, frame["v0"].to_numpy())
        else:
            frame.to_csv(path.with_suffix(".csv"), index=False)
        if name.endswith("parquet"):
            frame.to_parquet(path)
    names = ",".join(SIZES)
    return [UnivariateDatasetBenchmark(data_files(str(tmp_path), path), CUT)
            for path in (names, names.replace("parquet", "csv"))]


def test_files_of_all_kinds_lengths_and_widths_mix(mixed):
    pool, same = mixed
    assert len(pool.labels) == 10 and pool.labels[3] == ("b.parquet", "v0")
    assert torch.equal(pool.counts, same.counts) and len(set(pool.counts.tolist())) == 4
    items = list(range(0, len(pool), 7))
    assert all(map(torch.equal, pool.__getitems__(items), same.__getitems__(items)))


@pytest.mark.parametrize("by_series", [True, False])
def test_batches_of_a_mixture_are_balanced(mixed, by_series):
    pool = mixed[0]
    loader = train_loader(pool, 40, 0, counts=pool.counts if by_series else None)
    drawn = torch.cat([torch.as_tensor(batch) for batch in loader.batch_sampler])
    counts = torch.bincount(pool.series_of(drawn), minlength=10)
    if by_series:
        assert counts.max() - counts.min() <= len(counts)  # a batch of 40 has four of each of the ten
    else:
        assert torch.equal(counts, pool.counts) and len(drawn.unique()) == len(pool)
