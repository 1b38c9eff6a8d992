"""Every flag of a training reaches what it is for; and several processes train like one."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
from exp_helpers import DISTIL, SETTING, TRAIN, metrics, train, untrained_target, weights
from helpers import ROOT

from exp.exp_basic import Exp_Basic
from exp.options import read_command_line
from exp.train import training
from exp.train.losses import RolloutLoss, SupervisedNLL
from models.checkpoint import read_settings

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture
def loss_of(monkeypatch):
    """What a training of these flags would minimise."""
    given = []

    class Given:
        def __init__(self, model, loss, *_):
            given.append(loss)

        def run(self):
            return 0.0
    monkeypatch.setattr("exp.train.training.Trainer", Given)

    def loss(*flags):
        training.train(Exp_Basic(read_command_line([*TRAIN, *map(str, flags)])), Path("nothing"), {})
        return given.pop()
    return loss


def test_flags_of_distillation_reach_the_loss(loss_of):
    untrained_target()
    loss = loss_of(*DISTIL.split(), "--last_token", "--skip_patches", 2)
    assert (float(loss.law.factor), loss.teacher_dropout, loss.var_reg) == (pytest.approx(0.2), 0.3, 0.01)
    assert (loss.selection.last_token, loss.selection.valid_last, loss.selection.skip) == (True, False, 2)
    loss = loss_of(*DISTIL.split(), "--draft_rollout", 5, "--draft_rollout_context", 0.5)
    assert loss.along == 0.5 and loss.answer == 0
    loss = loss_of(*DISTIL.split(), "--draft_rollout", 5, "--draft_answer", 10)
    assert (loss.answer, loss.hinge) == (10, 0)
    assert loss_of(*DISTIL.split(), "--draft_rollout", 5, "--draft_answer", 10, "--draft_hinge", 0.1).hinge == 0.1
    loss = loss_of(*DISTIL.split(), "--draft_rollout", 5)
    assert loss.along == 0
    for unit, relative in ((), False), (("--draft_noise_unit", "window"), True):
        law = loss_of(*DISTIL.split(), "--draft_teacher_noise", 0.3, *unit).law
        assert law.relative is relative and float(law.factor) == pytest.approx(0.3)
    assert isinstance(loss, RolloutLoss)
    assert (float(loss.law.factor), loss.var_reg, loss.rollout) == (pytest.approx(0.2), 0.01, 5)


def test_flags_of_supervised_training_reach_the_loss(loss_of):
    loss = loss_of("--covariate", "--last_token")
    assert (loss.last_token, loss.valid_last, loss.covariate) == (True, False, True)
    loss = loss_of("--model", "timer_xl_draft", "--draft_stochastic", "--draft_nll_var_reg", 0.3, "--valid_last")
    assert isinstance(loss, SupervisedNLL) and loss.var_reg == 0.3
    assert (loss.last_token, loss.valid_last, loss.covariate) == (False, True, False)
    loss = loss_of("--nonautoregressive")
    assert (loss.last_token, loss.valid_last) == (True, True)


def test_a_draft_takes_its_sizes_from_its_target():
    untrained_target()
    sizes = {"--d_model", "--n_heads", "--d_ff"}
    base = [part for before, part in zip(["", *TRAIN], TRAIN) if part not in sizes and before not in sizes]
    assert train(*DISTIL.split(), "--train_epochs", 1, base=[*base]) == 0
    settings = read_settings(Path("checkpoints") / SETTING.replace("timer_xl", "timer_xl_draft") / "checkpoint.pth")
    assert (settings["d_model"], settings["n_heads"], settings["d_ff"]) == (16, 2, 32)


@pytest.mark.slow
def test_two_processes_train_like_one_and_save_one_checkpoint():
    # dropout off: with it, two processes draw other masks than one. 181 windows: a last batch of 21, 11 and 10 of them
    flags = [*TRAIN, "--dropout", "0", "--train_epochs", "3", "--subset_rand_ratio", "0.5"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(ROOT / "run.py"), *flags, "--batch_size", "16", "--ddp", "--checkpoints", "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(Path("two").rglob("checkpoint.pth"))) == 1
    assert len(list(Path("test_results").rglob("metrics.json"))) == 1
    assert done.stdout.count("best validation loss") == 1 and done.stdout.count("training timer_xl") == 1
    assert ("2 processes with 16 windows each take the steps of one with --batch_size 32; the last batch of an epoch "
            "has 21 windows, shared as evenly as it goes, each of which counts the same\n") in done.stdout
    shared = metrics()  # the test after the training is of both processes
    assert train("--checkpoints", "two", "--is_training", 0, "--batch_size", 16, base=flags[:-8]) == 0
    assert shared["processes"] == 2 and shared["mse"] == pytest.approx(metrics()["mse"])
    assert train("--checkpoints", "one", base=flags) == 0
    start, one, two = untrained_target(seed=2021).state_dict(), weights("one"), weights("two")
    for name in start:
        moved, apart = ((one[name] - other[name]).abs().max() for other in (start, two))
        # softmax cancels most of the bias of keys: its gradient is all rounding, which Adam brings to full size
        assert moved > 0.01 and apart < (1e-3 if name.endswith("key_projection.bias") else 1e-6), name
