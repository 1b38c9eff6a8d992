"""The objective of longer heads, computed position by position, and what their training reads and keeps."""
import shutil
from pathlib import Path

import pytest
import torch
from exp_helpers import DISTIL, clone, same, save, stop_at, train, weights
from helpers import PATCH, tiny_series, tiny_target, with_heads, write_series

from exp.train.head_loss import HeadLoss
from exp.train.target_forecasts import TargetForecasts
from models.checkpoint import read_settings
from utils.files import digest

ROLLOUT, COUNT = 5, 2
CAUSAL = {"norm_mode": "causal", "norm_window": 4}


def expected(target, longer, x, y, at):
    """The mean squared error over the patches that are known, at the positions at[b] of each row."""
    errors = []
    for row, positions in enumerate(at):
        series = target.to_patches(torch.cat([x[row], y[row, 0]])[None])
        N = x.shape[1] // PATCH
        for position in positions:
            past = series[:, :N + position] if target.config.causal else series[:, position:N + position]
            with torch.no_grad():
                hidden, stats, _ = target.encode(past, 1)
                said = stats.denormalise(target.head_patches(longer(hidden)))[0, 0]
            for j in range(1, 1 + longer.count):
                if position + j < ROLLOUT:
                    errors.append((said[j - 1] - series[0, N + position + j]).square())
    return torch.stack(errors).mean()


@pytest.mark.parametrize("changes", [{}, CAUSAL], ids=["window", "causal"])
def test_heads_learn_the_targets_forecast_of_the_patches_after_the_next(series, changes):
    target = with_heads(tiny_target(**changes), COUNT)
    x = series()
    windows = [(row, None) for row in x]

    class Windows(list):
        def __getitems__(self, indices):
            return x[indices], None
    y = TargetForecasts(Windows(windows), target, ROLLOUT * PATCH, x.device, quiet=True).__getitems__(list(range(6)))[1]
    loss, longer = HeadLoss(tiny_target(**changes), ROLLOUT), target.longer.eval()
    at = [range(ROLLOUT)] * 6 if changes else [[row % ROLLOUT] for row in range(6)]  # a validation takes turns
    with torch.no_grad():
        assert float(loss(longer, x, y)) == pytest.approx(float(expected(target, longer, x, y, at)), rel=1e-4)
    longer.train()
    found = loss(longer, x, y)
    found.backward()
    assert all(part.grad is not None for part in longer.parameters())
    assert not any(part.requires_grad for part in loss.teacher.parameters())


def test_only_the_last_variable_counts_with_covariates(series):
    target = with_heads(tiny_target(covariate=True), COUNT)
    x, y = series(), torch.randn(6, 1, ROLLOUT * PATCH, 3, generator=torch.Generator().manual_seed(0))
    moved = y.clone()
    other = moved[:, :, -PATCH:, :2]  # the last patch is a label and no input
    other += 1
    loss = HeadLoss(target, ROLLOUT, covariate=True)
    assert torch.equal(loss(target.longer, x, y), loss(target.longer, x, moved))
    assert not torch.equal(HeadLoss(target, ROLLOUT)(target.longer, x, y),
                           HeadLoss(target, ROLLOUT)(target.longer, x, moved))


# --- from the command line

TARGET = Path("target") / "checkpoint.pth"
HEADS = Path("target") / "checkpoint_heads"
BEGIN = ("--quiet --root_path . --data_path tiny.csv --seq_len 48 --test_pred_len 36 --learning_rate 0.003 "
         "--batch_size 32 --self_draft 3")


def begin(*flags, target="--distill_target_ckpt target"):
    return train(*flags, base=f"{BEGIN} {target}".split())


@pytest.fixture
def target(place):
    """An untrained target in the folder `target`."""
    write_series(tiny_series())
    changes = {"input_token_len": 12, "norm_mode": "causal", "norm_window": 4}
    save("target", tiny_target(**changes), seq_len=48, data="MultivariateDatasetBenchmark", data_path="tiny.csv")
    return TARGET


