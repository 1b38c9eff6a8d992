"""The benchmark of panels: what it makes, what it measures, and that memory does not grow with the table."""
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exp_helpers import keep
from helpers import ROOT, tiny_target

from scripts.benchmark import panel


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    keep("checkpoints/uni", tiny_target(norm_mode="causal", norm_window=5), data="UnivariateDatasetBenchmark")
    return tmp_path


def test_the_table_is_ragged_and_the_same_every_time(tmp_path):
    rows = panel.make_panel(tmp_path / "a.csv", 200, 100)
    table = pd.read_csv(tmp_path / "a.csv")
    assert len(table) == rows and table.unique_id.nunique() == 200
    lengths = table.groupby("unique_id").size().to_numpy()
    number = np.arange(200)
    assert (lengths[number % 2 == 0] == 100).all()
    assert lengths[number % 4 == 1].min() < 30 and 90 < lengths[number % 4 == 3].mean() < 99
    missing = table.y.isna().groupby(table.unique_id).sum().to_numpy()
    assert (missing[number % 4 != 3] == 0).all() and (missing[number % 4 == 3] > 0).mean() > 0.8
    assert (table.groupby("unique_id").y.nunique() == 1).sum() == 2
    panel.make_panel(tmp_path / "b.csv", 200, 100)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.slow
def test_time_and_memory_are_measured(place):
    pytest.importorskip("pyarrow")
    flags = "--checkpoints checkpoints --test_dir uni --series 50 --rows 60 --out found.csv --picture four.png"
    assert panel.main([*flags.split(), "--folder", ".", "--flags=--test_pred_len 24"]) == 0
    with open("found.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["kind"] for row in rows] == ["csv", "parquet"]
    for row in rows:
        assert (row["series"], row["horizon"]) == ("50", "24") and int(row["forecast"]) >= 40
        assert float(row["bare_s"]) > 0 and float(row["ratio"]) > 0 and 0 < float(row["memory_mib"]) < 500
    assert sorted(path.name for path in Path(".").iterdir()) == ["checkpoints", "found.csv", "four.png"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_table(place, monkeypatch):
    """Six times the rows in blocks of the same size; what grows is a record of every part, and a name a series."""
    monkeypatch.setattr(panel, "PART", 20)  # series in a row group of the file
    pytest.importorskip("pyarrow")
    code = ("import sys, torch, data_provider.panel as p\np.BLOCK = 2**13\ntorch.set_num_threads(1)\n"
            "from scripts.benchmark import panel\nsys.exit(panel.main(sys.argv[1:]))")
    found = {}
    for series in (800, 4800):
        folder = Path(f"of_{series}")
        folder.mkdir()
        rows = panel.make_panel(folder / "panel.parquet", series, 500)
        said = subprocess.run([sys.executable, "-c", code, "--measure", *panel.FLAGS.split(), "--data_path",
                               "panel.parquet", "--test_dir", "uni", "--checkpoints", "../checkpoints"], cwd=folder,
                              stdout=subprocess.PIPE, text=True, check=True, env=os.environ).stdout
        found[rows] = json.loads(said.splitlines()[-1])["memory_mib"]
    (few, small), (many, large) = sorted(found.items())
    growth = (large - small) * 2**20 / (many - few)
    assert growth < 16, found  # bytes a row: 1.5 GiB for 100,000 series of 1,000; columns held as a whole take 24
