"""Training: what is kept, what it depends on, and that an interruption costs time only.

Everything runs through the command line on a tiny generated series.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import run
from exp.exp_forecast import Exp_Forecast
from exp.options import parse_args
from exp.training import Trainer
from models.config import ModelConfig
from models.timer_xl import Model
from utils.checkpoint import read_settings, save_checkpoint
from utils.losses import RolloutLoss, SupervisedLoss, SupervisedNLL

ROOT = Path(__file__).resolve().parents[2]
CONTEXT, PATCH, ROWS = 48, 12, 602
STEPS = 12  # an epoch: 362 training windows in batches of 32
SIZES = dict(d_model=16, n_heads=2, d_ff=32, e_layers=1)
BASE = (f"--quiet --root_path . --data_path tiny.csv --seq_len {CONTEXT} --input_token_len {PATCH} --test_pred_len 36 "
        "--d_model 16 --n_heads 2 --d_ff 32 --use_norm --learning_rate 0.003 --batch_size 32").split()
SETTING = "forecast_test_timer_xl_test_0"
DISTIL = ("--model timer_xl_draft --draft_stochastic --distill --distill_target_ckpt target/checkpoint.pth "
          "--draft_teacher_noise 0.2 --draft_teacher_dropout 0.3 --draft_nll_var_reg 0.01 "
          "--draft_scale_d_ff 0.5")


def tiny_series():
    t = np.arange(ROWS)[:, None]
    waves = np.sin(2 * np.pi * t / np.array([24, 24, 36]) + np.array([0, 1, 2]))
    return waves + 0.3 * np.random.default_rng(0).normal(size=(ROWS, 3))


def write_series(values):
    frame = pd.DataFrame(values.round(5), columns=["a", "b", "c"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=len(values), freq="h"))
    frame.to_csv("tiny.csv", index=False)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder of its own with the tiny series; the name is not ETT's, so the split is 70/10/20."""
    monkeypatch.chdir(tmp_path)
    write_series(tiny_series())
    return tmp_path


def train(*flags, base=BASE):
    return run.main([*base, *map(str, flags)])


def weights(folder="checkpoints", setting=SETTING, name="checkpoint.pth"):
    content = torch.load(Path(folder) / setting / name, weights_only=True)
    return content["model"] if name == "resume.pth" else content


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


def clone(state):
    return {key: value.clone() for key, value in state.items()}


def untrained_target(folder="target", seed=7):
    torch.manual_seed(seed)
    config = ModelConfig(input_token_len=PATCH, dropout=0.1, use_norm=True, **SIZES)
    model = Model(config)
    save_checkpoint(Path(folder), model.state_dict(), config.as_dict() | {"model": "timer_xl"})
    return model


def stop_at(monkeypatch, step, failure):
    """Raises `failure` instead of doing training step number `step` (from 0)."""
    real = Trainer._step

    def broken(self, x, y):
        if self.step == step:
            raise failure
        return real(self, x, y)
    monkeypatch.setattr(Trainer, "_step", broken)


# --- what is kept

def test_early_stopping_keeps_the_best_weights_and_not_the_last(monkeypatch, capsys):
    losses, seen = iter([3.0, 2.0, 2.5, 2.4, 1.0]), []

    def scripted(self):
        seen.append(clone(self.model.state_dict()))
        return next(losses)
    monkeypatch.setattr(Trainer, "validate", scripted)
    assert train("--train_epochs", 5, "--val_every", 3, "--patience", 2) == 0
    assert len(seen) == 4  # patience ran out: 1.0 was never reached
    assert same(weights(), seen[1]) and not same(weights(), seen[3])
    assert "best validation loss 2.0" in capsys.readouterr().out


def test_equal_losses_are_no_improvement(monkeypatch):
    seen = []

    def scripted(self):
        seen.append(clone(self.model.state_dict()))
        return 1.0
    monkeypatch.setattr(Trainer, "validate", scripted)
    assert train("--train_epochs", 5, "--val_every", 3, "--patience", 2) == 0
    assert len(seen) == 3 and same(weights(), seen[0])


