"""How the program ends: its exit code and its one line, in a process of its own too."""
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input.cases import TEST, assert_one_error_line, just_target
from helpers import ROOT, SMALL

import run
from models.registry import MODELS


def test_the_base_flags_of_these_tests_are_good(workplace, capsys):
    # else every case could fail for another reason than its own
    just_target()
    assert run.main(f"{SMALL} {TEST}".split()) == 0, capsys.readouterr().err


@pytest.mark.slow
def test_a_process_ends_with_code_2_and_without_a_traceback(workplace):
    command = [sys.executable, str(ROOT / "run.py"), *SMALL.split(), "--data_path", "nowhere.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert_one_error_line(done.stderr, ["nowhere.csv"])
    assert "Traceback" not in done.stdout + done.stderr
    assert not Path("checkpoints").exists() and not Path("test_results").exists()


@pytest.mark.parametrize("rank, devices", [("1", "0"), ("2", "0,1")])
def test_more_processes_than_devices_do_not_wait_for_each_other(workplace, capsys, monkeypatch, rank, devices):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert run.main(f"{SMALL} --ddp --devices {devices}".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["--ddp", f"process {int(rank) + 1}", "--devices"])


@pytest.mark.slow
@pytest.mark.parametrize("flags, launcher, words", [
    (f"--ddp {TEST}", "--standalone", ["--ddp is for training", "--is_training 0"]),
    ("--ddp --data_path nowhere.csv", "--master_port 29641", ["nowhere.csv"]),  # when they have met
    (TEST, "--standalone", ["torchrun", "each of which would do all of the work"]),
])
def test_of_several_processes_one_tells_of_an_error(workplace, flags, launcher, words):
    just_target()
    command = [sys.executable, "-m", "torch.distributed.run", *launcher.split(), "--nproc_per_node", "2",
               str(ROOT / "run.py"), *SMALL.split(), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(told) == 1, done.stderr
    assert_one_error_line(told[0] + "\n", words)
    assert f'{ROOT / "run.py"}", line' not in done.stderr  # the traceback is torchrun's own
    assert not Path("checkpoints").exists() and not Path("test_results").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 1 GiB.\n more"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 TB")])
def test_exhausted_memory_is_one_line(workplace, capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error
    just_target()
    monkeypatch.setitem(MODELS, "timer_xl", fail)
    assert run.main(f"{SMALL} {TEST}".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["out of memory", "--batch_size"])


def test_an_error_of_the_program_itself_is_not_hidden(workplace, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")
    just_target()
    monkeypatch.setitem(MODELS, "timer_xl", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run.main(f"{SMALL} {TEST}".split())


INTERRUPTED = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
import run
sys.exit(run.main(["--is_training", "0"]))
"""


def test_an_interruption_while_loading_ends_with_code_130():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted") and done.stderr.count("\n") == 1
