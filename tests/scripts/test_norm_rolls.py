"""The three ways to roll a Timer, side by side in a table and a picture."""
import numpy as np
import pytest
from exp_helpers import assert_picture, save
from helpers import PATCH, rows_of, tiny_series, tiny_timer, write_series
from reference.timer import reference_forecast

from scripts.benchmark import norm_rolls

FLAGS = (f"--quiet --test_dir timer --root_path . --data_path tiny.csv --seq_len {5 * PATCH} --input_token_len {PATCH} "
         f"--test_pred_len {2 * PATCH + 3} --test_windows 2")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_series(tiny_series())


def test_the_ways_are_measured_patch_by_patch(place, tmp_path):
    save("checkpoints/timer", tiny_timer())
    assert norm_rolls.main([*FLAGS.split(), "--out", "ways.png"]) == 0
    rows = rows_of("ways.csv")
    assert list(rows[0]) == norm_rolls.COLUMNS
    assert [(row["way"], row["patch"]) for row in rows] == [
        (way, patch) for way in ("window", "frozen", "patch") for patch in ("all", "1", "2", "3")]
    apart = {(row["way"], row["patch"]): float(row["rms_from_patch_roll"]) for row in rows}
    assert all(apart[way, "1"] == 0 for way in ("window", "frozen"))
    assert all(apart["patch", patch] == 0 for patch in ("1", "2", "3"))
    assert apart["window", "3"] > 0.01 and apart["frozen", "3"] > 0.01
    assert_picture(tmp_path / "ways.png")
    # the first window and the last, each variable by itself
    values = tiny_series().round(5)
    scaled = ((values - values[:420].mean(axis=0)) / values[:420].std(axis=0))[480 - 5 * PATCH:].astype(np.float32)
    errors = []
    for start in (0, len(scaled) - 7 * PATCH - 3):
        made = reference_forecast(tiny_timer(), scaled[start:start + 5 * PATCH], 3, "frozen")[:2 * PATCH + 3]
        errors.append(made - scaled[start + 5 * PATCH:start + 7 * PATCH + 3])
    measured = next(row for row in rows if (row["way"], row["patch"]) == ("frozen", "all"))
    assert float(measured["mse"]) == pytest.approx(np.square(errors).mean(), abs=2e-4)


@pytest.mark.slow
def test_a_small_timer_is_trained_where_it_is_missing(place, monkeypatch):
    small = {"d_model": 16, "n_heads": 2, "d_ff": 32, "e_layers": 1, "input_token_len": PATCH, "test_pred_len": PATCH}
    monkeypatch.setattr(norm_rolls, "SMALL", norm_rolls.SMALL | {"data_path": "tiny.csv", "seq_len": 5 * PATCH})
    monkeypatch.setattr(norm_rolls, "TRAINED", norm_rolls.TRAINED | small | {"val_windows": 3, "test_windows": 1})
    monkeypatch.setattr(norm_rolls, "TESTED", norm_rolls.TESTED | {"test_pred_len": 3 * PATCH, "test_windows": 2})
    trained = []
    for _ in range(2):
        assert norm_rolls.main(["--root_path", ".", "--quiet", "--input_token_len", str(PATCH), "--out", "x.png"]) == 0
        trained += [path.stat().st_mtime_ns for path in norm_rolls.Path("checkpoints").rglob("checkpoint.pth")]
    assert len(trained) == 2 and trained[0] == trained[1]  # once


@pytest.mark.parametrize("flags, words", [
    (["--norm_roll", "patch"], "--norm_roll has no effect"), (["--spec_tol", "1"], "--spec_tol has no effect"),
    (["--out", "ways.csv"], "must end in .png"), (["--ways", "x"], "no such flag")])
def test_flags_that_make_no_sense_are_refused(flags, words, capsys):
    assert norm_rolls.main(flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and words in said
