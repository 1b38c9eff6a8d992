"""A process of torchrun that dies ends the run within seconds, and a line names it."""
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from exp_helpers import TRAIN, TRAIN_ROWS, untrained_target
from helpers import ROOT, tiny_series, write_series

from exp import processes, program
from exp.processes import ended_by_another, is_running, silent_code, told_by_another

TEST = [*TRAIN[:TRAIN.index("--d_model")], "--is_training", "0", "--checkpoints", ".", "--test_dir", "target"]
# what process 1 does in the third forecast, or step
DYING = """
import os, signal, sys, time
import torch
import exp.evaluate.methods
import run
from exp.processes import leave
how, rank, *argv = sys.argv[1:]
def failing(real, done=[]):
    def call(*args, **kwargs):
        done.append(1)
        if os.environ["RANK"] == rank and len(done) == 3:
            print("at", time.time(), flush=True)
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("a fault")
        return real(*args, **kwargs)
    return call
exp.evaluate.methods.decode_alone = failing(exp.evaluate.methods.decode_alone)
torch.optim.Adam.step = failing(torch.optim.Adam.step)
leave(run.main(argv))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how, rank, work, words", [
    ("killed", 1, "test", "error: process 2 of 2 (rank 1) has died, killed or out of memory (pid "),
    ("killed", 0, "training", "error: process 1 of 2 (rank 0) has died, killed or out of memory (pid "),
    ("failed", 1, "test", "error: process 2 of 2 (rank 1) has failed, and the others end with it: ValueError: a fault"),
])
def test_the_run_ends_with_a_line_that_names_the_process(tmp_path, monkeypatch, how, rank, work, words):
    monkeypatch.chdir(tmp_path)
    write_series(tiny_series(TRAIN_ROWS))
    untrained_target()
    Path("dying.py").write_text(DYING)
    flags = TRAIN if work == "training" else TEST
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                           "dying.py", how, str(rank), *flags, "--batch_size", "8", "--ddp"], capture_output=True,
                          text=True, timeout=100, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    died = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("at "))
    assert done.returncode != 0 and time.time() - died < 15
    told = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "interrupted: "))]
    assert len(told) == 1 and told[0].startswith(words), done.stderr
    assert done.stderr.count("ValueError: a fault\n") == (2 if how == "failed" else 0)  # the traceback, and the line
    assert "Connection" not in done.stderr  # the other one's traceback would hide the line
    assert not list(Path().rglob("metrics.json"))


class Store(dict):
    """What torchrun keeps, as far as it is asked here."""

    def check(self, names):
        return all(name in self for name in names)

    def get(self, name):
        return self[name].encode()

    def set(self, name, value):
        self[name] = value

    def add(self, name, number):
        self[name] = number + dict.get(self, name, 0)
        return self[name]


@pytest.fixture
def store(monkeypatch):
    """That of the first of three processes."""
    for name, value in {"WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3, "RANK": 0, "TORCHELASTIC_RUN_ID": "x",
                        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": 0}.items():
        monkeypatch.setenv(name, str(value))
    made = Store()
    monkeypatch.setattr(processes, "_stores", [made])
    return made


@pytest.fixture
def ended():
    """Number of a process that has been killed, and that nobody has waited for."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert is_running(child.pid)
    child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_running(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child.pid)
    yield child.pid
    child.wait()
    assert not is_running(child.pid)


def test_the_dead_are_missed_and_named_once(store, ended, monkeypatch):
    said, host = [], processes.socket.gethostname()
    store.update({"process_0_0": f"{ended} {host}", "process_0_1": f"{os.getpid()} {host}"})
    assert not ended_by_another(said.append)  # itself, one that runs and one that has not come yet
    store["process_0_2"] = f"{ended} elsewhere"  # whose processes cannot be seen from here
    assert not ended_by_another(said.append)
    store["process_0_2"] = f"{ended} {host}"
    monkeypatch.setenv("RANK", "2")
    assert program.exit_code(lambda: None, "", "") == 0
    monkeypatch.setenv("RANK", "0")
    assert not ended_by_another(said.append) and not said
    del store["left_0_2"]  # what exit_code has left there
    assert ended_by_another(said.append) and ended_by_another(said.append)
    assert len(said) == 1 and f"process 3 of 3 (rank 2) has died, killed or out of memory (pid {ended}" in said[0]
    assert told_by_another()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun has started all of them again
    assert not ended_by_another(said.append)


def test_an_error_is_told_once_and_ends_the_others(store):
    assert not ended_by_another(lambda text: None, patience=0.1)
    assert [told_by_another() for _ in range(3)] == [False, True, True]
    assert ended_by_another(lambda text: None)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "No space left on device", "x.csv")])
def test_what_another_machine_or_device_may_lack_is_told_with_the_process(store, capsys, error):
    def fail():
        raise error
    assert program.exit_code(fail, "--batch_size", "nothing") == 2
    assert capsys.readouterr().err.startswith("error: process 1 of 3 (rank 0): ")


@pytest.mark.parametrize("local, code", [("3", 0), ("2", 1)])
def test_torchrun_of_every_machine_reports_a_failure(store, monkeypatch, local, code):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert silent_code() == code
