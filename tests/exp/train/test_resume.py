"""An interruption of a training costs time only: what was killed and resumed ends like what was not."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exp_helpers import DISTIL, SETTING, STEPS, TRAIN, clone, same, stop_at, train, untrained_target, weights
from helpers import ROOT

from exp.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("place")
KILLED = """
import os, signal, sys
import torch
import run
real, done = torch.optim.Adam.step, []
def killed(self, *args, **kwargs):
    if len(done) == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)
    return real(self, *args, **kwargs)
torch.optim.Adam.step = killed
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags, setting", [
    (["--dropout", "0.3"], SETTING),
    (["--dropout", "0.3", "--ema", "0.9"], SETTING),
    (DISTIL.split(), "forecast_test_timer_xl_draft_test_0"),
    (DISTIL.replace("--draft_teacher_dropout 0.3", "--draft_rollout 3").split(), "forecast_test_timer_xl_draft_test_0"),
], ids=["supervised with dropout", "with averaged weights", "distilled with noise and teacher dropout", "on-policy"])
def test_a_run_that_was_killed_and_resumed_ends_like_a_whole_one(flags, setting, capsys):
    untrained_target()
    flags = [*flags, "--train_epochs", "3", "--val_every", "5"]
    arguments = [*TRAIN, *flags, "--checkpoints", "killed"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, timeout=100,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9, done.stderr
    assert not list(Path().rglob("metrics*.json"))
    capsys.readouterr()
    assert train(*flags, "--checkpoints", "killed", "--resume") == 0
    # in the middle of the second epoch: not at an epoch's end, where everything is easier
    assert f"resuming at step 15 (epoch 2, batch {15 - STEPS + 1})" in capsys.readouterr().out
    assert train(*flags, "--checkpoints", "whole") == 0
    for name in ("checkpoint.pth", "resume.pth"):
        assert same(weights("killed", setting, name), weights("whole", setting, name)), name


def torchrun(processes, *flags, code=None):
    program = [str(ROOT / "run.py")] if code is None else [code]
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                           str(processes), *program, *TRAIN, "--ddp", *flags], capture_output=True, text=True,
                          timeout=200, check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
