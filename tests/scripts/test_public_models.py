"""The times of public models are measured on tiny ones here."""
from dataclasses import replace

import pytest
from helpers import rows_of

from models.config import ModelConfig
from scripts.benchmark import public_models

WAYS = ["own roll", "own roll, packed", "speculative, forced", "limit"]


@pytest.fixture
def tiny(monkeypatch):
    config = ModelConfig(input_token_len=8, d_model=16, n_heads=4, d_ff=64, e_layers=2, activation="silu",
                         use_norm=True)
    monkeypatch.setattr(public_models, "TIMER", config)
    monkeypatch.setattr(public_models, "TIMESFM", replace(config, input_token_len=4, output_token_len=16))


def measured(folder, *flags):
    out = folder / "times.csv"
    code = public_models.main(["--out", str(out), "--budget_s", "0.01", "--quiet", *flags])
    return code, rows_of(out) if out.exists() else []


def test_every_way_is_timed(tiny, tmp_path, capsys):
    code, rows = measured(tmp_path, "--models", "timer", "--contexts", "32", "--horizons", "20,48", "--batches", "1,3")
    assert code == 0 and list(rows[0]) == public_models.COLUMNS
    assert [row["way"] for row in rows] == WAYS * 4
    assert {(row["horizon"], row["batch"]) for row in rows} == {("20", "1"), ("48", "1"), ("20", "3"), ("48", "3")}
    for row in rows:
        patches = -(-int(row["horizon"]) // 8)
        assert int(row["passes"]) == (patches if "own" in row["way"] else 1)
        assert float(row["ms"]) > 0 and int(row["repeats"]) >= 3 and row["context"] == "32" and row["model"] == "timer"
    for first in range(0, len(rows), 4):
        for row in rows[first:first + 4]:
            assert float(row["gain"]) == pytest.approx(float(rows[first]["ms"]) / float(row["ms"]), rel=1e-3)
    assert "table: " in capsys.readouterr().out


def test_the_passes_are_those_that_are_made(tiny, monkeypatch):
    """And the forced forecast is whole."""
    cell = public_models.Cell(32, 44, 2, public_models.torch.device("cpu"))
    ways, passes = public_models.timer_ways(cell), []
    predict = public_models.timer.CacheState.predict
    monkeypatch.setattr(public_models.timer.CacheState, "predict",
                        lambda self, newest: passes.append(type(self.model)) or predict(self, newest))
    for way in ways.values():
        passes.clear()
        made = way.forecast(cell.noise())
        assert passes.count(public_models.timer.Model) == way.passes
        assert getattr(made, "forecast", made).shape[0] == 2
    assert passes.count(public_models.timer_xl_draft.Model) == 0


@pytest.mark.parametrize("horizon, passes", [(64, 2), (16, 1), (17, 2), (9 * 16, 2), (10 * 16, 3)])
def test_a_timesfm_drafts_by_its_longer_head(tiny, tmp_path, monkeypatch, horizon, passes):
    code, rows = measured(tmp_path, "--models", "timesfm", "--contexts", "20", "--horizons", str(horizon))
    assert code == 0 and [row["way"] for row in rows] == [
        "own decode", "own decode, packed", "head-drafted, forced", "head-drafted, bf16", "limit"]
    assert [int(row["passes"]) for row in rows] == [-(-horizon // 16)] * 2 + [passes] * 2 + [1]
    cell, made = public_models.Cell(20, horizon, 1, public_models.torch.device("cpu")), []
    predict = public_models.timer.CacheState.predict
    monkeypatch.setattr(public_models.timer.CacheState, "predict",
                        lambda self, newest: made.append(newest) or predict(self, newest))
    public_models.timesfm_ways(cell)["head-drafted, forced"].forecast(cell.noise())
    assert len(made) == passes


@pytest.mark.parametrize("flags, words", [
    (["--models", "gpt"], "there are timer"), (["--horizons", "long"], "whole numbers"), (["--batches", "0"], "from 1"),
    (["--out", "times.txt"], "must end in .csv"), (["--cells", "x"], "no such flag")])
def test_flags_that_make_no_sense_are_refused(tmp_path, flags, words, capsys):
    assert public_models.main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said
