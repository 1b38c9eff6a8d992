"""The benchmark of pools makes one, trains on it, measures, and cleans up."""
import csv
import sys

import numpy as np
import pytest

from data_provider.files import data_files
from scripts.benchmark import pool_memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_every_combination_is_measured_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_memory, "RATIOS", (0.5,))
    monkeypatch.chdir(tmp_path)  # the trainings, too, find this program: it is installed nowhere
    monkeypatch.setenv("PYTHONPATH", str(pool_memory.__file__).rpartition("/scripts/")[0])
    flags = ["--gigabytes", "0.02", "--folder", str(tmp_path), "--out", "memory.csv", "--quiet"]
    assert pool_memory.main(flags) == 0
    with open("memory.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["balance"], row["num_workers"]) for row in rows] == [
        ("series", "0"), ("series", "2"), ("windows", "0"), ("windows", "2")]
    for row in rows:
        assert float(row["peak_mib"]) > 100 and float(row["first_step_s"]) > 0 and float(row["load_ms"]) > 0
        assert (float(row["worker_mib"]) > 100) == (row["num_workers"] == "2") and int(row["windows"]) > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["memory.csv"]


def test_the_pool_has_the_layout_and_the_size_that_were_asked_for(tmp_path):
    assert pool_memory.make_pool(tmp_path / "pool", 0.01) == 25
    files = [np.load(file.path, mmap_mode="r") for file in data_files(str(tmp_path), "pool")]
    assert len(files) == 25 and {values.dtype.str for values in files} == {"<f4"}
    assert {values.shape[1:] for values in files} == {(), (1,), (7,), (3,)}
    assert sum(values.nbytes for values in files) == pytest.approx(0.01e9, rel=0.01)
