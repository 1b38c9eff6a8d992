"""Ctrl-C and SIGTERM, real signals to real processes: exit code 130 or 143, one line, and what was finished is kept."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, SMALL, rows_of, save_pair, write_rows

import run
from exp.evaluate.comparison import compare
from exp.evaluate.evaluation import Interrupted, evaluate
from exp.evaluate.methods import AloneMethod, Method
from exp.exp_forecast import Exp_Forecast
from exp.report.results import DRAFT as DRAFT_ALONE
from exp.report.results import TARGET as TARGET_ALONE
from exp.settings import Settings
from utils.decoded import Decoded

FLAGS = SMALL.replace("--quiet ", "").split()
DRAFT = "--spec_draft_ckpt given/draft/checkpoint.pth"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows("good.csv", 600)
    save_pair()
    return tmp_path


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def stop(request):
    """Of a process group, as a terminal, `timeout` and a batch system send it: to the workers of a loader too."""
    return request.param


def interrupt(command: list[str], sign: str, stop: signal.Signals) -> str:
    """Starts it, sends the signal to its group as soon as `sign` stands in its output; returns all output."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                               env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
                               start_new_session=True)
    said = b""
    while sign.encode() not in said:
        some = os.read(process.stdout.fileno(), 4096)
        assert some, said.decode()
        said += some
    os.killpg(process.pid, stop)
    rest, _ = process.communicate(timeout=180)
    text = (said + rest).decode()
    assert text.splitlines()[-1].startswith("interrupted: "), text
    assert "Traceback" not in text
    assert process.returncode == 128 + stop, text
    return text


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_training_leaves_a_checkpoint_and_goes_on(workplace, capsys, stop, workers):
    train = [str(ROOT / "run.py"), *FLAGS, "--train_epochs", "500", "--val_every", "5", "--patience", "9999",
             "--num_workers", str(workers)]
    said = interrupt(train, "step 10:", stop)
    assert "step/s" in said and "loss=" in said  # rate and running loss
    assert {"checkpoint.pth", "args.json", "resume.pth"} <= set(os.listdir("checkpoints/forecast_test_timer_xl_test_0"))
    assert run.main([*train[1:], "--resume", "--quiet", "--train_epochs", "1"]) == 0
    assert "resuming at step" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_test_leaves_the_metrics_of_its_windows(workplace, stop):
    test = f"--is_training 0 --checkpoints given --test_dir target --batch_size 1 --use_speculative {DRAFT}"
    write_rows("good.csv", 6000)
    said = interrupt([str(ROOT / "run.py"), *FLAGS, *test.split()], "acceptance=", stop)
    folder, = Path("test_results").iterdir()
    assert sorted(os.listdir(folder)) == ["metrics_partial.json", "settings.json"]
    kept = json.loads((folder / "metrics_partial.json").read_text())
    assert len(kept["rows"]) == 1 and kept["windows_of_the_split"] == 1165
    done = kept["rows"][0]["windows"]
    assert 0 < done < 1165 and f"interrupted after the first {done} of 1165 windows; results so far: {folder}" in said


@pytest.mark.slow
def test_an_interrupted_comparison_leaves_the_metrics_of_its_windows(workplace, stop):
    compare_all = f"--is_training 0 --compare --checkpoints given --test_dir target --batch_size 1 {DRAFT}"
    write_rows("good.csv", 6000)
    interrupt([str(ROOT / "run.py"), *FLAGS, *compare_all.split()], "acceptance=", stop)
    folder, = Path("test_results").iterdir()
    assert sorted(os.listdir(folder)) == ["metrics_partial.json", "settings.json"]


@pytest.mark.slow
def test_an_interrupted_prediction_leaves_whole_files(workplace, stop):
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 60)))
    values.add_prefix("v").to_csv("wide.csv", index=False)
    predict = "--do_predict --checkpoints given --test_dir target --data_path wide.csv --pictures 60"
    interrupt([str(ROOT / "run.py"), *FLAGS, *predict.split()], "<00:0", stop)
    folder, = Path("test_results").iterdir()
    left = set(os.listdir(folder))
    pictures = {name for name in left if name.endswith(".png")}
    assert left - pictures == {"forecast.csv", "forecast.json", "settings.json"}  # and nothing temporary
    assert 1 < len(pictures) < 60


