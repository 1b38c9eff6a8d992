"""What a checkpoint knows need not be said again: patch, context and architecture come from its args.json."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import metrics, save

import run
from models import timer_xl, timer_xl_draft
from models.checkpoint import read_settings, save_checkpoint
from models.config import ModelConfig

CONFIG = ModelConfig(input_token_len=12, d_model=16, n_heads=2, d_ff=32, e_layers=1, use_norm=True)
BASE = "--quiet --root_path . --data_path noise.csv --test_pred_len 12 --train_epochs 1"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a series, an untrained target and an untrained stochastic draft of half its width."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 2)), columns=["a", "b"])
    frame.to_csv("noise.csv", index=False)
    narrow = replace(CONFIG, draft_stochastic=True, draft_scale_d_ff=0.5)
    for name, model, config in (("target", timer_xl.Model, CONFIG), ("draft", timer_xl_draft.Model, narrow)):
        # a model's own config has its scales applied; args.json keeps what was asked for
        save(Path("checkpoints") / name, model(config), **config.as_dict(), seq_len=48, data_path="noise.csv")


def trained(name):
    folder = Path("checkpoints") / name
    return read_settings(folder / "checkpoint.pth"), torch.load(folder / "checkpoint.pth", weights_only=True)


@pytest.mark.parametrize("flags, context", [("", 48), ("--test_seq_len 24", 24), ("--seq_len 36", 36),
                                            ("--output_token_len 12", 48)])
def test_lengths_are_held_against_the_patch_of_the_checkpoint(flags, context):
    assert run.main(f"{BASE} --is_training 0 --test_dir target {flags}".split()) == 0
    assert metrics("target_pl12")["context"] == context


@pytest.mark.parametrize("flags", ["--seq_len 50", "--test_seq_len 53", "--output_token_len 24"])
def test_lengths_that_do_not_fit_the_checkpoints_patch_are_refused(flags, capsys):
    assert run.main(f"{BASE} --is_training 0 --test_dir target {flags}".split()) == 2
    said = capsys.readouterr().err
    assert flags in said and "--input_token_len 12" in said


def test_distilling_holds_the_context_against_the_targets_patch():
    flags = "--model timer_xl_draft --distill --distill_target_ckpt checkpoints/target/checkpoint.pth --seq_len 36"
    assert run.main(f"{BASE} {flags}".split()) == 0
    settings, _ = trained("forecast_test_timer_xl_draft_test_0")
    assert settings["input_token_len"] == 12 and settings["seq_len"] == 36 and settings["d_model"] == 16


@pytest.mark.parametrize("flags, context", [("", 48), ("--seq_len 36", 36)])
def test_adaptation_has_the_architecture_of_its_weights(flags, context):
    start = "--adaptation --pretrain_model_path checkpoints/target/checkpoint.pth --learning_rate 1e-30"
    assert run.main(f"{BASE} {start} {flags}".split()) == 0
    settings, state = trained("forecast_test_timer_xl_test_0")
    assert {name: settings[name] for name in ("d_model", "d_ff", "use_norm", "seq_len")} == {
        "d_model": 16, "d_ff": 32, "use_norm": True, "seq_len": context}
    torch.testing.assert_close(state, trained("target")[1])


def test_a_contradicted_size_of_the_target_is_named_by_its_own_flag(capsys):
    flags = "--model timer_xl_draft --distill --distill_target_ckpt checkpoints/target --distill_target_d_model 32"
    assert run.main(f"{BASE} {flags}".split()) == 2
    said = capsys.readouterr().err
    assert "--distill_target_d_model 32" in said and "trained with 16" in said and said.count("\n") == 1


def test_adaptation_of_a_draft_takes_its_scales_and_variance_head():
    start = "--adaptation --pretrain_model_path checkpoints/draft/checkpoint.pth --learning_rate 1e-30"
    assert run.main(f"{BASE} --model timer_xl_draft {start}".split()) == 0
    settings, state = trained("forecast_test_timer_xl_draft_test_0")
    assert settings["draft_scale_d_ff"] == 0.5 and settings["draft_stochastic"] is True
    torch.testing.assert_close(state, trained("draft")[1])


@pytest.mark.parametrize("flags", ["", "--compare --spec_draft_ckpt checkpoints/draft/checkpoint.pth"])
def test_a_forecast_that_overflows_is_an_error_and_no_result(flags, capsys):
    folder = Path("checkpoints") / "target"
    settings, state = trained("target")
    save_checkpoint(folder, state | {"head.weight": torch.full_like(state["head.weight"], 3e38)}, settings)
    assert run.main(f"{BASE} --is_training 0 --test_dir target {flags}".split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "mean squared error is" in said and "overflow" in said
    assert not list(Path("test_results").rglob("*")) and not list(Path().glob("result_*"))
