"""The benchmark of decoding runs, on tiny models, and writes what it promises."""
import csv
import re

import pytest
import torch
from helpers import TINY

from scripts.benchmark import decode_speed


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    config = decode_speed.ModelConfig(**TINY.as_dict() | {"input_token_len": 96})
    monkeypatch.setattr(decode_speed, "CONFIGS", {"preset": (2, config)})
    return tmp_path


def test_a_row_for_every_mode_of_every_cell(tiny):
    flags = f"--cells preset:192:400:1,preset:192:96:3 --out {tiny}/speed.csv --budget_s 0.1 --acceptance 0.5 --quiet"
    assert decode_speed.main(flags.split()) == 0
    with open(tiny / "speed.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == decode_speed.COLUMNS
    assert [row["mode"] for row in rows] == 2 * ["reencode", "cached", "speculative_trained", "speculative_forced",
                                                 "limit"]
    passes = {row["mode"]: (row["target_passes"], row["draft_passes"]) for row in rows[:5]}
    assert passes["reencode"] == passes["cached"] == ("5", "0")
    assert passes["speculative_forced"] == ("1", "1") and passes["limit"] == ("1", "0")
    assert 1 < float(passes["speculative_trained"][0]) < 5
    assert [row["target_passes"] for row in rows[5:7]] == ["1", "1"]
    for row in rows:
        assert 0 < float(row["ms_p10"]) <= float(row["ms_median"]) <= float(row["ms_p90"]) and int(row["repeats"]) >= 3
    with open(tiny / "speed_planner.csv", newline="") as handle:
        assert [row["proposals"] for row in csv.DictReader(handle)][1] == "0"  # one patch: nothing to propose
    assert (tiny / "speed.png").stat().st_size > 1000


def test_the_reencoding_baseline_is_the_rolling_forecast():
    _, window, _, _ = decode_speed.build("preset", 192, 200, "cpu")
    x = torch.randn(2, 192, 7)
    torch.testing.assert_close(decode_speed.reencode(window, x, 200), decode_speed.decode_alone(window, x, 200),
                               atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cells", ["deep:672", "huge:672:720:1", "deep:670:720:1", "deep:672:0:1", "deep:a:b:c"])
def test_a_cell_that_makes_no_sense_is_refused(cells, capsys):
    assert decode_speed.main(["--cells", cells]) == 2
    assert re.fullmatch(r"error: --cells .*\n", capsys.readouterr().err)