def test_the_best_validation_loss_is_that_of_the_saved_weights_on_every_validation_window(capsys):
    assert train("--train_epochs", 2) == 0
    said = float(re.search(r"best validation loss ([\d.]+)", capsys.readouterr().out)[1])
    values = pd.read_csv("tiny.csv").drop(columns="date").to_numpy()
    rows = int(ROWS * 0.7)
    values = (values - values[:rows].mean(axis=0)) / values[:rows].std(axis=0)
    part = values[rows - CONTEXT:ROWS - int(ROWS * 0.2)]
    model = Model(ModelConfig(input_token_len=PATCH, use_norm=True, **SIZES)).eval()
    model.load_state_dict(weights())
    errors = []
    for start in range(len(part) - CONTEXT - PATCH + 1):
        x = torch.tensor(part[start:start + CONTEXT][None], dtype=torch.float32)
        with torch.no_grad():
            errors.append(np.mean((model(x)[0].numpy() - part[start + PATCH:start + PATCH + CONTEXT]) ** 2))
    assert len(errors) % 32  # a last batch that is not full must count by its windows
    assert said == pytest.approx(np.mean(errors), abs=2e-5)


def test_a_checkpoint_has_the_settings_it_was_trained_with_beside_it():
    assert train("--train_epochs", 1, "--dropout", 0.25) == 0
    settings = read_settings(Path("checkpoints") / SETTING / "checkpoint.pth")
    assert settings["dropout"] == 0.25 and settings["d_model"] == 16 and settings["model"] == "timer_xl"
    assert settings["parameters"] == sum(value.numel() for value in weights().values())


def test_a_run_too_short_for_its_val_every_still_leaves_a_checkpoint():
    assert train("--train_epochs", 1, "--val_every", 1000) == 0
    assert same(weights(), weights(name="resume.pth"))


# --- what the weights depend on

def test_changing_the_test_part_of_the_file_changes_no_weights():
    assert train("--train_epochs", 2, "--checkpoints", "before") == 0
    values = tiny_series()
    values[ROWS - int(ROWS * 0.2):] = 50.0
    write_series(values)
    assert train("--train_epochs", 2, "--checkpoints", "after") == 0
    assert same(weights("before"), weights("after"))
    # the test can tell: one changed training row shows
    values[0] += 1
    write_series(values)
    assert train("--train_epochs", 2, "--checkpoints", "control") == 0
    assert not same(weights("before"), weights("control"))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    for folder, seed in (("first", 1), ("second", 1), ("third", 2)):
        assert train("--train_epochs", 1, "--checkpoints", folder, "--seed", seed) == 0
    assert same(weights("first"), weights("second"))
    assert not same(weights("first"), weights("third"))


def test_itr_trains_again_with_the_next_seeds():
    assert train("--train_epochs", 1, "--itr", 2, "--seed", 5) == 0
    assert train("--train_epochs", 1, "--seed", 6, "--checkpoints", "alone") == 0
    second = SETTING[:-1] + "1"
    assert same(weights(setting=second), weights("alone"))
    assert not same(weights(), weights(setting=second))


