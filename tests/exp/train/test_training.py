"""Training from the command line: what is kept, what the weights depend on, and what goes wrong."""
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import (
    CONTEXT,
    PATCH,
    SETTING,
    STEPS,
    TRAIN_ROWS,
    TRAIN_SIZES,
    clone,
    same,
    train,
    untrained_target,
    weights,
)
from helpers import tiny_series, write_series

from exp.train.losses import SupervisedLoss
from exp.train.trainer import Trainer
from models.checkpoint import read_settings
from models.config import ModelConfig
from models.timer_xl import Model

pytestmark = pytest.mark.usefixtures("place")


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


def test_patience_counts_from_the_last_improvement(monkeypatch):
    losses, seen = iter([3.0, 3.5, 2.0, 2.5, 1.0, 1.0, 1.0]), []
    monkeypatch.setattr(Trainer, "validate", lambda self: (seen.append(1), next(losses))[1])
    assert train("--train_epochs", 5, "--val_every", 3, "--patience", 2) == 0
    assert len(seen) == 7


def test_the_best_validation_loss_is_that_of_the_saved_weights(capsys):
    """On every validation window, each counted once."""
    assert train("--train_epochs", 2) == 0
    said = float(re.search(r"best validation loss ([\d.]+)", capsys.readouterr().out)[1])
    values = pd.read_csv("tiny.csv").drop(columns="date").to_numpy()
    rows = int(TRAIN_ROWS * 0.7)
    values = (values - values[:rows].mean(axis=0)) / values[:rows].std(axis=0)
    part = values[rows - CONTEXT:TRAIN_ROWS - int(TRAIN_ROWS * 0.2)]
    model = Model(ModelConfig(input_token_len=PATCH, use_norm=True, **TRAIN_SIZES)).eval()
    model.load_state_dict(weights())
    errors = []
    for start in range(len(part) - CONTEXT - PATCH + 1):
        x = torch.tensor(part[start:start + CONTEXT][None], dtype=torch.float32)
        with torch.no_grad():
            errors.append(np.mean((model(x)[0].numpy() - part[start + PATCH:start + PATCH + CONTEXT]) ** 2))
    assert len(errors) % 32  # a last batch that is not full must count by its windows
    assert said == pytest.approx(np.mean(errors), abs=2e-5)


def test_a_checkpoint_has_the_settings_of_its_training_beside_it():
    assert train("--train_epochs", 1, "--dropout", 0.25) == 0
    settings = read_settings(Path("checkpoints") / SETTING / "checkpoint.pth")
    assert settings["dropout"] == 0.25 and settings["d_model"] == 16 and settings["model"] == "timer_xl"
    assert settings["parameters"] == sum(value.numel() for value in weights().values())


def test_a_run_too_short_for_its_val_every_leaves_a_checkpoint():
    assert train("--train_epochs", 1, "--val_every", 1000) == 0
    assert same(weights(), weights(name="resume.pth"))


def test_the_moving_average_is_what_is_saved(monkeypatch):
    seen, better = [], iter(range(STEPS, 0, -1))

    def scripted(self):  # after every step
        seen.append(clone(self.model.state_dict()))
        return float(next(better))
    monkeypatch.setattr(Trainer, "validate", scripted)
    assert train("--train_epochs", 1, "--ema", 0.8, "--val_every", 1) == 0
    assert len(seen) == STEPS
    average = seen[0]
    for state in seen[1:]:
        average = {key: 0.8 * average[key] + 0.2 * state[key] for key in state}
    for key, value in weights().items():
        torch.testing.assert_close(value, average[key], atol=1e-5, rtol=0)
    assert not torch.allclose(weights()["head.weight"], seen[-1]["head.weight"], rtol=0, atol=1e-3)


# --- what the weights depend on

