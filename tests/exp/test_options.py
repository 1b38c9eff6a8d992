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
    assert said.count("\n") == 1 and "--amp" in said
    assert f"checkpoint {folder}/checkpoint.pth), patch 1 of" in said and "window 0 " in said and "not finite" in said
    assert not list(Path("test_results").rglob("*")) and not list(Path().glob("result_*"))


# --- weights that start another training

START = f"{BASE} --model timer_xl_draft --learning_rate 1e-30 --adaptation --pretrain_model_path checkpoints"
TARGET_SIZES = "--seq_len 48 --input_token_len 12 --d_model 16 --n_heads 2 --d_ff 32"
SIZES = f"{TARGET_SIZES} --draft_scale_d_ff 0.5"
RUN = "forecast_test_timer_xl_draft_test_0"


def bare_settings(**changes):
    """A deterministic draft of STRIDE, trained without normalisation: its weights, and the settings of ours."""
    config = replace(CONFIG, draft_scale_d_ff=0.5, use_norm=False, **changes)
    save(Path("checkpoints") / "plain", timer_xl_draft.Model(config), **config.as_dict(), seq_len=48)
    return config


def test_weights_without_normalisation_are_adapted_with_it(capsys):
    bare_settings()
    assert run.main(f"{START}/plain --use_norm".split()) == 0
    assert "were trained without --use_norm" in capsys.readouterr().out
    settings, state = trained(RUN)
    assert settings["use_norm"] is True and settings["draft_stochastic"] is False
    torch.testing.assert_close(state, trained("plain")[1])


def test_a_stochastic_draft_starts_from_deterministic_weights_and_says_what_is_new(capsys):
    bare_settings()
    before = trained("plain")[1]
    assert run.main(f"{START}/plain --use_norm --draft_stochastic".split()) == 0
    said = capsys.readouterr().out
    assert "note: not in that checkpoint, so these start afresh: head_logvar.bias, head_logvar.weight" in said
    settings, state = trained(RUN)
    assert settings["draft_stochastic"] is True
    assert float(state["head_logvar.bias"].mean()) == pytest.approx(timer_xl_draft.LOGVAR_START)
    torch.testing.assert_close({key: value for key, value in state.items() if "logvar" not in key}, before)


def test_a_bare_checkpoint_of_stride_is_tested_and_starts_a_stochastic_draft(capsys):
    bare_settings()
    state = {key.replace("head_mean.", "head."): value for key, value in trained("plain")[1].items()}
    Path("checkpoints/stride").mkdir()
    torch.save(state, "checkpoints/stride/checkpoint.pth")
    assert run.main(f"{BASE} --is_training 0 --model timer_xl_draft --test_dir stride {SIZES}".split()) == 0
    assert run.main(f"{BASE} --is_training 0 --test_dir plain --model timer_xl_draft".split()) == 0
    assert metrics("stride_pl12")["mse"] == metrics("plain_pl12")["mse"]
    assert run.main(f"{START}/stride {SIZES} --draft_stochastic".split()) == 0, capsys.readouterr().err
    torch.testing.assert_close(trained(RUN)[1]["head_mean.weight"], state["head.weight"])


@pytest.mark.parametrize("flags, word", [("--use_norm --norm_mode causal", "--norm_mode causal contradicts"),
                                         ("--draft_scale_d_ff 0.25", "--draft_scale_d_ff 0.25 contradicts"),
                                         ("--covariate", "--covariate True contradicts")])
def test_other_changes_of_the_architecture_stay_refused(flags, word, capsys):
    bare_settings()
    assert run.main(f"{START}/plain {flags}".split()) == 2
    assert word in capsys.readouterr().err


def test_a_task_gives_its_name_to_the_folder():
    assert run.main(f"{BASE} --task_name pretrain --model_id w {TARGET_SIZES}".split()) == 0
    assert trained("pretrain_w_timer_xl_test_0")[0]["task_name"] == "pretrain"


# --- names, paths and values