def test_the_learning_rate_follows_the_schedule_epoch_by_epoch(monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def recording(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    assert train("--train_epochs", 4, "--lradj", "type1") == 0
    assert len(rates) == 4 * STEPS
    assert rates[::STEPS] == pytest.approx([0.003, 0.003, 0.0015, 0.00075])
    assert rates[STEPS - 1::STEPS] == rates[::STEPS]


@pytest.mark.parametrize("clip, clipped", [(0.01, True), (0, False)])
def test_the_gradient_is_clipped_to_the_asked_norm(monkeypatch, clip, clipped):
    norms, step = [], torch.optim.Adam.step

    def recording(self, *args, **kwargs):
        gradients = [p.grad.flatten() for p in self.param_groups[0]["params"] if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())
        return step(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    assert train("--train_epochs", 1, "--clip_grad", clip) == 0
    assert (max(norms) < 0.0101) is clipped


def test_few_shot_training_takes_fewer_steps(monkeypatch):
    calls, real = [], Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, x, y: (calls.append(len(x)), real(self, x, y))[1])
    assert train("--train_epochs", 1, "--subset_rand_ratio", 0.25) == 0
    assert sum(calls) == 91  # 362 windows, every fourth


def test_adaptation_starts_from_the_given_weights():
    given = untrained_target("pretrained").state_dict()
    flags = ["--adaptation", "--pretrain_model_path", "pretrained/checkpoint.pth", "--train_epochs", 1]
    # steps too small for float32 to notice, but at zero
    assert train(*flags, "--learning_rate", 1e-30) == 0
    for key, value in weights().items():
        torch.testing.assert_close(value, given[key], rtol=0, atol=1e-20)
    assert train(*flags) == 0
    assert not torch.allclose(weights()["head.weight"], given["head.weight"], rtol=0, atol=1e-3)


def test_mixed_precision_in_bf16_trains_on_the_cpu():
    assert train("--train_epochs", 1, "--checkpoints", "full") == 0
    assert train("--train_epochs", 1, "--amp", "--amp_dtype", "bf16", "--checkpoints", "mixed") == 0
    mixed, full = weights("mixed"), weights("full")
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in mixed.values())
    assert not same(mixed, full)  # the lower precision was used
    assert (mixed["head.weight"] - full["head.weight"]).abs().max() < 0.05  # and gets to about the same place


# --- going on after an interruption

KILLED = """
import os, signal, sys
from exp.training import Trainer
import run
step = Trainer._step
def killed(self, x, y):
    if self.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, x, y)
Trainer._step = killed
sys.exit(run.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("flags, setting", [
    (["--dropout", "0.3"], SETTING),
    (["--dropout", "0.3", "--ema", "0.9"], SETTING),
    (DISTIL.split(), "forecast_test_timer_xl_draft_test_0"),
    (DISTIL.replace("--draft_teacher_dropout 0.3", "--draft_rollout 3").split(), "forecast_test_timer_xl_draft_test_0"),
], ids=["supervised with dropout", "with averaged weights", "distilled with noise and teacher dropout", "on-policy"])
def test_a_run_that_was_killed_and_resumed_ends_with_the_weights_of_an_uninterrupted_one(flags, setting, capsys):
    untrained_target()
    flags = [*flags, "--train_epochs", "3", "--val_every", "5"]
    arguments = [*BASE, *flags, "--checkpoints", "killed"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, timeout=100,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9, done.stderr
    assert not Path("test_results").exists()
    capsys.readouterr()
    assert train(*flags, "--checkpoints", "killed", "--resume") == 0
    # in the middle of the second epoch: not at an epoch's end, where everything is easier
    assert f"resuming at step 15 (epoch 2, batch {15 - STEPS + 1})" in capsys.readouterr().out
    assert train(*flags, "--checkpoints", "whole") == 0
    for name in ("checkpoint.pth", "resume.pth"):
        assert same(weights("killed", setting, name), weights("whole", setting, name)), name


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
    stop_at(monkeypatch, 6, RuntimeError("trained on"))
    assert train("--train_epochs", 5, "--val_every", 3, "--patience", 1, "--resume") == 0


@pytest.mark.parametrize("damage", [
    lambda state: state.update(step="many"), lambda state: state.update(batch=10**6),
    lambda state: state.update(settings=[1]), lambda state: state.update(rng=None), lambda state: state.clear(),
    lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    lambda state: state["model"].update({"head.bias": torch.zeros(3)}),
], ids=["counter", "batch that never comes", "settings", "random state", "empty", "moments", "weights"])
def test_a_damaged_state_is_refused_and_nothing_is_written(damage, capsys):
    assert train("--train_epochs", 1) == 0
    path = Path("checkpoints") / SETTING / "resume.pth"
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    before = {p: p.stat().st_mtime_ns for p in Path().rglob("*")}
    capsys.readouterr()
    assert train("--train_epochs", 2, "--resume") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{path} is damaged" in said and "drop --resume" in said
    assert {p: p.stat().st_mtime_ns for p in Path().rglob("*")} == before  # no file of events either


def test_resume_with_another_learning_rate_is_refused_with_both_values(capsys):
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


def test_resume_without_anything_to_resume_starts_anew_and_says_so(capsys):
    assert train("--train_epochs", 1, "--resume", "--checkpoints", "a") == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert train("--train_epochs", 1, "--checkpoints", "b") == 0
    assert same(weights("a"), weights("b"))


def test_a_new_run_of_the_same_name_does_not_leave_the_state_of_the_old_one_to_be_resumed(monkeypatch):
    assert train("--train_epochs", 1) == 0
    stop_at(monkeypatch, 2, KeyboardInterrupt())
    assert train("--train_epochs", 1) == 130
    assert not (Path("checkpoints") / SETTING / "resume.pth").exists()


def test_an_interruption_by_the_user_ends_with_code_130_and_keeps_the_checkpoint(monkeypatch, capsys):
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


# --- training that goes wrong

def test_a_loss_that_becomes_nan_stops_with_step_and_batch_and_keeps_the_checkpoint(monkeypatch, capsys):
    seen, real, loss = [], Trainer.validate, SupervisedLoss.__call__

    def recording(self):
        seen.append(clone(self.model.state_dict()))
        return real(self)

    calls = []

    def broken(self, model, x, y):
        value = loss(self, model, x, y)
        if model.training:
            calls.append(1)
        return value * float("nan") if len(calls) == STEPS + 3 else value
    monkeypatch.setattr(Trainer, "validate", recording)
    monkeypatch.setattr(SupervisedLoss, "__call__", broken)
    assert train("--train_epochs", 3, "--val_every", STEPS + 1) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    for word in ("nan", f"step {STEPS + 3}", "epoch 2", "batch 3", "checkpoint is kept", SETTING):
        assert word in said
    assert len(seen) == 1 and same(weights(), seen[0])


def test_a_learning_rate_that_explodes_stops_without_a_checkpoint(capsys):
    assert train("--train_epochs", 2, "--learning_rate", 1e30, "--clip_grad", 0) == 2
    said = capsys.readouterr().err
    assert "at step 2 (epoch 1, batch 2)" in said and "no checkpoint of this run yet" in said
    assert "--learning_rate" in said and not list(Path().rglob("*.pth"))


def test_the_checkpoint_of_an_older_run_is_not_taken_for_one_of_this_run(capsys):
    assert train("--train_epochs", 1) == 0
    assert train("--train_epochs", 1, "--learning_rate", 1e30, "--clip_grad", 0) == 2
    assert "no checkpoint of this run yet" in capsys.readouterr().err


def test_validations_that_are_all_nan_are_no_success(monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "validate", lambda self: float("nan"))
    assert train("--train_epochs", 1) == 2
    assert "no validation was finite" in capsys.readouterr().err
    assert not (Path("checkpoints") / SETTING / "checkpoint.pth").exists()


# --- several processes

def test_two_processes_train_like_one_and_save_one_checkpoint():
    # dropout off: with it, two processes draw other masks than one
    flags = [*BASE, "--dropout", "0", "--train_epochs", "2", "--learning_rate", "0.001"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(ROOT / "run.py"), *flags, "--batch_size", "16", "--ddp", "--checkpoints", "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(Path("two").rglob("checkpoint.pth"))) == 1
    assert len(list(Path("test_results").rglob("metrics.json"))) == 1
    assert done.stdout.count("best validation loss") == 1 and done.stdout.count("training timer_xl") == 1
    assert run.main([*flags, "--checkpoints", "one"]) == 0
    start = untrained_target(seed=2021)  # what both started from is far away from where they arrived
    forecasts = []
    x = torch.tensor(tiny_series()[None, :CONTEXT], dtype=torch.float32)
    for state in (weights("one"), weights("two"), start.state_dict()):
        model = Model(start.config).eval()
        model.load_state_dict(state)
        with torch.no_grad():
            forecasts.append(model(x))
    one, two, untrained = forecasts
    assert (one - two).abs().max() < 1e-3 * (one - untrained).abs().max()


# --- every flag reaches what it is for

def loss_of(*flags):
    experiment = Exp_Forecast(parse_args([*BASE, *map(str, flags)]))
    if experiment.args.distill:
        experiment.adopt_target()
    return experiment._loss()


def test_flags_of_distillation_reach_the_loss():
    untrained_target()
    loss = loss_of(*DISTIL.split(), "--last_token", "--skip_patches", 2)
    assert (float(loss.law.factor), loss.teacher_dropout, loss.var_reg) == (pytest.approx(0.2), 0.3, 0.01)
    assert (loss.selection.last_token, loss.selection.valid_last, loss.selection.skip) == (True, False, 2)
    loss = loss_of(*DISTIL.split(), "--draft_rollout", 5)
    assert isinstance(loss, RolloutLoss)
    assert (float(loss.law.factor), loss.var_reg, loss.rollout) == (pytest.approx(0.2), 0.01, 5)


def test_flags_of_supervised_training_reach_the_loss():
    loss = loss_of("--covariate", "--last_token")
    assert (loss.last_token, loss.valid_last, loss.covariate) == (True, False, True)
    loss = loss_of("--model", "timer_xl_draft", "--draft_stochastic", "--draft_nll_var_reg", 0.3, "--valid_last")
    assert isinstance(loss, SupervisedNLL) and loss.var_reg == 0.3
    assert (loss.last_token, loss.valid_last, loss.covariate) == (False, True, False)


def test_a_draft_takes_its_sizes_from_its_target():
    untrained_target()
    sizes = {"--d_model", "--n_heads", "--d_ff"}
    base = [part for before, part in zip(["", *BASE], BASE) if part not in sizes and before not in sizes]
    assert train(*DISTIL.split(), "--train_epochs", 1, base=[*base]) == 0
    settings = read_settings(Path("checkpoints") / SETTING.replace("timer_xl", "timer_xl_draft") / "checkpoint.pth")
    assert (settings["d_model"], settings["n_heads"], settings["d_ff"]) == (16, 2, 32)


def test_the_moving_average_is_what_is_saved(monkeypatch):
    seen, step = [], Trainer._step

    def recording(self, x, y):
        value = step(self, x, y)
        seen.append(clone(self.model.state_dict()))
        return value
    monkeypatch.setattr(Trainer, "_step", recording)
    assert train("--train_epochs", 1, "--ema", 0.8) == 0
    average = seen[0]
    for state in seen[1:]:
        average = {key: 0.8 * average[key] + 0.2 * state[key] for key in state}
    for key, value in weights().items():
        torch.testing.assert_close(value, average[key], atol=1e-5, rtol=0)


def test_patience_counts_from_the_last_improvement(monkeypatch):
    losses, seen = iter([3.0, 3.5, 2.0, 2.5, 1.0, 1.0, 1.0]), []
    monkeypatch.setattr(Trainer, "validate", lambda self: (seen.append(1), next(losses))[1])
    assert train("--train_epochs", 5, "--val_every", 3, "--patience", 2) == 0
    assert len(seen) == 7


def test_weight_decay_changes_the_weights():
    for folder, decay in (("a", 0), ("b", 0.5)):
        assert train("--train_epochs", 1, "--weight_decay", decay, "--checkpoints", folder) == 0
    assert not same(weights("a"), weights("b"))


def test_an_infinite_loss_stops_the_run_like_nan(monkeypatch, capsys):
    loss = SupervisedLoss.__call__
    monkeypatch.setattr(SupervisedLoss, "__call__", lambda self, m, x, y: loss(self, m, x, y) * float("inf"))
    assert train("--train_epochs", 1) == 2
    assert "inf at step 1" in capsys.readouterr().err