@pytest.mark.slow
def test_an_interrupted_sweep_keeps_its_rows(workplace, stop):
    files = "--target given/target/checkpoint.pth --draft given/draft/checkpoint.pth --root_path . --data_path good.csv"
    files += " --seq_len 48 --horizon 36 --out kept.csv"
    grid = "--grid published --k 1,2 --sigma 0.1,0.2,0.3,0.4 --bias 1,2,3,4,5,6,7,8"
    interrupt(["-m", "scripts.sweeps.param_sweep", *f"{files} {grid}".split()], "mse=", stop)
    assert 1 <= len(rows_of("kept.csv")) < 66
    assert not list(Path().rglob("*.tmp"))


@pytest.mark.slow
def test_an_interrupted_benchmark_ends_in_one_line(workplace, stop):
    measure = ["-m", "scripts.benchmark.decode_speed", "--cells", "preset:96:96:1", "--budget_s", "600", "--out",
               str(workplace / "speed.csv")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        interrupt(measure, "planner", stop)


def test_two_sigterm_at_once_do_not_interrupt_what_is_being_saved(workplace, monkeypatch, capsys):
    """As `timeout` sends them: to the process, and to its group."""
    keep, times, decode = Exp_Forecast._keep, iter(range(99)), AloneMethod.decode

    def stopped(*arguments):
        if next(times) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return decode(*arguments)

    def stopped_again(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        keep(*arguments)
    monkeypatch.setattr(AloneMethod, "decode", stopped)
    monkeypatch.setattr(Exp_Forecast, "_keep", stopped_again)
    before = signal.getsignal(signal.SIGTERM)
    assert run.main(f"{SMALL} --is_training 0 --checkpoints given --test_dir target --batch_size 8".split()) == 143
    said = capsys.readouterr().err
    assert said.startswith("interrupted: ") and said.count("\n") == 1
    kept = json.loads(Path("test_results/target_pl36/metrics_partial.json").read_text())
    assert kept["rows"][0]["windows"] == 8
    assert signal.getsignal(signal.SIGTERM) is before  # of whoever called it in Python


def test_a_program_that_was_started_to_outlive_sigterm_does(workplace, monkeypatch):
    decode = AloneMethod.decode

    def stopped(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return decode(*arguments)
    monkeypatch.setattr(AloneMethod, "decode", stopped)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run.main(f"{SMALL} --is_training 0 --checkpoints given --test_dir target".split()) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


class Interrupting(Method):
    """Forecasts zeros, and is interrupted in the third batch."""

    def __init__(self, last=3):
        self.calls, self.last = 0, last

    def decode(self, context, observer=None):
        self.calls += 1
        if self.calls == self.last:
            raise KeyboardInterrupt
        return Decoded(torch.zeros(len(context), 4, context.shape[2]))


CPU = torch.device("cpu")
BATCH = torch.zeros(3, 8, 2), torch.full((3, 4, 2), 2.0)


def test_what_is_kept_is_the_finished_batches():
    with pytest.raises(Interrupted) as stop:
        evaluate({"tested": Interrupting()}, [BATCH] * 5, CPU, quiet=True)
    out, = stop.value.so_far.values()
    assert out.windows == 6 and out.point.result()["mse"] == 4.0


def test_all_rows_of_an_interrupted_comparison_are_of_equal_windows(tmp_path):
    methods = {TARGET_ALONE: Interrupting(99), DRAFT_ALONE: Interrupting(3)}
    with pytest.raises(Interrupted) as stop:
        compare(methods, None, [BATCH] * 5, Settings().with_("run", quiet=True), CPU, tmp_path)
    assert not list(tmp_path.iterdir())
    assert [out.windows for out in stop.value.so_far.values()] == [6, 6]


def test_nothing_is_kept_of_a_test_without_a_finished_batch():
    with pytest.raises(KeyboardInterrupt) as stop:
        evaluate({"tested": Interrupting(1)}, [BATCH], CPU, quiet=True)
    assert not isinstance(stop.value, Interrupted)
