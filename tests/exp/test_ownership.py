"""A folder belongs to one set of settings and to one process at a time; what is lost on a kill is litter."""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from exp_helpers import DRAFT, SETTING, TARGET, TRAIN, command, metrics, same, train, untrained_target, weights
from helpers import ROOT, tiny_series, write_series

from exp import ownership
from exp.ownership import LOCK, OWNER, locked_file, locked_folder, results_folder
from utils.errors import UserError
from utils.files import digest

HOLD = """
import sys, time
from exp.ownership import locked_folder
with locked_folder(__import__("pathlib").Path("folder"), "wait"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_series(tiny_series(602))
    return tmp_path


def start(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT)})


def folders():
    return sorted(folder.name for folder in Path("test_results").iterdir())


# --- checkpoints

@pytest.mark.parametrize("flag, then, now", [("--learning_rate", "0.003", "0.001"), ("--seq_len", "48", "36"),
                                             ("--seed", "2021", "7"), ("--norm_mode", "window", "causal")])
def test_a_training_with_other_settings_is_refused_and_loses_nothing(place, capsys, flag, then, now):
    assert train("--train_epochs", 1) == 0
    before, kept = weights(), (Path("checkpoints") / SETTING / "args.json").read_bytes()
    capsys.readouterr()
    assert train("--train_epochs", 1, flag, now) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{flag} {then} (here {now})" in said and "--des" in said
    assert same(weights(), before) and (Path("checkpoints") / SETTING / "args.json").read_bytes() == kept
    assert train("--train_epochs", 1, flag, now, "--des", "other") == 0


def test_the_same_settings_train_again_also_on_a_longer_series(place):
    assert train("--train_epochs", 1) == 0
    before = weights()
    write_series(tiny_series(650))
    assert train("--train_epochs", 1, "--quiet") == 0
    assert not same(weights(), before)


def test_another_file_of_the_same_name_is_refused(place, capsys):
    assert train("--train_epochs", 1) == 0
    Path("other").mkdir()
    write_series(tiny_series(650), "other/tiny.csv")
    assert train("--train_epochs", 1, "--root_path", "other") == 2
    assert "--data_path tiny.csv (" in capsys.readouterr().err


def test_a_checkpoint_that_nobody_trained_here_is_not_overwritten(place, capsys):
    untrained_target(f"checkpoints/{SETTING}")
    (Path("checkpoints") / SETTING / "args.json").unlink()
    before = weights()
    assert train("--train_epochs", 1) == 2
    assert "without settings" in capsys.readouterr().err and same(weights(), before)


def test_a_checkpoint_of_an_older_version_knows_its_data_by_name_only(place, capsys):
    assert train("--train_epochs", 1) == 0
    args = Path("checkpoints") / SETTING / "args.json"
    kept = json.loads(args.read_text())
    args.write_text(json.dumps({name: value for name, value in kept.items() if name not in ("processes", "sources")}))
    old = args.read_bytes()
    write_series(tiny_series(650), "mine.csv")
    assert train("--train_epochs", 1, "--data_path", "mine.csv") == 2
    assert "--data_path tiny.csv (here mine.csv)" in capsys.readouterr().err and args.read_bytes() == old
    assert train("--train_epochs", 1) == 0 and json.loads(args.read_text()) == kept


def test_a_resumed_run_may_name_its_folders_in_another_way_or_have_moved_its_data(place, capsys):
    assert train("--train_epochs", 1, "--checkpoints", "./checkpoints") == 0
    Path("moved").mkdir()
    Path("tiny.csv").rename("moved/tiny.csv")
    assert train("--train_epochs", 2, "--checkpoints", "checkpoints/", "--root_path", "moved/", "--resume") == 0
    assert "resuming at" in capsys.readouterr().out


def test_a_run_is_not_resumed_on_other_data(place, capsys):
    assert train("--train_epochs", 1) == 0
    write_series(tiny_series(602) + 1.0)
    assert train("--train_epochs", 2, "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--data_path tiny.csv (" in said and "(here " in said


# --- results

def test_results_of_other_settings_get_a_folder_that_names_the_difference(lab, place, capsys):
    flags = f"--test_pred_len 24 --use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}"
    assert command(lab, f"{flags} --spec_tol 0.1") == 0
    first = metrics()
    assert command(lab, f"{flags} --spec_tol 0.7") == 0
    base = f"{TARGET}_pl24_spec_tolerance_mean"
    assert folders() == [base, f"{base}_spec_tol_0.7"]
    assert "has results with --spec_tol 0.1 (here 0.7)" in capsys.readouterr().out
    assert metrics(base) == first and metrics(f"{base}_spec_tol_0.7")["speculation"]["spec_tol"] == 0.7
    assert command(lab, f"{flags} --spec_tol 0.7") == 0 and command(lab, f"{flags} --spec_tol 0.1") == 0
    assert len(folders()) == 2


def test_what_does_not_affect_results_makes_no_new_folder(lab, place):
    assert command(lab, "--test_pred_len 24") == 0
    assert command(lab, "--test_pred_len 24 --visualize --num_workers 1 --trace_inference_breakdown") == 0
    assert folders() == [f"{TARGET}_pl24"]


def test_the_same_name_in_another_folder_of_checkpoints_has_results_of_its_own(lab, place):
    assert command(lab, "--test_pred_len 24") == 0
    other = Path("other") / TARGET
    other.mkdir(parents=True)
    for name in ("checkpoint.pth", "args.json"):
        (other / name).write_bytes((lab / "checkpoints" / TARGET / name).read_bytes())
    state = torch.load(other / "checkpoint.pth", weights_only=True)
    torch.save({name: value * 1.01 for name, value in state.items()}, other / "checkpoint.pth")
    assert command(lab, "--test_pred_len 24 --checkpoints other") == 0
    assert len(folders()) == 2


def test_a_folder_beside_has_one_owner_too(lab, place):
    """Its name tells a difference to a folder that may have been replaced since."""
    base = Path("test_results") / f"{TARGET}_pl24"
    for changes in ("", "--amp", "--bf16"):
        assert command(lab, f"--test_pred_len 24 {changes}") == 0
        assert command(lab, f"--test_pred_len 24 --batch_size 16 {changes}") == 0
        shutil.rmtree(base)
    assert folders() == [f"{base.name}_batch_size_16{change}" for change in ("", "_amp_True", "_bf16_True")]
    owners = [json.loads((base.parent / name / OWNER).read_text()) for name in folders()]
    assert [(owner["amp"], owner["bf16"]) for owner in owners] == [(False, False), (True, False), (False, True)]


def test_results_that_came_before_the_lock_are_not_overwritten(place, monkeypatch):
    real = ownership.locked_folder

    def late(folder, remedy):
        monkeypatch.setattr(ownership, "locked_folder", real)
        with results_folder(folder, {"seed": 1, "sources": {}}):  # another run, between our look and our lock
            (folder / "metrics.json").write_text("of seed 1")
        return real(folder, remedy)
    monkeypatch.setattr(ownership, "locked_folder", late)
    with results_folder(Path("base"), {"seed": 2, "sources": {}}) as folder:
        (folder / "metrics.json").write_text("of seed 2")
    assert folder.name == "base_seed_2" and Path("base/metrics.json").read_text() == "of seed 1"


def test_the_architecture_of_a_bare_checkpoint_is_part_of_the_settings(lab, place):
    folder = Path("checkpoints") / TARGET
    folder.mkdir(parents=True)
    (folder / "checkpoint.pth").write_bytes((lab / "checkpoints" / TARGET / "checkpoint.pth").read_bytes())
    sizes = "--test_pred_len 24 --checkpoints checkpoints --d_model 16 --n_heads 2 --d_ff 32"
    assert command(lab, sizes) == 0 and command(lab, f"{sizes} --use_norm") == 0
    assert folders() == [f"{TARGET}_pl24", f"{TARGET}_pl24_use_norm_True"]
    assert metrics(folders()[0])["mse"] != metrics(folders()[1])["mse"]


def test_results_after_a_training_name_its_weights(place):
    for rows in (602, 650):
        write_series(tiny_series(rows))
        assert train("--train_epochs", 1) == 0
        kept = json.loads((Path("test_results") / f"{SETTING}_pl36" / OWNER).read_text())["sources"]["checkpoint"]
        assert kept["sha256"] == digest(kept["path"])


def test_many_differences_make_a_short_name(lab, place):
    assert command(lab, "--test_pred_len 24") == 0
    many = "--seed 4000000000 --batch_size 100000 --test_windows 9 --test_seq_len 36 --rolling window --amp"
    assert command(lab, f"--test_pred_len 24 {many}") == 0
    base, other = folders()
    assert re.fullmatch(f"{base}_[0-9a-f]{{12}}", other)
    assert command(lab, f"--test_pred_len 24 {many}") == 0  # the same settings find it again
    assert folders() == [base, other]


@pytest.mark.parametrize("content", ["", "[1]", '{"sources": 3}', '{"sources": {"data": {}}}', "\x00"])
def test_a_folder_whose_owner_cannot_be_read_is_nobodys(lab, place, content):
    base = Path("test_results") / f"{TARGET}_pl24"
    base.mkdir(parents=True)
    (base / OWNER).write_text(content)
    assert command(lab, "--test_pred_len 24") == 0
    assert folders() == [base.name] and json.loads((base / OWNER).read_text())["sources"]["data_path"]["sha256"]


def test_a_refused_run_leaves_no_folder(lab, place):
    assert command(lab, "--test_pred_len 5000") == 2
    assert not Path("test_results").exists()


# --- two at once

def test_a_folder_in_use_is_refused_with_the_name_of_the_process(place):
    holder = start(HOLD)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"folder is in use by process {holder.pid} on {socket.gethostname()}"), \
                locked_folder(Path("folder"), "wait"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    assert (Path("folder") / LOCK).exists()  # left by the kill; nobody holds it
    with locked_folder(Path("folder"), "wait"):
        pass
    assert not Path("folder").exists() or not list(Path("folder").iterdir())


def test_a_folder_that_another_run_removes_as_unused_is_made_again(place, monkeypatch):
    real, left = Path.mkdir, [1]

    def mkdir(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if left:
            left.pop()
            self.rmdir()
    monkeypatch.setattr(Path, "mkdir", mkdir)
    with locked_folder(Path("a/folder"), "wait"):
        assert Path("a/folder").is_dir()


@pytest.mark.slow
def test_a_child_that_outlives_a_killed_process_is_waited_for(place):
    code = HOLD.replace("time.sleep(60)", "import os; os.fork() or time.sleep(1.5) or os._exit(0); time.sleep(60)")
    holder = start(code)
    assert holder.stdout.readline() == "held\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    begin = time.monotonic()
    with locked_folder(Path("folder"), "wait"):
        assert time.monotonic() - begin < 10
    holder.communicate()


def test_litter_of_killed_writers_is_removed_and_nothing_else(place):
    folder = Path("folder")
    folder.mkdir()
    for name in (".samples.npz.123.tmp", ".metrics.json.9.tmp", "mine.tmp", "metrics.json", ".hidden"):
        (folder / name).touch()
    with locked_folder(folder, "wait"):
        pass
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", "metrics.json", "mine.tmp"]
    Path(".a.csv.5.tmp").touch()
    Path(".b.csv.5.tmp").touch()
    with locked_file(Path("a.csv"), "wait"), pytest.raises(UserError, match="a.csv is in use"), \
            locked_file(Path("a.csv"), "wait"):
        pass
    assert Path(".b.csv.5.tmp").exists() and not Path(".a.csv.5.tmp").exists()


@pytest.mark.slow
def test_of_two_trainings_at_once_one_is_refused(place):
    arguments = [sys.executable, str(ROOT / "run.py"), *TRAIN, "--train_epochs", "40"]
    both = [subprocess.Popen([*arguments, "--seed", str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True) for seed in (1, 2)]
    codes = [run.wait(100) for run in both]
    said = [run.communicate() for run in both]
    assert sorted(codes) == [0, 2], said
    loser = said[codes.index(2)][1]
    assert loser.count("\n") == 1 and ("is in use by process" in loser or "holds another run" in loser)
    seed = json.loads((Path("checkpoints") / SETTING / "args.json").read_text())["seed"]
    assert seed == 1 + codes.index(0)