@pytest.mark.parametrize("tested, words", [
    ("checkpoints/target", "--checkpoints checkpoints --test_dir target"),
    ("./checkpoints/target/checkpoint.pth", "--checkpoints checkpoints --test_dir target --test_file_name "),
    ("elsewhere/mine", "--checkpoints elsewhere --test_dir mine"),
])
def test_a_path_in_place_of_a_name_is_answered_with_the_flags_to_write(tested, words, capsys):
    save(Path("elsewhere") / "mine", timer_xl.Model(CONFIG))
    for path in (tested, str(Path(tested).absolute())):
        assert run.main([*BASE.split(), "--is_training", "0", "--test_dir", path]) == 2
        said = capsys.readouterr().err
        folder = words if path == tested else words.replace("--checkpoints ", f"--checkpoints {Path().absolute()}/", 1)
        assert f"{path} is a path, but must be the name" in said and f"write {folder}" in said


def test_a_name_that_leads_out_stays_refused_and_a_name_of_several_parts_does_not(capsys):
    assert run.main(f"{BASE} --is_training 0 --test_dir ../nowhere".split()) == 2
    assert "leaves the folder" in capsys.readouterr().err
    save(Path("checkpoints") / "group" / "target", timer_xl.Model(CONFIG), seq_len=48)
    assert run.main(f"{BASE} --is_training 0 --test_dir group/target".split()) == 0


def test_a_long_name_of_openltm_is_answered_with_the_folder_that_was_trained(capsys):
    assert run.main(f"{BASE} --model_id ETTh1 {TARGET_SIZES}".split()) == 0
    name = "forecast_ETTh1_timer_xl_ETTh1_Multi_sl672_it96_ot96_lr0.0001_bt32_wd0_test_0"
    assert run.main(f"{BASE} --is_training 0 --test_dir {name}".split()) == 2
    assert "(there are: checkpoints/forecast_ETTh1_timer_xl_test_0, " in capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    ("--test_dir target --is_training 1", "without --is_training 0 (not 1): change that flag"),
    ("--test_dir target", "without --is_training 0: add that flag"),
    ("--spec_covariance full --compare --spec_draft_ckpt x --is_training 0 --spec_sigma_mode fixed",
     "without --spec_sigma_mode calibrated (not fixed) or --draft_teacher_noise calibrated: change that flag"),
])
def test_an_idle_flag_is_answered_with_the_value_that_it_needs(flags, words, capsys):
    assert run.main(f"{BASE} {flags}".split()) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("flags, words", [
    ("--do_predict", "--ddp is for training and testing, but --do_predict runs in one process"),
    ("--is_training 0 --use_speculative --spec_draft_ckpt x --spec_adaptive", "--spec_adaptive learns from one batch"),
])
def test_what_several_processes_cannot_share(flags, words, capsys):
    assert run.main(f"{BASE} {flags} --test_dir target --ddp".split()) == 2
    assert words in capsys.readouterr().err


def test_the_published_fields_stand_in_the_summary():
    speculative = "--use_speculative --spec_draft_ckpt checkpoints/draft --spec_accept_rule simplified"
    flags = f"{BASE} --is_training 0 --test_dir target --batch_size 16 --test_pred_len 36 {speculative}"
    assert run.main(flags.split()) == 0
    got = metrics("target_pl36_spec_simplified_sample")
    first, ours, times, counts, *_ = Path("result_inference_summary.txt").read_text().splitlines()
    assert first.startswith("target_pl36_spec_simplified_sample") and ours.startswith("windows: ")
    fields = dict(part.split(":") for part in f"{times}, {counts}".split(", "))
    assert list(fields) == ["total_gen_time_s", "per_batch_s", "accepted", "attempted", "acceptance_pct"]
    assert float(fields["total_gen_time_s"]) == pytest.approx(got["seconds"], abs=1e-6)
    assert float(fields["per_batch_s"]) == pytest.approx(got["seconds"] / -(-got["windows"] // 16), abs=1e-6)
    assert int(fields["accepted"]) == got["accepted"] and int(fields["attempted"]) == got["attempted"] > 0
    assert float(fields["acceptance_pct"]) == pytest.approx(100 * got["accepted"] / got["attempted"], abs=0.005)
