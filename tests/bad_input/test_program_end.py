"""How the program ends: its exit code and its one line, in a process of its own too."""
import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input.cases import TEST, assert_one_error_line, just_target
from helpers import ROOT, SMALL, save_pair

import run
from exp import program
from models.registry import MODELS
from scripts.sweeps import param_sweep


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
    ("--ddp --do_predict --test_dir given", "--standalone", ["--ddp is for training and testing", "--do_predict"]),
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
    monkeypatch.setattr(MODELS["timer_xl"], "for_weights", fail)
    assert run.main(f"{SMALL} {TEST}".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["out of memory", "--batch_size"])


def test_an_error_of_the_program_itself_is_not_hidden(workplace, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")
    just_target()
    monkeypatch.setattr(MODELS["timer_xl"], "for_weights", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run.main(f"{SMALL} {TEST}".split())


def ended(command, **environment):
    """(exit code, stdout, stderr) of a shell's command in a process of its own; $RUN is run.py."""
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=100,
                          env=os.environ | {"RUN": f"{sys.executable} {ROOT / 'run.py'} {SMALL} {TEST}"} | environment,
                          check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command, code, lines", [
    # 128 + SIGPIPE, as of a program that the pipe itself ended. The reader is gone long before the first line; after
    # one line it may still be there for the last
    ("$RUN | head -n 0", 141, 0),
    ("$RUN 2>&1 | head -n 0", 141, 0),
    ("$RUN --help | head -n 1", 0, 1),
    ("$RUN >&-", 0, 0),
    ("$RUN >&- 2>&-", 0, 0),
], ids=["reader leaves", "reader of both leaves", "reader of the help leaves", "closed stdout", "both closed"])
def test_a_stream_that_nobody_reads_is_no_error(workplace, command, code, lines):
    just_target()
    got, said, complaint = ended(command)
    assert (got, said.count("\n"), complaint) == (code, lines, "")


@pytest.mark.slow
def test_a_full_disk_behind_stdout_is_named(workplace):
    just_target()
    code, _, complaint = ended("$RUN > /dev/full")
    assert code == 2
    assert_one_error_line(complaint, ["No space left on device", "standard output", "free some space"])


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {
    "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}], ids=["PYTHONIOENCODING", "LC_ALL"])
def test_a_terminal_without_the_letters_of_a_path_shows_them_escaped(workplace, environment):
    just_target()
    Path("given").rename("gegebün")
    code, said, complaint = ended("$RUN --checkpoints gegebün", **environment)
    assert (code, complaint) == (0, "") and "mse:" in said
    code, said, complaint = ended("$RUN --checkpoints nirgendwü", **environment)
    assert code == 2
    assert_one_error_line(complaint, ["nirgendw", "does not exist"])


def test_a_name_that_is_no_text_can_be_used_and_written_down(workplace, capsys):
    just_target()
    os.rename(b"given/target", b"given/t\xff")
    assert run.main([*f"{SMALL} --is_training 0 --checkpoints given --test_dir".split(), os.fsdecode(b"t\xff")]) == 0
    assert "t\\udcff" in Path("result_long_term_forecast.txt").read_text()


def test_a_name_with_a_line_break_does_not_break_the_line(workplace, capsys):
    assert run.main([*SMALL.split(), "--data_path", "no\nwhere\x1b[2J.csv"]) == 2
    assert_one_error_line(capsys.readouterr().err, [r"no\nwhere\x1b[2J.csv does not exist"])


@pytest.mark.parametrize("flags", [f"{TEST} --data_path loop/a.csv", f"{TEST} --root_path loop",
                                   f"{TEST} --test_dir loop",
                                   "--is_training 0 --checkpoints loop --test_dir target",
                                   f"{TEST} --test_file_name loop", "--checkpoints loop", "--model_id loop",
                                   f"{TEST} --use_speculative --spec_draft_ckpt loop",
                                   "--adaptation --pretrain_model_path loop",
                                   "--model timer_xl_draft --distill --distill_target_ckpt loop"])
def test_a_link_that_leads_back_to_itself_is_one_line(workplace, capsys, flags):
    just_target()
    for place in ("loop", "given/loop", "given/target/loop", "checkpoints/forecast_loop_timer_xl_test_0"):
        Path(place).parent.mkdir(exist_ok=True)
        Path(place).symlink_to(Path(place).name)
    assert run.main(f"{SMALL} {flags}".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["loop"])
    assert not Path("test_results").exists()


@pytest.mark.parametrize("flags", ["--target loop --draft given/target/checkpoint.pth",
                                   "--target given/target/checkpoint.pth --draft loop",
                                   "--target given/target/checkpoint.pth --draft given/draft/checkpoint.pth "
                                   "--root_path loop --data_path a.csv --seq_len 48"])
def test_so_it_is_in_a_sweep(workplace, capsys, flags):
    save_pair()
    Path("loop").symlink_to("loop")
    assert param_sweep.main(flags.split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["loop", "does not exist"])


@pytest.mark.slow
@pytest.mark.parametrize("command, code", [("$RUN", 0), (f"{sys.executable} {ROOT}/scripts/sweeps/"
                                                         "analyze_sweep_results.py nowhere.csv", 2)])
def test_a_backend_that_matplotlib_does_not_know_is_no_matter(workplace, command, code):
    just_target()
    got, _, complaint = ended(command, MPLBACKEND="nonsense")
    assert got == code and "Traceback" not in complaint


def test_a_folder_that_is_gone_is_named(workplace, capsys, monkeypatch):
    def gone(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    monkeypatch.setattr(os, "getcwd", gone)
    assert run.main(SMALL.split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["No such file or directory", "the current folder"])


INTERRUPTED = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
import run
from exp import program
sys.exit(run.main(["--is_training", "0"]))
"""


def test_an_interruption_while_loading_ends_with_code_130():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted") and done.stderr.count("\n") == 1


def test_freed_memory_is_kept_where_there_is_glibc(workplace, monkeypatch):
    just_target()
    asked, real = [], program.keep_memory
    monkeypatch.setattr(program, "keep_memory", lambda: asked.append(real()))
    assert run.main(f"{SMALL} {TEST}".split()) == 0
    assert asked == [platform.libc_ver()[0] == "glibc"]
    monkeypatch.setattr(program.ctypes, "CDLL", lambda name: object())
    assert real() is False