def test_several_processes_with_dropout_go_on_as_they_would_have(capsys):
    """Every process draws masks of its own, so that the generator of one does not do for the others."""
    Path("killed.py").write_text(KILLED.replace("17", "9"))
    flags = ["--dropout", "0.3", "--train_epochs", "3", "--val_every", "4", "--batch_size", "16"]
    done = torchrun(2, *flags, "--checkpoints", "killed", code="killed.py")
    assert done.returncode != 0 and not list(Path().rglob("metrics*.json"))
    done = torchrun(3, *flags, "--checkpoints", "killed", "--resume")
    assert done.returncode != 0 and "processes 2 (here 3)" in done.stderr
    done = torchrun(2, *flags, "--checkpoints", "killed", "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming at step 8 " in done.stdout
    done = torchrun(2, *flags, "--checkpoints", "whole")
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("checkpoint.pth", "resume.pth"):
        assert same(weights("killed", SETTING, name), weights("whole", SETTING, name)), name


AT_THE_END = """
import atexit, os, runpy, sys
atexit.register(os._exit, 6)
runpy.run_path(os.environ["PROGRAM"], run_name="__main__")
"""


@pytest.mark.slow
def test_several_processes_end_without_the_interpreters_own_ending(monkeypatch):
    """In which a thread of the process group may abort them: seldom, so that it is looked for here, not waited for."""
    Path("at_the_end.py").write_text(AT_THE_END)
    monkeypatch.setenv("PROGRAM", str(ROOT / "run.py"))
    done = torchrun(2, "--train_epochs", "1", code="at_the_end.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "results: " in done.stdout
    refused = torchrun(2, "--train_epochs", "1", "--batch_size", "1000000", "--resume", code="at_the_end.py")
    assert refused.stderr.count("error: ") == 1 and "exitcode  : 2" in refused.stderr, refused.stderr


def test_a_finished_run_goes_on_if_it_is_given_more_epochs():
    assert train("--train_epochs", 1, "--checkpoints", "longer") == 0
    assert train("--train_epochs", 3, "--checkpoints", "longer", "--resume") == 0
    assert train("--train_epochs", 3, "--checkpoints", "whole") == 0
    assert same(weights("longer"), weights("whole"))


def test_resuming_a_finished_run_changes_nothing():
    assert train("--train_epochs", 2) == 0
    before = weights()
    assert train("--train_epochs", 2, "--resume") == 0
    assert same(weights(), before)


def test_resuming_after_an_early_stop_does_not_train_on(monkeypatch):
    monkeypatch.setattr(Trainer, "validate", lambda self: 1.0)
    assert train("--train_epochs", 5, "--val_every", 3, "--patience", 1) == 0
    stop_at(monkeypatch, 0, RuntimeError("trained on"))
    assert train("--train_epochs", 5, "--val_every", 3, "--patience", 1, "--resume") == 0


@pytest.mark.parametrize("name, words", [("resume.pth", "is damaged"), ("checkpoint.pth", "was not loaded")])
def test_a_flipped_bit_is_noticed(name, words, capsys):
    assert train("--train_epochs", 1) == 0
    path = Path("checkpoints") / SETTING / name
    content = bytearray(path.read_bytes())
    first = next(iter(weights(name=name).values()))
    content[content.index(first.numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
    capsys.readouterr()
    flags = ["--train_epochs", 2, "--resume"] if name == "resume.pth" else ["--is_training", 0]
    assert train(*flags, base=[part for part in TRAIN if name == "resume.pth" or part not in (
        "--learning_rate", "0.003")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said and str(path) in said


@pytest.mark.parametrize("damage", [
    lambda state: state.update(step="many"), lambda state: state.update(batch=10**6),
    lambda state: state.update(settings=[1]), lambda state: state.update(generators=None), lambda state: state.clear(),
    lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    lambda state: state["optimizer"]["state"][0].update(exp_avg=state["optimizer"]["state"][0]["exp_avg"].to_sparse()),
    lambda state: state["optimizer"]["state"][0].pop("exp_avg_sq"),
    lambda state: state["optimizer"]["param_groups"][0].update(betas="fast"),
    lambda state: state.update(best=float("nan")),
    lambda state: state["model"].update({"head.bias": torch.zeros(3)}),
], ids=["counter", "batch that never comes", "settings", "random state", "empty", "moments",
        "sparse moments", "no moments", "rates", "best loss", "weights"])
def test_a_damaged_state_is_refused_and_nothing_is_written(damage, capsys):
    assert train("--train_epochs", 1) == 0
    path = Path("checkpoints") / SETTING / "resume.pth"
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    before = {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.is_file()}
    capsys.readouterr()
    assert train("--train_epochs", 2, "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path} is damaged" in said and "drop --resume" in said
    assert {p: p.stat().st_mtime_ns for p in Path().rglob("*") if p.is_file()} == before  # no file of events either


def test_resume_with_another_rate_is_refused_with_both_values(capsys):
    assert train("--train_epochs", 1) == 0
    before = weights()
    assert train("--train_epochs", 2, "--resume", "--learning_rate", 0.001) == 2
    said = capsys.readouterr().err
    assert "--learning_rate" in said and "0.003" in said and "0.001" in said
    assert same(weights(), before)


def test_resume_with_another_test_context_is_refused(capsys):
    """A teacher's calibrated noise is fitted at that context, a causal model's trailing window is as long."""
    assert train("--train_epochs", 1) == 0
    assert train("--train_epochs", 2, "--resume", "--test_seq_len", 36) == 2
    assert "--test_seq_len 48" in capsys.readouterr().err


def test_resume_without_a_state_starts_anew_and_says_so(capsys):
    assert train("--train_epochs", 1, "--resume", "--checkpoints", "a") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert train("--train_epochs", 1, "--checkpoints", "b") == 0
    assert same(weights("a"), weights("b"))


def test_a_new_run_does_not_leave_the_state_of_an_older_one(monkeypatch):
    """It would be resumed as if it were its own."""
    assert train("--train_epochs", 1) == 0
    stop_at(monkeypatch, 2, KeyboardInterrupt())
    assert train("--train_epochs", 1) == 130
    assert not (Path("checkpoints") / SETTING / "resume.pth").exists()


def test_an_interruption_ends_with_130_and_keeps_the_checkpoint(place, monkeypatch, capsys):
    seen, validate = [], Trainer.validate

    def recording(self):
        seen.append(clone(self.model.state_dict()))
        return validate(self)
    monkeypatch.setattr(Trainer, "validate", recording)
    stop_at(monkeypatch, 6, KeyboardInterrupt())
    assert train("--train_epochs", 1, "--val_every", 5) == 130
    captured = capsys.readouterr()
    assert captured.err.startswith("interrupted") and "--resume" in captured.err and "Traceback" not in captured.err
    assert same(weights(), seen[0])
    assert not list(Path().rglob("*.tmp"))
    monkeypatch.undo()
    monkeypatch.chdir(place)
    for said in (1, 0):  # the second follows a whole training
        assert train("--train_epochs", 1, "--val_every", 5) == 0
        assert capsys.readouterr().out.count("training that was interrupted; this one starts over") == said
