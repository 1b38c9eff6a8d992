"""The benchmark of memory sees what decoding allocates."""
import csv
import sys

import pytest

from scripts.benchmark import decode_memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_longer_horizon_and_a_draft_cost_more(tmp_path):
    cells = "preset:192:192:8,preset:192:9600:8"
    assert decode_memory.main(["--cells", cells, "--out", f"{tmp_path}/memory.csv"]) == 0
    with open(tmp_path / "memory.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["mode"] for row in rows] == 2 * list(decode_memory.MODES)
    short, _, long, speculative = (float(row["peak_mib"]) for row in rows)
    further = 8 * 7 * 99 * 4 * 256 * 4 / 2**20  # keys and values of two layers, float32
    assert short < long < speculative and long > 0.8 * further  # some of it lies where the process had freed memory


def test_a_cell_that_does_not_exist_is_refused_in_one_line(capsys):
    assert decode_memory.main(["--cells", "preset:192:96"]) == 2
    assert "preset:192:96" in capsys.readouterr().err