def test_heads_are_kept_beside_a_target_that_stays_as_it_is(target, capsys):
    before = {path.name: digest(path) for path in target.parent.iterdir()}
    assert begin("--train_epochs", 1) == 0
    assert before == {path.name: digest(path) for path in target.parent.iterdir() if path.is_file()}
    assert {path.name for path in HEADS.iterdir()} == {"args.json", "checkpoint.pth", "resume.pth"}
    assert {name: list(value.shape) for name, value in weights("target", "checkpoint_heads").items()} == {
        "block.weight": [16, 16], "block.bias": [16], "heads.weight": [24, 16], "heads.bias": [24]}
    kept = read_settings(HEADS / "checkpoint.pth")
    assert kept["sources"]["distill_target_ckpt"]["sha256"] == before["checkpoint.pth"]
    assert (kept["self_draft"], kept["draft_rollout"], kept["norm_mode"]) == (3, 3, "causal")
    said = capsys.readouterr().out
    assert "training longer heads of target (" in said and "draft passes: 0.000" in said


def test_an_interrupted_training_of_heads_continues_exactly(target, monkeypatch):
    assert begin("--train_epochs", 2) == 0
    whole = clone(weights("target", "checkpoint_heads", "resume.pth"))
    shutil.rmtree(HEADS)
    with monkeypatch.context() as patch:
        stop_at(patch, 14, KeyboardInterrupt())
        assert begin("--train_epochs", 2, "--val_every", 12) != 0
    assert begin("--train_epochs", 2, "--val_every", 12, "--resume") == 0
    assert same(weights("target", "checkpoint_heads", "resume.pth"), whole)


def test_heads_of_other_settings_are_not_overwritten(target, capsys):
    assert begin("--train_epochs", 1) == 0
    kept = digest(HEADS / "checkpoint.pth")
    capsys.readouterr()
    assert begin("--train_epochs", 1, "--self_draft", 2) == 2
    said = capsys.readouterr().err
    assert "checkpoint_heads holds another run, which had --draft_rollout 3 (here 2), --self_draft 3 (here 2): " in said
    assert "move the folder away" in said and "--des" not in said
    assert digest(HEADS / "checkpoint.pth") == kept


@pytest.mark.parametrize("flags, wanted", [
    ("--model timer_xl_draft", "--model is timer_xl_draft: leave it out"),
    ("--dropout 0.1", "--dropout has no effect with --self_draft"),
    ("--itr 2", "--itr 2 with --self_draft: a target has one set of heads"),
    ("--draft_rollout 2", "--draft_rollout 2 is too short for --self_draft 3"),
    ("--spec_draft model", "--spec_draft model has no effect"),
    ("--spec_draft_ckpt target", "--spec_draft_ckpt is about a draft, but --spec_draft head"),
    ("--spec_accept_rule parareal", "does not go with --spec_accept_rule parareal"),
    ("--last_token", "--last_token has no effect with --self_draft"),
    ("--skip_patches 1", "--skip_patches has no effect with --self_draft"),
    ("--draft_teacher_noise 0.1", "--draft_teacher_noise has no effect without --distill"),
    ("--distill", "--distill and --self_draft are two trainings"),
    ("--adaptation --pretrain_model_path target", "--adaptation and --self_draft are two trainings"),
    ("--d_model 32", "`d_model` 32 contradicts the checkpoint"),
    ("--is_training 0", "--self_draft has no effect without --is_training 1"),
])
def test_flags_that_mean_nothing_to_heads_are_refused(target, capsys, flags, wanted):
    assert begin(*flags.split()) == 2
    assert wanted.replace("`d_model`", "--d_model") in capsys.readouterr().err
    assert not HEADS.exists()


def test_heads_need_a_target(place, capsys):
    write_series(tiny_series())
    assert begin(target="") == 2
    assert "--self_draft needs --distill_target_ckpt" in capsys.readouterr().err
    assert begin() == 2
    assert "checkpoint target does not exist" in capsys.readouterr().err


def test_heads_have_no_place_in_a_distillation(target, capsys):
    assert train(*DISTIL.split(), "--spec_draft", "head", "--use_speculative") == 2
    assert "--spec_draft head needs longer heads of the target" in capsys.readouterr().err
