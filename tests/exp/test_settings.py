"""Settings: where each is declared, what comes before what, and that nothing changes them afterwards."""
import inspect
import json
import re
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from exp_helpers import metrics, save
from helpers import tiny_series, write_series

import run
from exp.flags import DEFAULTS, FLAGS, TITLES, build_parser, flat, given_flags, in_flags
from exp.options import read_command_line, settled
from exp.predict import Forecaster
from exp.settings import SECTIONS, DataSettings, RunSettings, Settings
from exp.speculation import SpecSettings
from models.config import ModelConfig
from models.timer_xl import Model
from utils.acceptance import WAYS
from utils.errors import UserError
from utils.limits import Switch

HOMES = SECTIONS | {"config": ModelConfig}
DECLARED = [(section, own) for section, kind in HOMES.items() for own in fields(kind) if "limit" in own.metadata]
NAMES = [f"{section}.{own.name}" for section, own in DECLARED]


# --- declarations

def test_every_flag_has_a_home_in_exactly_one_section():
    flags = [own.metadata.get("flag", own.name) for _, own in DECLARED]
    assert sorted(flags) == sorted(FLAGS) and len(set(flags)) == len(flags)
    for flag in FLAGS.values():
        assert FLAGS[flag.name].field in fields(HOMES[flag.section]), flag.name
    # only what follows from other flags has none
    rest = {f"{section}.{own.name}" for section, kind in HOMES.items() for own in fields(kind)} - set(NAMES)
    assert rest == {"model.asked", "model.config", "model.trained_on"}


def test_no_parameter_stands_for_two_flags():
    """Else an error that names the parameter would name the wrong flag."""
    names = [own.name for _, own in DECLARED]
    assert len(set(names)) == len(names)


def test_the_parser_knows_every_flag_and_says_something_of_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    lines = re.sub(r"\n {10,}", "  ", build_parser().format_help())  # a flag and its words on one line
    value = r"(?: \w+(?: \[\w+ \.\.\.\])?| \{[^}]*\})?"
    said = dict(re.findall(rf"^  --(\w+)(?:, --no-\w+)?{value} {{2,}}(\S.*)$", lines, re.MULTILINE))
    assert set(said) == set(FLAGS)
    for name, own in ((flag.name, flag.field) for flag in FLAGS.values()):
        assert own.metadata["help"] in said[name], name
        if not isinstance(own.metadata["limit"], Switch):
            assert "default" in said[name] or own.default is None, name
    assert set(TITLES) == set(SECTIONS)


@pytest.mark.parametrize("section, own", DECLARED, ids=NAMES)
def test_a_limit_admits_the_default_and_names_what_it_refuses(section, own):
    limit = own.metadata["limit"]
    assert limit.fits(own.default) and limit.words and not limit.fits(object())
    with pytest.raises(UserError) as caught:
        HOMES[section](**{own.name: object()})
    said = str(caught.value)
    assert said.startswith(f"`{own.name}` is ") and limit.words in said and "--" not in said and "\n" not in said
    assert in_flags(said).startswith(f"--{own.metadata.get('flag', own.name)} is ")


def test_conditions_speak_of_flags_and_values_that_exist():
    for flag in FLAGS.values():
        for condition in [*flag.field.metadata.get("needs", ()), *flag.field.metadata.get("not_with", {})]:
            name, _, wanted = condition.partition("=")
            assert name in FLAGS and name != flag.name, (flag.name, condition)
            if wanted:
                assert FLAGS[name].field.metadata["limit"].read(wanted) is not None, (flag.name, condition)


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_read_from_a_command_line(name):
    limit, default = FLAGS[name].field.metadata["limit"], FLAGS[name].field.default
    assert given_flags([]) == {}
    if isinstance(limit, Switch):
        assert given_flags([f"--{'no-' if default else ''}{name}"]) == {name: not default}
        return
    inner = getattr(limit, "limit", limit)
    texts = ("3", "0.5", "0.5%", "cache", "patch", "mean", "fixed", "series", "draft", "x.csv", "one", "none",
             str(default))
    text = next(text for text in texts if limit_reads(inner, text))
    value, = given_flags([f"--{name}", text]).values()
    assert limit.fits(value) and value == inner.read(text)


