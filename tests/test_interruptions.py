"""Ctrl-C, a real SIGINT to a real process: exit code 130, one line, and what was finished can be used."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SMALL, save_pair, write_rows

import run
from exp.evaluate.comparison import compare
from exp.evaluate.evaluation import Interrupted, evaluate
from exp.evaluate.methods import Method
from exp.report.results import DRAFT as DRAFT_ALONE
from exp.report.results import TARGET as TARGET_ALONE
from exp.settings import Settings
from utils.speculative_decoder import Decoded

FLAGS = SMALL.replace("--quiet ", "").split()
DRAFT = "--spec_draft_ckpt given/draft/checkpoint.pth"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows("good.csv", 600)
    save_pair()
    return tmp_path


def interrupt(command: list[str], sign: str) -> tuple[int, str]:
    """Starts it, sends SIGINT as soon as `sign` stands in its output; returns exit code and all output."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                               env=os.environ | {"PYTHONUNBUFFERED": "1"})
    said = b""
    while sign.encode() not in said:
        some = os.read(process.stdout.fileno(), 4096)
        assert some, said.decode()
        said += some
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=180)
    text = (said + rest).decode()
    assert text.splitlines()[-1].startswith("interrupted: "), text
    assert "Traceback" not in text
    return process.returncode, text


@pytest.mark.slow
def test_an_interrupted_training_leaves_a_checkpoint_and_goes_on(workplace, capsys):
    train = [str(ROOT / "run.py"), *FLAGS, "--train_epochs", "500", "--val_every", "5", "--patience", "9999"]
    code, said = interrupt(train, "step 10:")
    assert code == 130 and "step/s" in said and "loss=" in said  # rate and running loss
    assert {"checkpoint.pth", "args.json", "resume.pth"} <= set(os.listdir("checkpoints/forecast_test_timer_xl_test_0"))
    assert run.main([*train[1:], "--resume", "--quiet", "--train_epochs", "1"]) == 0
    assert "resuming at step" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_test_leaves_the_metrics_of_its_windows(workplace):
    test = f"--is_training 0 --checkpoints given --test_dir target --batch_size 1 --use_speculative {DRAFT}"
    write_rows("good.csv", 6000)
    code, said = interrupt([str(ROOT / "run.py"), *FLAGS, *test.split()], "acceptance=")
    assert code == 130 and "of 1165 windows" in said
    folder, = Path("test_results").iterdir()
    assert os.listdir(folder) == ["metrics_partial.json"]
    kept = json.loads((folder / "metrics_partial.json").read_text())
    assert len(kept["rows"]) == 1 and kept["windows_of_the_split"] == 1165
    done = kept["rows"][0]["windows"]
    assert 0 < done < 1165 and f"interrupted after the first {done} of 1165 windows; results so far: {folder}" in said


@pytest.mark.slow
def test_an_interrupted_benchmark_ends_in_one_line(workplace):
    measure = ["-m", "scripts.benchmark.decode_speed", "--cells", "preset:96:96:1", "--budget_s", "600", "--out",
               str(workplace / "speed.csv")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert interrupt(measure, "planner")[0] == 130


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