def test_changing_the_test_part_of_the_file_changes_no_weights():
    assert train("--train_epochs", 2, "--checkpoints", "before") == 0
    values = tiny_series(TRAIN_ROWS)
    values[TRAIN_ROWS - int(TRAIN_ROWS * 0.2):] = 50.0
    write_series(values)
    assert train("--train_epochs", 2, "--checkpoints", "after") == 0
    assert same(weights("before"), weights("after"))
    # the test can tell: one changed training row shows
    values[0] += 1
    write_series(values)
    assert train("--train_epochs", 2, "--checkpoints", "control") == 0
    assert not same(weights("before"), weights("control"))


def test_equal_seeds_give_equal_weights_and_others_others():
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
    seen, loss = [], SupervisedLoss.__call__

    def counting(self, model, x, y):
        if model.training:
            seen.append(len(x))
        return loss(self, model, x, y)
    monkeypatch.setattr(SupervisedLoss, "__call__", counting)
    assert train("--train_epochs", 1, "--subset_rand_ratio", 0.25) == 0
    assert sum(seen) == 91  # 362 windows, every fourth


def test_adaptation_starts_from_the_given_weights():
    given = untrained_target("pretrained").state_dict()
    flags = ["--adaptation", "--pretrain_model_path", "pretrained/checkpoint.pth", "--train_epochs", 1]
    # steps too small for float32 to notice, but at zero
    assert train(*flags, "--learning_rate", 1e-30) == 0
    for key, value in weights().items():
        torch.testing.assert_close(value, given[key], rtol=0, atol=1e-20)
    assert train(*flags, "--checkpoints", "moved") == 0
    assert not torch.allclose(weights("moved")["head.weight"], given["head.weight"], rtol=0, atol=1e-3)


def test_mixed_precision_in_bf16_trains_on_the_cpu():
    assert train("--train_epochs", 1, "--checkpoints", "full") == 0
    assert train("--train_epochs", 1, "--amp", "--amp_dtype", "bf16", "--checkpoints", "mixed") == 0
    mixed, full = weights("mixed"), weights("full")
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in mixed.values())
    assert not same(mixed, full)  # the lower precision was used
    assert (mixed["head.weight"] - full["head.weight"]).abs().max() < 0.05  # and gets to about the same place


def test_weight_decay_changes_the_weights():
    for folder, decay in (("a", 0), ("b", 0.5)):
        assert train("--train_epochs", 1, "--weight_decay", decay, "--checkpoints", folder) == 0
    assert not same(weights("a"), weights("b"))


# --- training that goes wrong

def test_a_loss_that_becomes_nan_stops_and_keeps_the_checkpoint(monkeypatch, capsys):
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


def test_an_infinite_loss_stops_the_run_like_nan(monkeypatch, capsys):
    loss = SupervisedLoss.__call__
    monkeypatch.setattr(SupervisedLoss, "__call__", lambda self, m, x, y: loss(self, m, x, y) * float("inf"))
    assert train("--train_epochs", 1) == 2
    assert "inf at step 1" in capsys.readouterr().err


def test_weights_that_explode_stop_the_run_without_a_checkpoint(monkeypatch, capsys):
    monkeypatch.setattr("exp.train.trainer.learning_rate", lambda *_: 1e30)
    assert train("--train_epochs", 2, "--clip_grad", 0) == 2
    said = capsys.readouterr().err
    assert "at step 2 (epoch 1, batch 2)" in said and "no checkpoint of this run yet" in said
    assert "--learning_rate" in said and not list(Path().rglob("*.pth"))


def test_an_older_runs_checkpoint_is_not_taken_for_this_ones(monkeypatch, capsys):
    flags = ["--train_epochs", 1, "--clip_grad", 0]
    assert train(*flags) == 0
    monkeypatch.setattr("exp.train.trainer.learning_rate", lambda *_: 1e30)
    assert train(*flags) == 2
    assert "no checkpoint of this run yet" in capsys.readouterr().err


def test_validations_that_are_all_nan_are_no_success(monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "validate", lambda self: float("nan"))
    assert train("--train_epochs", 1) == 2
    assert "no validation loss was finite" in capsys.readouterr().err
    assert not (Path("checkpoints") / SETTING / "checkpoint.pth").exists()
