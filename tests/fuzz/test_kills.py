"""kill -9 at random moments, then the same command again: what it ends with is what an uninterrupted run ends with.

Slow; `pytest tests/fuzz/test_kills.py -m slow --kills 50` kills every kind of run 50 times.
"""
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import DISTIL, SETTING, TRAIN, TRAIN_ROWS, same, untrained_target, weights
from helpers import ROOT, rows_of, save_pair, tiny_series, untimed, write_series
from tqdm import tqdm

import run
from scripts.sweeps import param_sweep

pytestmark = pytest.mark.slow
DRAFT_SETTING = "forecast_test_timer_xl_draft_test_0"
LENGTH = ["--train_epochs", "3", "--val_every", "4"]
DRAFT = "--spec_draft_ckpt given/draft"
GIVEN = ("--quiet --root_path . --data_path tiny.csv --seq_len 48 --input_token_len 12 --test_pred_len 24 "
         "--checkpoints given --test_dir target")
SWEEP = ("--target given/target/checkpoint.pth --draft given/draft/checkpoint.pth --root_path . --data_path tiny.csv "
         "--seq_len 48 --horizon 36 --windows 40 --quiet --grid published --k 1,2 --sigma 0.1,0.3,1 --bias 1,5 "
         "--emit mean,sample --out")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_series(tiny_series(TRAIN_ROWS))
    untrained_target()
    save_pair()
    return tmp_path


@pytest.fixture
def kills(request):
    return request.config.getoption("kills")


def seconds_of(main, argv) -> float:
    start = time.monotonic()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert main(argv) == 0
    return time.monotonic() - start


def killed(main, argv, after: float) -> bool:
    """Runs it in a process of its own and kills that `after` so many seconds; whether it was still at work."""
    child = os.fork()
    if not child:
        tqdm.set_lock(threading.RLock())  # its own is shared with this process, which would wait for a killed holder
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            os._exit(main(argv))
    time.sleep(after)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def moments(kills, seconds):
    """Of each kill: one in every part of such a run."""
    return (seconds * (number + random.Random(number).random()) / kills for number in range(kills))


def assert_clean(folder):
    left = [str(path) for path in Path(folder).rglob("*") if path.name.endswith((".tmp", ".lock"))]
    assert not left


@pytest.mark.parametrize("flags, setting", [
    (["--dropout", "0.3"], SETTING), (["--dropout", "0.3", "--ema", "0.9"], SETTING), (DISTIL.split(), DRAFT_SETTING),
    (DISTIL.replace("--draft_teacher_dropout 0.3", "--draft_rollout 3").split(), DRAFT_SETTING),
], ids=["training", "with averaged weights", "distillation", "on-policy"])
def test_trainings(place, kills, flags, setting):
    argv = [*TRAIN, *LENGTH, *flags, "--resume", "--checkpoints"]
    assert seconds_of(run.main, [*argv, "warm"]) > 0  # the first run of a process takes longer
    seconds, stopped = seconds_of(run.main, [*argv, "whole"]), 0
    shutil.rmtree("test_results")
    for moment in moments(kills, seconds):
        stopped += killed(run.main, [*argv, "cut"], moment)
        stopped += killed(run.main, [*argv, "cut"], moment / 2)  # and the continuation, too
        assert seconds_of(run.main, [*argv, "cut"]) > 0
        for name in ("checkpoint.pth", "resume.pth"):
            assert same(weights("cut", setting, name), weights("whole", setting, name)), (name, moment)
        assert_clean("cut")
        assert_clean("test_results")
        shutil.rmtree("cut")
        shutil.rmtree("test_results")
    assert stopped


def test_a_training_with_dropout_in_two_processes(place, kills):
    def start(folder):
        return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                                 str(ROOT / "run.py"), *TRAIN, *LENGTH, "--ddp", "--dropout", "0.3", "--resume",
                                 "--checkpoints", folder], env=os.environ | {"PYTHONPATH": str(ROOT)},
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    began = time.monotonic()
    assert start("whole").wait(200) == 0
    seconds = time.monotonic() - began
    for moment in moments(-(-kills // 3), seconds / 2):  # the first half is spent on imports
        process = start("cut")
        time.sleep(seconds / 2 + moment)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        assert start("cut").wait(200) == 0
        for name in ("checkpoint.pth", "resume.pth"):
            assert same(weights("cut", SETTING, name), weights("whole", SETTING, name)), (name, moment)
        shutil.rmtree("cut")


@pytest.mark.parametrize("flags, name", [
    ("--is_training 0 --num_samples 20 --save_samples", "target_pl24_samples/samples.npz"),
    (f"--is_training 0 --use_speculative {DRAFT} --spec_debug_accept", "target_pl24_spec_tolerance_mean/"
                                                                       "spec_accept_debug.csv"),
    (f"--is_training 0 --compare {DRAFT}", "target_pl24_compare/compare.csv"),
    ("--do_predict", "target_pl24_predict_tiny/forecast.csv"),
], ids=["samples", "speculation", "comparison", "prediction"])
def test_tests_and_predictions(place, kills, flags, name):
    argv, out = [*GIVEN.split(), *flags.split()], Path("test_results") / name
    seconds = min(seconds_of(run.main, argv) for _ in range(2))
    whole, stopped = contents(out), 0
    for moment in moments(kills, seconds):
        shutil.rmtree("test_results")
        stopped += killed(run.main, argv, moment)
        if out.exists():  # whole, or not at all
            assert contents(out) == whole
        assert seconds_of(run.main, argv) > 0
        assert contents(out) == whole
        assert_clean("test_results")
    assert stopped


def contents(path):
    """What does not depend on how long it took."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}
    frame = pd.read_csv(path, comment="#")
    return frame[[name for name in frame if not name.startswith(("ms_", "seconds", "speed", "faster"))]].to_csv()


def test_sweeps(place, kills):
    assert seconds_of(param_sweep.main, [*SWEEP.split(), "warm.csv"]) > 0
    seconds, stopped = seconds_of(param_sweep.main, [*SWEEP.split(), "whole.csv"]), 0
    for moment in moments(kills, seconds):
        stopped += killed(param_sweep.main, [*SWEEP.split(), "cut.csv"], moment)
        kept = rows_of("cut.csv") if Path("cut.csv").exists() else []
        stopped += killed(param_sweep.main, [*SWEEP.split(), "cut.csv"], moment / 2)
        assert seconds_of(param_sweep.main, [*SWEEP.split(), "cut.csv"]) > 0
        assert all(row in rows_of("cut.csv") for row in kept)  # not measured again
        assert untimed("cut.csv") == untimed("whole.csv")
        assert_clean(".")
        Path("cut.csv").unlink()
    assert stopped


def test_the_comparison_of_these_tests_can_fail(place):
    argv = [*TRAIN, *LENGTH, "--dropout", "0.3", "--checkpoints"]
    assert seconds_of(run.main, [*argv, "whole"]) and seconds_of(run.main, [*argv, "other", "--seed", "1"])
    assert not same(weights("whole"), weights("other"))
    assert torch.load(f"whole/{SETTING}/resume.pth", weights_only=True)["step"] > 20