def limit_reads(limit, text):
    try:
        limit.read(text)
    except ValueError:
        return False
    return True


# --- parameters and flags in errors

@pytest.mark.parametrize("text, expected", [
    ("`tol` is -1", "--spec_tol is -1"), ("`name`: not `rule`", "--model: not --spec_accept_rule"),
    ("`horizon`, `context`, `kind`", "--test_pred_len, --seq_len, --data"), ("`model` x", "--model x"),
    ("`d_model` 18 with `n_heads` 4", "--d_model 18 with --n_heads 4"), ("`k`", "--spec_k"),
    ("`target_d_model`", "--distill_target_d_model"), ("`draft_checkpoint`", "--spec_draft_ckpt"),
    ("`unheard_of` and tol stay", "`unheard_of` and tol stay"), ("`two words`", "`two words`"), ("--seed", "--seed"),
])
def test_in_flags_puts_the_flag_in_place_of_the_parameter(text, expected):
    assert in_flags(text) == expected


@pytest.mark.parametrize("wrong, words", [
    ({"tol": -1}, "`tol` is -1, but must be a number from 0 to 1000000"), ({"sigma": 0.0}, "`sigma` is 0.0, but"),
    ({"rule": "best"}, "`rule` is 'best', but must be one of coupling, exact, parareal, simplified, tolerance"),
    ({"k": 0}, "`k` is 0, but must be a whole number from 1"), ({"k": True}, "`k` is True"),
    ({"k": "auto", "adaptive": True}, "`k` auto"), ({"tol": float("nan")}, "`tol` is nan"),
])
def test_settings_made_in_python_name_the_parameter(wrong, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        SpecSettings(**wrong)
    assert "--" not in str(caught.value)


def test_a_parameter_that_does_not_exist_is_an_error():
    with pytest.raises(TypeError, match="tolerance"):
        SpecSettings(tolerance=0.1)


# --- nothing changes them

def test_sections_are_frozen():
    settings = read_command_line(["--d_model", "64"])
    for name, kind in SECTIONS.items():
        for own in fields(kind):
            with pytest.raises(FrozenInstanceError):
                setattr(getattr(settings, name), own.name, None)
        with pytest.raises(FrozenInstanceError):
            setattr(settings, name, kind())
    with pytest.raises(FrozenInstanceError):
        settings.model.config.d_model = 32


def test_with_gives_other_settings_and_leaves_these():
    first = Settings()
    second = first.with_("run", seed=5).with_("data", horizon=24)
    assert (second.run.seed, second.data.horizon) == (5, 24) and second.spec is first.spec
    assert first == Settings() and (first.run.seed, first.data.horizon) == (2021, 96)
    with pytest.raises(UserError, match="`seed` is -1"):
        first.with_("run", seed=-1)


def test_the_flags_given_are_not_changed():
    given = {"do_predict": True, "spec_draft_ckpt": "draft.pth", "num_samples": 9}
    before = dict(given)
    settled(given)
    assert given == before


# --- flags > args.json > defaults

# what the version before these settings wrote beside a checkpoint: every flag, and the number of parameters
OLD = """{
 "activation": "gelu", "adaptation": false, "amp": false, "amp_dtype": "bf16", "batch_size": 8, "checkpoints": "whole",
 "clip_grad": 1.0, "compare": false, "compile": false, "cosine": false, "covariate": false, "d_ff": 32, "d_model": 16,
 "data": "UnivariateDatasetBenchmark", "data_path": "noise.csv", "ddp": false, "des": "old", "devices": null,
 "distill": false, "distill_target_ckpt": null, "distill_target_d_ff": null, "distill_target_d_model": null,
 "distill_target_e_layers": null, "distill_target_model": "timer_xl", "distill_target_n_heads": null,
 "do_predict": false, "dp": false, "draft_nll_var_reg": 0.0, "draft_patches": 1, "draft_rollout": 0,
 "draft_scale_d_ff": 1.0, "draft_scale_d_model": 1.0, "draft_scale_e_layers": 1.0, "draft_scale_n_heads": 1.0,
 "draft_stochastic": false, "draft_teacher_dropout": 0.0, "draft_teacher_noise": 0.0, "dropout": 0.3, "e_layers": 2,
 "ema": 0.0, "flash_attention": true, "gpu": 0, "input_token_len": 12, "is_training": 1, "itr": 1, "last_token": false,
 "learning_rate": 0.003, "loss": "MSE", "lradj": "type1", "model": "timer_xl", "model_id": "old", "n_heads": 2,
 "nonautoregressive": false, "norm_mode": "window", "norm_window": 0, "num_samples": null, "num_workers": 0,
 "output_attention": false, "output_token_len": 12, "parameters": 2672, "patience": 3, "pretrain_model_path": null,
 "quiet": true, "resume": false, "rolling": null, "root_path": "/gone", "save_samples": false, "season": 24,
 "seed": 2020, "seq_len": 48, "skip_patches": 0, "spec_accept_bias": 1.0, "spec_accept_mse_tol": -1.0,
 "spec_accept_rule": "tolerance", "spec_adaptive": false, "spec_covariance": "diag", "spec_debug_accept": false,
 "spec_debug_n": 64, "spec_debug_out": "spec_accept_debug.csv", "spec_draft_ckpt": null,
 "spec_draft_model": "timer_xl_draft", "spec_emit": "mean", "spec_k": null, "spec_repropose": "draft",
 "spec_sigma": 0.7, "spec_sigma_adapt_c": 4.0, "spec_sigma_mode": "fixed", "spec_temp": 1.0, "spec_tol": 0.9,
 "subset_rand_ratio": 0.5, "task_name": "forecast", "test_dir": null, "test_file_name": "checkpoint.pth",
 "test_flag": "T", "test_pred_len": 36, "test_seq_len": 48, "test_windows": 7, "tmax": 10,
 "trace_inference_breakdown": false, "train_epochs": 3, "use_norm": true, "use_speculative": false, "val_every": 5,
 "valid_last": false, "visualize": false, "weight_decay": 0.0}"""
NEWER = {"from_the_future": 1, "d_model_2": [1, 2], "spec": {"rule": "coupling"}, "explicit": ["d_model"]}
TEST = ["--is_training", "0", "--test_dir", "old"]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """An args.json of the version before, with some keys that this version does not know; changes: other values."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        folder = Path("checkpoints/old")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "args.json").write_text(json.dumps(json.loads(OLD) | NEWER | changes))
        return folder
    write()
    return write


def test_a_test_has_architecture_and_context_of_its_checkpoint(stored):
    settings = read_command_line(TEST)
    config, data = settings.model.config, settings.data
    assert (config.d_model, config.n_heads, config.d_ff, config.e_layers) == (16, 2, 32, 2)
    assert (config.activation, config.use_norm, config.input_token_len) == ("gelu", True, 12)
    assert (data.kind, data.context, data.test_context) == ("UnivariateDatasetBenchmark", 48, 48)
    assert settings.model.asked == {}


def test_a_test_has_nothing_else_of_its_checkpoint(stored):
    settings = read_command_line(TEST)
    assert settings.spec == SpecSettings() and settings.train == Settings().train
    assert settings.report == Settings().report
    assert settings.run == RunSettings(is_training=0, test_dir="old")
    assert settings.data == replace(DataSettings(), kind="UnivariateDatasetBenchmark", context=48, test_context=48)


@pytest.mark.parametrize("flags, expected", [
    (["--seq_len", "36"], {"context": 36, "test_context": 36}),
    (["--test_seq_len", "24"], {"context": 48, "test_context": 24}),
    (["--seq_len", "36", "--test_seq_len", "24"], {"context": 36, "test_context": 24}),
    (["--data", "MultivariateDatasetBenchmark"], {"kind": "MultivariateDatasetBenchmark", "context": 48}),
    (["--batch_size", "4", "--test_pred_len", "7"], {"batch_size": 4, "horizon": 7, "context": 48}),
])
def test_a_flag_comes_before_the_checkpoint(stored, flags, expected):
    data = read_command_line([*TEST, *flags]).data
    assert {name: getattr(data, name) for name in expected} == expected


def test_an_old_checkpoint_is_tested_and_forecasts_like_a_new_one(stored):
    torch.manual_seed(0)
    model = Model(ModelConfig.from_mapping(json.loads(OLD))).eval()
    torch.save(model.state_dict(), "checkpoints/old/checkpoint.pth")
    save("checkpoints/new", model, seq_len=48, data="UnivariateDatasetBenchmark")
    write_series(tiny_series(300))
    flags = "--quiet --root_path . --data_path tiny.csv --test_pred_len 24 --is_training 0"
    forecasts = []
    for name in ("old", "new"):
        assert run.main(f"{flags} --test_dir {name}".split()) == 0
        forecasts.append(Forecaster.load(f"checkpoints/{name}").predict(pd.read_csv("tiny.csv"), 24))
    # the old one was trained on another file, which the folder of its results tells
    old, new = (metrics(name) for name in ("old_pl24_tiny", "new_pl24"))
    assert old["mse"] == new["mse"] and old["windows"] == new["windows"] == 3 * (60 - 24 + 1)
    pd.testing.assert_frame_equal(*forecasts)
    # each series for itself, as the checkpoint says
    alone = Forecaster.load("checkpoints/old").predict(pd.read_csv("tiny.csv")[["date", "b"]], 24)
    pd.testing.assert_series_equal(alone["mean"], forecasts[0]["mean"][24:48].reset_index(drop=True),
                                   rtol=1e-5, atol=1e-5)


def test_a_flag_of_the_architecture_may_agree_and_not_contradict(stored):
    settings = read_command_line([*TEST, "--d_model", "16", "--use_norm", "--no-flash_attention"])
    assert settings.model.asked == {"d_model": 16, "use_norm": True, "flash_attention": False}
    assert settings.model.config.d_model == 16
    with pytest.raises(UserError) as caught:
        read_command_line([*TEST, "--d_model", "32"])
    assert "--d_model 32 contradicts" in in_flags(str(caught.value)) and "16" in str(caught.value)


@pytest.mark.parametrize("flags", [
    ["--adaptation", "--pretrain_model_path", "checkpoints/old"],
    ["--distill", "--distill_target_ckpt", "checkpoints/old/checkpoint.pth", "--model", "timer_xl_draft"]])
def test_a_training_from_a_checkpoint_has_its_architecture(stored, flags):
    settings = read_command_line(flags)
    config, data = settings.model.config, settings.data
    assert (config.d_model, config.e_layers, config.input_token_len, config.use_norm) == (16, 2, 12, True)
    assert (data.kind, data.context) == ("UnivariateDatasetBenchmark", 48)
    # how it is trained, it does not say
    assert config.dropout == 0.1 and settings.train.learning_rate == 1e-4 and settings.run.seed == 2021
    assert read_command_line([*flags, "--seq_len", "24", "--dropout", "0.2"]).data.context == 24


def test_sizes_of_a_draft_may_differ_from_those_of_its_target(stored):
    distil = ["--distill", "--distill_target_ckpt", "checkpoints/old", "--model", "timer_xl_draft"]
    config = read_command_line([*distil, "--d_model", "8", "--draft_scale_d_ff", "0.5"]).model.config
    assert (config.d_model, config.n_heads, config.d_ff, config.draft_scale_d_ff) == (8, 2, 32, 0.5)


def test_without_a_checkpoint_the_defaults_are_as_declared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = read_command_line([])
    assert settings == Settings()
    assert flat(settings) == DEFAULTS | {"output_token_len": 96, "spec_emit": "mean", "spec_sigma": 0.25,
                                         "spec_sigma_mode": "fixed", "spec_repropose": "draft"}
    assert read_command_line(["--seq_len", "192"]).data.test_context == 192


def test_a_checkpoint_without_args_json_is_described_by_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = read_command_line([*TEST, "--d_model", "64", "--input_token_len", "12", "--seq_len", "36"])
    assert settings.model.config == ModelConfig(d_model=64, input_token_len=12) and settings.data.test_context == 36


@pytest.mark.parametrize("changes, words", [({"d_model": "wide"}, "d_model"), ({"seq_len": 0}, "seq_len"),
                                            ({"data": "Other"}, "data"), ({"seq_len": 50}, "--seq_len 50")])
def test_a_value_in_args_json_that_cannot_be_used_is_named(stored, changes, words):
    stored(**changes)
    with pytest.raises(UserError, match=words) as caught:
        read_command_line(TEST)
    assert "\n" not in str(caught.value)


def test_a_mapping_is_settled_as_a_command_line_is(stored):
    words = [*TEST, "--seq_len", "36", "--spec_draft_ckpt", "d.pth", "--use_speculative", "--spec_sigma", "0.5",
             "--spec_k", "2", "--no-flash_attention"]
    assert settled(given_flags(words)) == read_command_line(words)
    assert read_command_line(words).spec == SpecSettings(rule="simplified", sigma=0.5, k=2)


# --- the flat form

def test_the_flat_form_holds_every_flag_in_plain_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--ddp --devices 1,0 --spec_k auto --input_token_len 48 --norm_mode causal --use_norm --nonautoregressive "
             "--num_samples 9 --use_speculative --spec_draft_ckpt d.pth --spec_accept_rule exact")
    settings = read_command_line(words.split())
    values = flat(settings)
    younger = {"clip_min", "pictures", "balance", "val_windows", "draft_rollout_context", "draft_noise_unit",
               "spec_passes", "draft_answer", "draft_hinge", "spec_rms", "spec_budget", "spec_promise", "spec_width",
               "spec_growth", "bf16", "norm_roll", "id_col", "time_col", "target_col", "missing", "on_bad", "out",
               "backtest", "step", "spec_draft", "self_draft", "inspect", "workers", "ray_address"}
    assert set(values) == set(FLAGS) == set(json.loads(OLD)) - {"parameters"} | younger
    assert json.loads(json.dumps(values)) == values
    assert (values["devices"], values["spec_k"], values["output_token_len"]) == ([1, 0], "auto", 48)
    assert (values["norm_window"], values["last_token"], values["valid_last"]) == (14, True, True)
    assert values["spec_emit"] == "sample" and settings.spec.emit is None


@pytest.mark.parametrize("rule", WAYS)
def test_a_rule_and_its_settings_have_the_same_defaults(rule):
    settings = SpecSettings().filled()
    own = {name: parameter.default for name, parameter in inspect.signature(WAYS[rule]).parameters.items()}
    for name in set(own) - {"law", "emit"}:
        assert own[name] == getattr(settings, name), name


def test_an_explicit_default_counts_as_given():
    assert SpecSettings(sigma=0.25).set_fields() == {"sigma"}
    assert SpecSettings(sigma_mode="fixed").set_fields() == {"sigma_mode"}
    assert SpecSettings().filled() == SpecSettings(sigma=0.25, sigma_mode="fixed", repropose="draft")
    assert SpecSettings(rule="exact").filled().repropose == "corrected"


@pytest.mark.parametrize("argv", ["--is_training 0 --draft_patches 7", "--distill --distill_target_ckpt x "
                                  "--draft_rollout 7 --draft_patches 7"])
def test_what_only_a_draft_has_needs_a_draft(argv):
    with pytest.raises(UserError, match="--draft_patches has no effect without"):
        read_command_line(argv.split())


def test_what_is_switched_off_as_by_default_is_not_refused(stored):
    distil = "--distill --distill_target_ckpt checkpoints/old"
    settings = read_command_line(f"{distil} --draft_rollout 7 --draft_rollout 0 --draft_rollout_context 0".split())
    assert settings.train.rollout == settings.train.rollout_context == 0
    for flag in ("--draft_rollout_context 1", "--draft_noise_unit window", "--draft_answer 1", "--draft_hinge 0.1"):
        with pytest.raises(UserError) as caught:
            read_command_line(f"{distil} --draft_rollout 0 {flag}".split())
        assert f"{flag.split()[0]} has no effect without" in str(caught.value)


def test_a_law_is_not_judged_where_it_was_fitted():
    with pytest.raises(UserError, match="--test_flag V"):
        read_command_line(["--is_training", "0", "--num_samples", "9", "--spec_sigma_mode", "calibrated",
                           "--test_flag", "V"])
