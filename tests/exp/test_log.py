"""What the program says while it works: every line where it is true, and no note where it is not."""
import shutil
from pathlib import Path

import pytest
import torch
from exp_helpers import DRAFT, PATCH, TARGET, command, results, save, speculate, train, untrained_target
from helpers import tiny_series, write_series

import run


@pytest.fixture
def tell(place, capsys):
    """What is said on stdout since the last question; removes the results, so that the next test is the only one."""
    def said():
        shutil.rmtree("test_results", ignore_errors=True)
        return capsys.readouterr().out
    return said


def test_a_test_on_another_file_is_noted(lab, tell, place):
    assert command(lab, "--test_pred_len 12") == 0
    assert "note:" not in tell()
    write_series(tiny_series(), str(place / "other.csv"))
    shutil.copy(place / "other.csv", lab / "other.csv")
    assert command(lab, "--test_pred_len 12 --data_path other.csv") == 0
    checkpoint = f"{lab}/checkpoints/{TARGET}/checkpoint.pth"
    assert f"note: {checkpoint} was trained on 'tiny.csv' and is tested on 'other.csv'" in tell()
    distil = f"--distill --distill_target_ckpt {checkpoint} --test_windows 2 --train_epochs 1 --model timer_xl_draft"
    for file, said in (("tiny.csv", False), ("other.csv", True)):
        write_series(tiny_series(602), file)
        assert train(*distil.split(), "--data_path", file, "--des", Path(file).stem) == 0
        assert (f"note: {checkpoint} was trained on 'tiny.csv' and teaches its draft on 'other.csv'" in tell()) is said
    predict = f"--quiet --do_predict --root_path {lab} --checkpoints {lab}/checkpoints --test_dir {TARGET}"
    assert run.main(f"{predict} --data_path other.csv --test_pred_len 12".split()) == 0  # its results name the file
    assert "is tested on" not in tell()


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_that_is_not_there_is_noted(lab, tell, monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command(lab, f"--test_pred_len 12 {'--gpu 1' if gpu else ''}") == 0
    assert ("note: GPU 1 was requested, but there is no CUDA device; running on the CPU" in tell()) is gpu


@pytest.mark.parametrize("flags, noted", [
    ("--spec_accept_rule coupling --spec_emit mean", True), ("--spec_accept_rule exact --spec_emit mean", True),
    ("--spec_accept_rule coupling", False), ("--spec_accept_rule simplified --spec_emit mean", False), ("", False)])
def test_means_of_a_rule_that_keeps_a_law_are_noted(lab, tell, flags, noted):
    speculate(lab, flags)
    assert ("note: --spec_emit mean preserves no law" in tell()) is noted


def test_a_test_in_which_hardly_anything_is_accepted_is_noted(lab, tell):
    words = "% of the proposals were accepted, which leaves"
    got = speculate(lab, "--spec_tol 0")
    assert got["acceptance_pct"] == 0 and f"note: only 0.0 {words} 5.00 of 5 target passes" in tell()
    assert speculate(lab, "--spec_tol 1000")["acceptance_pct"] == 100 and words not in tell()
    speculate(lab, "--spec_tol 0", horizon=PATCH)  # nothing is proposed, so nothing is rejected
    assert words not in (said := tell()) and "acceptance: - (0/0), of all proposed: -" in said
    assert command(lab, "--test_pred_len 60") == 0
    assert words not in tell()


def test_a_bound_on_the_acceptance_is_one_of_single_patches(lab, tell):
    got = speculate(lab, "--spec_accept_rule coupling")
    assert f"of at most {got['most_pct']:.2f} %, patch by patch, for these means" in tell()
    speculate(lab, "--spec_accept_rule exact")  # knows no bound
    assert "of at most" not in tell()


def test_results_are_named_and_so_is_a_table(lab, tell):
    assert command(lab, "--test_pred_len 12") == 0
    folder = results()
    said = tell()
    assert f"results: {folder}" in said and "table:" not in said
    assert f"{TARGET}, horizon 12: mse:" in said
    draft = f"--spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth"
    assert command(lab, f"--test_pred_len 24 --compare --test_windows 20 {draft}") == 0
    folder = results()
    said = tell()
    assert f"table: {folder / 'compare.csv'}\nplot: {folder / 'compare.png'}" in said and "results:" not in said


@pytest.mark.parametrize("draft", [True, False])
def test_a_prediction_names_its_files_and_its_cost(lab, tell, monkeypatch, draft):
    monkeypatch.setattr("exp.predict.files.prediction_figure", lambda *_: None)
    flags = f"--spec_tol 1000 --spec_draft_ckpt {lab}/checkpoints/{DRAFT}" if draft else ""
    predict = f"--quiet --do_predict --root_path {lab} --checkpoints {lab}/checkpoints --test_dir {TARGET}"
    assert run.main(f"{predict} --data_path tiny.csv --test_pred_len 24 {flags}".split()) == 0
    folder = results()
    said = tell()
    assert f"forecast: {folder / 'forecast.csv'}: 3 series, 24 steps (h), 2020-01-26 00:00:00 to" in said
    assert f"pictures: 3 of 3 series: {folder}" in said
    assert ("accepted 1 of 1 judged proposals, target passes: 1" in said) is draft


def test_a_training_says_what_it_starts_from(tell):
    write_series(tiny_series(602))
    untrained_target()
    short = ("--train_epochs", 1, "--test_windows", 5)
    assert train(*short) == 0
    said = tell()
    assert said.count("training timer_xl (") == said.count("best validation loss") == 1
    for words in ("note:", "adapting the weights", "resuming"):
        assert words not in said
    assert train(*short, "--resume") == 0
    said = tell()
    assert "resuming at step" in said and "note:" not in said
    assert train(*short, "--resume", "--checkpoints", "elsewhere") == 0
    said = tell()
    assert "note: --resume found no" in said and "starting from the beginning" in said and "resuming at" not in said
    assert train(*short, "--adaptation", "--pretrain_model_path", "target/checkpoint.pth", "--des",
                 "adapted") == 0
    assert "adapting the weights of target/checkpoint.pth" in tell()


def test_a_calibration_is_told_to_be_of_the_next_patch_and_later_ones_apart(tell):
    write_series(tiny_series(602))
    save("checkpoints/t", untrained_target(), seq_len=48, data_path="tiny.csv")
    base = "--quiet --is_training 0 --root_path . --data_path tiny.csv --test_dir t --test_windows 5 --num_samples 4"
    assert run.main(f"{base} --test_pred_len 24 --spec_sigma_mode calibrated".split()) == 0
    said = tell()
    assert "of the NEXT patch" in said and "the bands of paths hold, patch by patch, 50 %: " in said
    assert Path("checkpoints/t/checkpoint_calibration_tiny_48_diag.pth").exists()
    assert run.main(f"{base} --test_pred_len 24".split()) == 0
    assert "of the NEXT patch" not in tell()
