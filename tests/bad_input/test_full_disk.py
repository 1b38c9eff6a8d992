"""A file of any kind that cannot be written: one line that names it and the remedy, and nothing half-written.

The disk is as good as full: files may not grow above a limit (RLIMIT_FSIZE), or are /dev/full.
"""
import errno
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from bad_input.cases import DRAFT, PREDICT, SPECULATIVE, TEST, assert_one_error_line, tree
from helpers import ROOT, SMALL, save_pair

import run
from models.checkpoint import save_tensors
from scripts.sweeps import analyze_sweep_results, param_sweep
from utils.files import append_text, refuse_unwritable, replace_when_done

TRAINED = "checkpoints/forecast_test_timer_xl_test_0"
SWEEP = (f"--target given/target/checkpoint.pth --draft {DRAFT} --root_path . --data_path good.csv --seq_len 48 "
         "--horizon 36 --windows 4 --quiet --grid published --k 1,2 --sigma 0.5 --bias 1 --out s.csv")


@contextmanager
def files_up_to(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def pair(workplace):
    save_pair()
    times = pd.date_range("2024-01-01", periods=200, freq="h")
    pd.DataFrame({"date": times, "a": np.sin(np.arange(200)).round(3)}).to_csv("times.csv", index=False)


@pytest.mark.parametrize("flags, limit, name", [
    ("", 100, f"{TRAINED}/args.json"),
    ("", 5_000, f"{TRAINED}/checkpoint.pth"),
    ("", 25_000, f"{TRAINED}/resume.pth"),
    (TEST, 100, "test_results/target_pl36/metrics.json"),
    (f"{TEST} --visualize", 5_000, "test_results/target_pl36/forecast_00000.png"),
    (f"{TEST} --output_attention --test_seq_len 96", 2_200, "test_results/target_pl36/attention.npz"),
    (f"{TEST} --num_samples 9 --save_samples", 5_000, "test_results/target_pl36_samples/samples.npz"),
    (f"{TEST} --num_samples 9", 5_000, "test_results/target_pl36_samples/pit.png"),
    (f"{TEST} --num_samples 9 --spec_sigma_mode calibrated", 100,
     "given/target/checkpoint_calibration_good_48_diag.pth"),
    (f"{SPECULATIVE} --spec_debug_accept", 2_200,
     "test_results/target_pl36_spec_tolerance_mean/spec_accept_debug.csv"),
    (f"{TEST} --compare --spec_draft_ckpt {DRAFT}", 100, "test_results/target_pl36_compare/compare.csv"),
    (f"{TEST} --compare --spec_draft_ckpt {DRAFT}", 5_000, "test_results/target_pl36_compare/compare.png"),
    (f"{PREDICT} --data_path times.csv", 100, "test_results/target_pl36_predict_times/forecast.csv"),
    (f"{PREDICT} --data_path times.csv --test_pred_len 1", 100, "test_results/target_pl1_predict_times/forecast.json"),
    (f"{PREDICT} --data_path times.csv", 5_000, "test_results/target_pl36_predict_times/forecast_000_a.png"),
], ids=lambda value: value.rpartition("/")[2] if isinstance(value, str) and "/" in value and " " not in value else "")
def test_the_line_names_the_file_and_nothing_is_half_written(pair, capsys, flags, limit, name):
    with files_up_to(limit):
        code = run.main(f"{SMALL} {flags}".split())
    assert code == 2
    assert_one_error_line(capsys.readouterr().err, ["File too large", name, "ulimit"])
    assert not Path(name).exists() and not list(Path().rglob(".*.tmp"))


@pytest.mark.parametrize("main, flags, limit, name", [
    (param_sweep.main, SWEEP, 100, "s.csv"),
    (analyze_sweep_results.main, "s.csv --out p", 5_000, "p/errors_by_passes.png")])
def test_a_sweep_that_cannot_be_written_names_the_file(pair, capsys, main, flags, limit, name):
    if main is analyze_sweep_results.main:
        assert param_sweep.main(SWEEP.split()) == 0
    with files_up_to(limit):
        assert main(flags.split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["File too large", name, "ulimit"])
    assert not Path(name).exists() and not list(Path().rglob(".*.tmp"))


@pytest.mark.parametrize("log", ["result_long_term_forecast.txt", "result_inference_summary.txt",
                                 "result_inference_breakdown.txt"])
def test_a_text_log_on_a_full_disk_is_named(pair, capsys, log):
    Path(log).symlink_to("/dev/full")
    assert run.main(f"{SMALL} {TEST} --trace_inference_breakdown".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["No space left on device", log, "free some space"])


class FullWriter:
    """Of TensorBoard: a file of events that does not even take the first value."""

    def __init__(self, folder):
        pass

    def add_scalar(self, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_events_of_tensorboard_on_a_full_disk_are_named(workplace, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=FullWriter))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # restored after the test
    assert run.main(SMALL.split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["No space left", f"{TRAINED}/tensorboard", "free some space"])


def test_a_failed_checkpoint_leaves_the_older_one(tmp_path):
    save_tensors(tmp_path / "a.pth", {"a": torch.zeros(4)})
    before = tree(tmp_path)
    with files_up_to(2_000), pytest.raises(OSError, match="File too large") as caught:
        save_tensors(tmp_path / "a.pth", {"a": torch.zeros(5_000)})
    assert caught.value.filename == str(tmp_path / "a.pth")
    assert tree(tmp_path) == before


def test_a_folder_in_place_of_the_file_is_named_and_not_what_lay_beside(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(IsADirectoryError) as caught, replace_when_done(tmp_path / "a.txt") as beside:
        beside.write_text("whole")
    assert caught.value.filename == str(tmp_path / "a.txt")
    with pytest.raises(IsADirectoryError, match="a.txt"):
        append_text(tmp_path / "a.txt", "line")


def test_an_error_about_something_else_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, replace_when_done(tmp_path / "a.txt"):
        (tmp_path / "other.txt").read_text()
    assert caught.value.filename == str(tmp_path / "other.txt")
    with pytest.raises(BrokenPipeError) as closed, replace_when_done(tmp_path / "a.txt"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")  # of a message about the progress
    assert closed.value.filename is None


@pytest.mark.parametrize("place, words", [
    ("good.csv/c", ["good.csv is a file"]), ("x" * 300, ["File name too long"]), ("loop/c", ["leads back to itself"]),
    ("dangling", ["leads nowhere"])], ids=["file", "name too long", "loop", "dangling link"])
def test_checkpoints_that_cannot_be_written_are_refused_before_the_training(workplace, capsys, monkeypatch, place,
                                                                            words):
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("it was trained"))
    assert run.main(f"{SMALL} --checkpoints {place}".split()) == 2
    assert_one_error_line(capsys.readouterr().err, [place, *words])
    assert not Path("test_results").exists()


def test_checkpoints_without_permission_are_refused_before_the_training(workplace, capsys, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and allowed(path, mode))
    Path("locked").mkdir()
    assert run.main(f"{SMALL} --checkpoints locked".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["no permission", "locked", "--checkpoints"])


def test_a_link_that_leads_nowhere_is_not_taken_for_a_free_name(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Exception, match="leads nowhere.*--des"):
        refuse_unwritable(tmp_path / "link" / "a", "--des")


@pytest.mark.slow
def test_a_process_on_a_full_disk_ends_in_one_line(workplace):
    """As a shell limits it: no simulation within Python."""
    command = f"ulimit -f 8; exec {sys.executable} {ROOT / 'run.py'} {SMALL}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert_one_error_line(done.stderr, ["File too large", f"{TRAINED}/checkpoint.pth"])
