"""The fidelity table: tolerance 0 deviates by nothing and costs every pass, a wide one costs one."""
import csv

import pytest
from helpers import PATCH, tiny_draft, tiny_target

from models.checkpoint import save_checkpoint
from scripts.benchmark import fidelity


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{0.3 * (i % 24):.2f},{(i * 7 % 11) / 5:.2f}\n" for i in range(600))
    (tmp_path / "two.csv").write_text("a,b\n" + rows)
    target = tiny_target(norm_mode="causal", norm_window=4)
    for name, model in (("timer_xl", target), ("timer_xl_draft", tiny_draft(target))):
        settings = model.config.as_dict() | {"model": name, "seq_len": 4 * PATCH}
        save_checkpoint(tmp_path / "checkpoints" / name, model.state_dict(), settings)
    return (f"--test_dir timer_xl --spec_draft_ckpt checkpoints/timer_xl_draft/checkpoint.pth --root_path . "
            f"--data_path two.csv --test_pred_len {5 * PATCH} --quiet")


def test_one_row_for_every_tolerance(place):
    assert fidelity.main(f"{place} --tolerances 0,1e6 --test_windows 9 --out out/f.csv".split()) == 0
    with open("out/f.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["repropose"], row["tolerance"]) for row in rows] == [
        ("target alone", ""), ("draft alone", ""), ("draft", "0.0"), ("draft", "1000000.0"), ("target", "0.0"),
        ("target", "1000000.0"), ("corrected", "0.0"), ("corrected", "1000000.0")]
    assert float(rows[0]["rms_from_target"]) == 0 and float(rows[1]["rms_from_target"]) > 0.01
    for exact, wide in (rows[2:4], rows[4:6], rows[6:]):
        assert float(exact["rms_from_target"]) < 1e-5 and float(exact["target_passes"]) == 5
        assert float(wide["rms_from_target"]) > 1e-3 and float(wide["target_passes"]) == 1


def test_tolerances_that_are_no_numbers_are_refused(place, capsys):
    assert fidelity.main(f"{place} --tolerances 0.1,wide".split()) == 2
    assert "--tolerances 0.1,wide" in capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    ("--repropose drafts", ["--repropose drafts", "corrected"]), ("--tolerances=-0.1,0.2", ["-0.1", "at least 0"]),
    ("--tolerances nan", ["nan", "at least 0"]), ("--spec_k 2", ["--spec_k", "no effect"]),
    ("--amp", ["--amp", "no effect"]), ("--is_training 1", ["--is_training", "no effect"]),
    ("--do_predict", ["--do_predict", "no effect"]), ("--compare", ["--compare", "no effect"])])
def test_what_would_be_ignored_or_mislabelled_is_refused(place, capsys, flags, words):
    assert fidelity.main(f"{place} {flags}".split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(word in said for word in words)
