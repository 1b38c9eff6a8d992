"""Bad input: exit code 2, one line on stderr that says what, where and what to do, and nothing written."""
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import run
from exp.exp_basic import MODELS
from models import timer_xl, timer_xl_draft
from models.config import ModelConfig
from utils.checkpoint import CHECKPOINT, save_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--quiet --root_path . --data_path good.csv --seq_len 48 --input_token_len 12 --test_pred_len 36 "
         "--d_model 16 --n_heads 2 --d_ff 32 --train_epochs 1")
TEST = "--is_training 0 --checkpoints given --test_dir target"
DRAFT = "given/draft/checkpoint.pth"


class Payload:
    """Unpickling an object of this class would run a command."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def save_model(folder, name="timer_xl", **changes):
    """An untrained model of the size that SMALL asks for, with its args.json."""
    config = ModelConfig(**({"input_token_len": 12, "d_model": 16, "n_heads": 2, "d_ff": 32, "e_layers": 1,
                             "use_norm": False} | changes))
    model = (timer_xl if name == "timer_xl" else timer_xl_draft).Model(config)
    save_checkpoint(Path(folder), model.state_dict(), config.as_dict() | {"model": name})


def write_rows(name, rows, edit=None, header="date,HUFL,OT"):
    values = np.random.default_rng(0).normal(size=(rows, 2)).round(4)
    lines = [f"2020-01-01 {i:05d},{a},{b}" for i, (a, b) in enumerate(values)]
    for row, text in (edit or {}).items():
        lines[row] = text
    Path(name).write_text("\n".join([header, *lines]) + "\n")


def date_only():
    Path("dates.csv").write_text("date\n" + "".join(f"2020-01-{day:02d}\n" for day in range(1, 29)))


def typo():
    write_rows("typo.csv", 600, {7: "2020-01-01,1.5,12o.4"})


def nan_run():
    write_rows("gap.csv", 600, dict.fromkeys(range(99, 104), "2020-01-01,1.5,"))


def truncated():
    save_model("given/target")
    content = Path("given/target/checkpoint.pth").read_bytes()
    Path("given/target/checkpoint.pth").write_bytes(content[:len(content) // 2])


def malicious():
    save_model("given/target")
    with open("given/target/checkpoint.pth", "wb") as handle:
        pickle.dump({"head.weight": Payload()}, handle)


def malicious_archive():
    save_model("given/target")
    torch.save({"head.weight": Payload()}, "given/target/checkpoint.pth")


def list_of_tensors():
    save_model("given/target")
    torch.save([torch.zeros(3)], "given/target/checkpoint.pth")


def settings_of_another_shape():
    save_model("given/other", d_model=24)
    save_model("given/target")
    Path("given/other/checkpoint.pth").replace("given/target/checkpoint.pth")


def args_json(content):
    def prepare():
        save_model("given/target")
        Path("given/target/args.json").write_text(content)
    return prepare


def pair(**draft_changes):
    def prepare():
        save_model("given/target")
        save_model("given/draft", "timer_xl_draft", draft_stochastic=True, **draft_changes)
    return prepare


def target_of_patch_24():
    save_model("given/target", input_token_len=24)


def just_target():
    save_model("given/target")


def cut_calibration():
    save_model("given/target")
    Path("given/target/checkpoint_calibration_good_48_diag.pth").write_bytes(b"PK")


def nothing():
    pass


@dataclass
class Case:
    """flags are added to SMALL and win over it; words must all stand in the one line on stderr."""

    name: str
    flags: str
    words: list
    prepare: Callable = nothing


PREDICT = "--do_predict --checkpoints given --test_dir target"
SPECULATIVE = f"{TEST} --use_speculative --spec_draft_ckpt {DRAFT}"
CASES = [
    # data
    Case("missing data file", "--data_path nowhere.csv", ["nowhere.csv", "does not exist", "--data_path"]),
    Case("date-only csv", "--data_path dates.csv", ["dates.csv", "no numeric column"], date_only),
    Case("text in a numeric cell", "--data_path typo.csv", ["typo.csv", "line 9", "'OT'", "12o.4"], typo),
    Case("run of missing values", "--data_path gap.csv", ["gap.csv", "row 100", "'OT'", "run of 5"], nan_run),
    Case("too few rows to train", "--data_path short.csv", ["short.csv", "60 rows", "rows are needed"],
         lambda: write_rows("short.csv", 60)),
    Case("too few rows to test", f"{TEST} --data_path short.csv --test_pred_len 96",
         ["short.csv", "200 rows", "test split", "rows are needed"],
         lambda: (just_target(), write_rows("short.csv", 200))),
    # found before the training, not hours later
    Case("horizon longer than the test part, in training", "--test_pred_len 240", ["good.csv", "600 rows", "240"]),
    Case("cut ETT file", "--data_path ETTh1.csv", ["ETTh1.csv", "600", "14400"], lambda: write_rows("ETTh1.csv", 600)),
    # lengths
    Case("seq_len not a multiple of the patch", "--seq_len 50", ["--seq_len 50", "--input_token_len 12", "48"]),
    Case("test_seq_len not a multiple of the patch", "--test_seq_len 53", ["--test_seq_len 53", "12", "48"]),
    Case("seq_len below the patch", "--seq_len 5", ["--seq_len 5", "use 12"]),
    Case("output_token_len different", "--output_token_len 24",
         ["--output_token_len 24", "--input_token_len 12", "equal"]),
    Case("d_model and n_heads that do not fit", "--d_model 10 --n_heads 3",
         ["--d_model 10", "--n_heads 3", "multiple of 4"]),
    Case("odd head width", "--d_model 12 --n_heads 2", ["--d_model 12", "--n_heads 2", "multiple of 4"]),
    # checkpoints
    Case("checkpoint missing", TEST, ["target/checkpoint.pth", "does not exist"]),
    Case("checkpoint cut short", TEST, ["target/checkpoint.pth", "damaged"], truncated),
    Case("checkpoint that runs code, plain pickle", TEST, ["target/checkpoint.pth", "could run code"], malicious),
    Case("checkpoint that runs code, torch archive", TEST, ["target/checkpoint.pth", "could run code"],
         malicious_archive),
    Case("checkpoint of a wrong type", TEST, ["target/checkpoint.pth", "list"], list_of_tensors),
    Case("checkpoint of another shape", TEST,
         ["target/checkpoint.pth", "embedding.weight", "[24, 12]", "[16, 12]"], settings_of_another_shape),
    Case("checkpoint of a draft tested as a target", f"{TEST} --test_dir draft",
         ["draft/checkpoint.pth", "timer_xl_draft", "not a timer_xl"], pair()),
    Case("checkpoint of a draft as the distillation target",
         f"--model timer_xl_draft --distill --distill_target_ckpt {DRAFT}", ["draft/checkpoint.pth", "timer_xl_draft"],
         pair()),
    Case("args.json cut short", TEST, ["target/args.json", "not valid JSON"], args_json('{"model": "timer_')),
    Case("args.json is a list", TEST, ["target/args.json", "JSON object"], args_json("[1]")),
    Case("args.json without the architecture", TEST, ["args.json", "d_model"],
         args_json('{"model": "timer_xl", "input_token_len": 12}')),
    Case("args.json without the patch length", TEST, ["args.json", "input_token_len"],
         args_json('{"model": "timer_xl", "d_model": 16, "n_heads": 2, "d_ff": 32, "e_layers": 1}')),
    Case("flag contradicting args.json", f"{TEST} --d_model 32",
         ["--d_model 32", "16", "target/checkpoint.pth", "leave the flag out"], just_target),
    Case("switch contradicting args.json", f"{TEST} --use_norm", ["--use_norm True", "False"], just_target),
    Case("target of another patch length", TEST, ["target/checkpoint.pth", "24", "--input_token_len 12", "patch"],
         target_of_patch_24),
    Case("draft of another patch length", SPECULATIVE,
         ["draft/checkpoint.pth", "24", "--input_token_len 12", "patch"], pair(input_token_len=24)),
    Case("draft missing", SPECULATIVE, [DRAFT, "does not exist"], just_target),
    Case("draft missing, found before the training", f"--use_speculative --spec_draft_ckpt {DRAFT}",
         [DRAFT, "does not exist"]),
    Case("pretrained weights missing", "--adaptation --pretrain_model_path given/none.pth", ["given/none.pth"]),
    Case("adaptation of another size", f"--adaptation --pretrain_model_path given/target/{CHECKPOINT} --d_model 32 "
         "--data_path nowhere.csv", ["--d_model 32", "16", "given/target"], just_target),
    Case("adaptation of another model", f"--adaptation --pretrain_model_path {DRAFT}",
         ["given/draft", "timer_xl_draft", "--model"], pair()),
    # flags out of range
    Case("negative spec_tol", f"{SPECULATIVE} --spec_tol -0.1", ["--spec_tol", "-0.1", "at least 0"]),
    Case("dropout above one", "--dropout 1.5", ["--dropout", "1.5", "at most 0.999"]),
    Case("spec_k 0", f"{SPECULATIVE} --spec_k 0", ["--spec_k", "0", "at least 1"]),
    Case("subset ratio 0", "--subset_rand_ratio 0", ["--subset_rand_ratio", "above 0"]),
    Case("not a number", "--learning_rate fast", ["--learning_rate", "'fast'", "not a number"]),
    Case("not finite", "--learning_rate nan", ["--learning_rate", "nan", "above 0"]),
    Case("infinite", "--learning_rate inf", ["--learning_rate", "inf"]),
    Case("half a batch", "--batch_size 1.5", ["--batch_size", "1.5", "whole number"]),
    Case("unknown rule", f"{SPECULATIVE} --spec_accept_rule hope",
         ["--spec_accept_rule", "hope", "simplified", "tolerance"]),
    Case("unknown flag", "--spec_tolerance 1", ["--spec_tolerance", "--help"]),
    Case("seed too large for numpy", "--seed 4294967296", ["--seed", "4294967296", "at most 4294967295"]),
    Case("seed that grows too large", "--seed 4294967295 --itr 2", ["--seed 4294967295", "--itr 2"]),
    Case("spec_accept_mse_tol not finite", f"{SPECULATIVE} --spec_accept_mse_tol nan",
         ["--spec_accept_mse_tol", "nan"]),
    Case("absurd spec_sigma", f"{SPECULATIVE} --spec_sigma 1e300", ["--spec_sigma", "1e300", "at most 1000000"]),
    Case("absurd weight_decay", "--weight_decay 1e9", ["--weight_decay", "at most 1000000"]),
    Case("absurd batch_size", "--batch_size 99999999999999", ["--batch_size", "at most 2147483648"]),
    Case("absurd num_workers", "--num_workers 1000", ["--num_workers", "at most 64"]),
    Case("absurd d_model", "--d_model 1000000", ["--d_model", "at most 16384"]),
    Case("absurd e_layers", "--e_layers 100000", ["--e_layers", "at most 1024"]),
    Case("season longer than the context", f"{TEST} --compare --spec_draft_ckpt {DRAFT} --season 49",
         ["--season 49", "48", "shorter"], pair()),
    Case("season longer than the context, found before the training",
         f"--compare --spec_draft_ckpt {DRAFT} --season 49 --data_path nowhere.csv", ["--season 49", "48"]),
    # paths that leave their folder
    Case("model_id leaving its folder", "--model_id ../../x", ["--model_id", "../../x", "leave out '/'"]),
    Case("des leaving its folder", "--des /../../../x", ["--des", "leave out '/'"]),
    Case("control character in des", "--des a\x1bb", ["--des", "control characters"]),
    Case("test_dir leaving its folder", f"{TEST} --test_dir ../target", ["--test_dir", "../target"], just_target),
    Case("test_file_name leaving its folder", f"{TEST} --test_file_name ../../secret.pth",
         ["--test_file_name", "../../secret.pth"], just_target),
    Case("spec_debug_out leaving its folder", f"{SPECULATIVE} --spec_debug_accept --spec_debug_out ../../x.csv",
         ["--spec_debug_out", "../../x.csv"], pair()),
    Case("spec_debug_out without a name", f"{SPECULATIVE} --spec_debug_accept --spec_debug_out=",
         ["--spec_debug_out", "end it with .csv"], pair()),
    Case("spec_debug_out over the metrics", f"{SPECULATIVE} --spec_debug_accept --spec_debug_out metrics.json",
         ["--spec_debug_out", "metrics.json", "end it with .csv"], pair()),
    Case("test_results is a file, found before the training", "--data_path nowhere.csv",
         ["test_results", "is a file", "--des"], lambda: Path("test_results").touch()),
    Case("checkpoints is a file", "--checkpoints good.csv", ["good.csv"]),
    # forecasts beyond the end of a file
    Case("a file shorter than the context", f"{PREDICT} --data_path short.csv",
         ["short.csv", "40 rows", "takes 48", "--test_seq_len 36"],
         lambda: (just_target(), write_rows("short.csv", 40))),
    Case("a file with a gap in its times", PREDICT, ["good.csv", "data row 1", "not a time"], just_target),
    Case("a file with missing values", f"{PREDICT} --data_path gap.csv", ["gap.csv", "row 100", "run of 5"],
         lambda: (just_target(), nan_run())),
    Case("training to predict", f"{PREDICT} --is_training 1", ["--do_predict", "--is_training 1"]),
    Case("a comparison of a prediction", f"{PREDICT} --compare", ["--compare", "--do_predict"]),
    Case("pictures of test windows of a prediction", f"{PREDICT} --visualize", ["--visualize", "--do_predict"]),
    Case("a prediction planned on validation windows", f"{PREDICT} --spec_draft_ckpt {DRAFT} --spec_k auto",
         ["--spec_k auto", "--do_predict", "a number"]),
    Case("one drawn path as a prediction", f"{PREDICT} --spec_draft_ckpt {DRAFT} --spec_emit sample",
         ["--spec_emit sample", "mean"]),
    Case("a prediction by a draft that is not there", f"{PREDICT} --spec_draft_ckpt {DRAFT}",
         [DRAFT, "does not exist"], just_target),
    Case("K of a prediction without a draft", f"{PREDICT} --spec_k 2", ["--spec_k", "--use_speculative"]),
    # flags without what they need, or without effect
    Case("spec_k without speculation", f"{TEST} --spec_k 2", ["--spec_k", "no effect", "--use_speculative"],
         just_target),
    Case("distill_target_d_model without distill", "--distill_target_d_model 16", ["--distill_target_d_model",
                                                                                  "no effect", "--distill"]),
    Case("draft_teacher_noise without distill", "--draft_teacher_noise 0.1", ["--draft_teacher_noise", "--distill"]),
    Case("season without compare", "--season 12", ["--season", "--compare"]),
    Case("pretrain_model_path without adaptation", "--pretrain_model_path x.pth", ["--pretrain_model_path",
                                                                                   "--adaptation"]),
    Case("draft_stochastic for a target", "--draft_stochastic", ["--draft_stochastic", "timer_xl_draft"]),
    Case("adaptation without weights", "--adaptation", ["--adaptation", "--pretrain_model_path"]),
    Case("distill without a target", "--model timer_xl_draft --distill", ["--distill", "--distill_target_ckpt"]),
    Case("use_speculative without a draft", f"{TEST} --use_speculative", ["--use_speculative", "--spec_draft_ckpt"]),
    Case("compare without a draft", f"{TEST} --compare", ["--compare", "--spec_draft_ckpt"]),
    Case("compare together with use_speculative", f"{SPECULATIVE} --compare", ["--compare", "--use_speculative"]),
    Case("compare of a draft", f"{TEST} --compare --spec_draft_ckpt {DRAFT} --model timer_xl_draft",
         ["--compare", "timer_xl_draft"], pair()),
    Case("spec_sigma together with tolerance", f"{SPECULATIVE} --spec_accept_rule tolerance --spec_sigma 0.2",
         ["--spec_sigma", "tolerance", "simplified"]),
    Case("spec_temp together with tolerance", f"{SPECULATIVE} --spec_accept_rule tolerance --spec_temp 2",
         ["--spec_temp", "tolerance"]),
    Case("spec_tol together with simplified", f"{SPECULATIVE} --spec_accept_rule simplified --spec_tol 0.2",
         ["--spec_tol", "simplified"]),
    Case("bias together with exact", f"{SPECULATIVE} --spec_accept_rule exact --spec_accept_bias 2",
         ["--spec_accept_bias", "exact", "use simplified"]),
    Case("a threshold together with coupling", f"{SPECULATIVE} --spec_accept_rule coupling --spec_accept_mse_tol 0.1",
         ["--spec_accept_mse_tol", "coupling", "use simplified"]),
    Case("spec_tol together with coupling", f"{SPECULATIVE} --spec_accept_rule coupling --spec_tol 0.2",
         ["--spec_tol", "coupling", "use tolerance"]),
    Case("a law that follows the proposal", f"{SPECULATIVE} --spec_accept_rule exact --spec_sigma_mode adaptive",
         ["--spec_sigma_mode adaptive", "exact", "fixed"]),
    Case("reproposing for a rule that keeps the law",
         f"{SPECULATIVE} --spec_accept_rule coupling --spec_repropose target", ["--spec_repropose target", "coupling"]),
    Case("causal statistics without normalisation", "--norm_mode causal", ["--norm_mode causal", "--use_norm"]),
    Case("a trailing window without causal statistics", "--use_norm --norm_window 3", ["--norm_window", "causal"]),
    Case("heads for several patches without forecasts to learn them from",
         "--model timer_xl_draft --distill --distill_target_ckpt given/target/checkpoint.pth --draft_patches 3",
         ["--draft_patches 3", "--draft_rollout"]),
    Case("forecasts of a teacher with dropout, made by workers",
         "--model timer_xl_draft --distill --distill_target_ckpt given/target/checkpoint.pth --draft_rollout 2 "
         "--draft_teacher_dropout 0.1 --num_workers 1", ["--num_workers 1", "--num_workers 0"], just_target),
    Case("a choice of tokens for forecasts to learn from", "--model timer_xl_draft --distill --draft_rollout 2 "
         "--distill_target_ckpt given/target/checkpoint.pth --last_token", ["--last_token", "--draft_rollout"]),
    Case("forecasts to learn from, without a target", "--draft_rollout 3", ["--draft_rollout", "--distill"]),
    Case("K neither a number nor auto", f"{SPECULATIVE} --spec_k many", ["--spec_k", "many"]),
    Case("K both planned and adapted", f"{SPECULATIVE} --spec_k auto --spec_adaptive", ["auto", "--spec_adaptive"]),
    Case("reproposing for a rule that samples", f"{SPECULATIVE} --spec_accept_rule simplified --spec_repropose target",
         ["--spec_repropose target", "tolerance"]),
    Case("sampled emission together with tolerance", f"{SPECULATIVE} --spec_emit sample", ["--spec_emit", "tolerance"]),
    # sampled paths and the law they come from
    Case("a single path", f"{TEST} --num_samples 1", ["--num_samples", "1", "at least 2"]),
    Case("num_samples of a rule that emits means", f"{SPECULATIVE} --num_samples 9", ["--num_samples", "tolerance"]),
    Case("num_samples together with compare", f"{TEST} --compare --spec_draft_ckpt {DRAFT} --num_samples 9",
         ["--num_samples", "--compare"]),
    Case("num_samples together with an emission", f"{SPECULATIVE} --spec_sigma 1 --spec_emit sample --num_samples 9",
         ["--spec_emit", "--num_samples"]),
    Case("save_samples without samples", f"{TEST} --save_samples", ["--save_samples", "--num_samples"]),
    Case("samples larger than any use", f"{TEST} --num_samples 10000 --save_samples --test_pred_len 119 --seq_len 12 "
         "--data_path long.csv", ["--save_samples", "GiB", "--test_windows"],
         lambda: (just_target(), write_rows("long.csv", 7000))),
    Case("more test windows than there are", f"{TEST} --test_windows 86", ["--test_windows 86", "85"], just_target),
    Case("more test windows than there are, found before the training", "--test_windows 86", ["--test_windows 86"]),
    Case("a law without anything to sample", f"{TEST} --spec_sigma 0.2", ["--spec_sigma", "--num_samples"]),
    Case("spec_covariance of a fixed sigma", f"{TEST} --num_samples 9 --spec_covariance full",
         ["--spec_covariance", "calibrated"]),
    Case("spec_sigma of a calibrated law", f"{TEST} --num_samples 9 --spec_sigma_mode calibrated --spec_sigma 1",
         ["--spec_sigma 1", "calibrated"]),
    Case("adaptive sigma without a draft", f"{TEST} --num_samples 9 --spec_sigma_mode adaptive",
         ["adaptive", "fixed or calibrated"]),
    Case("calibrated sigma of the published rule", f"{SPECULATIVE} --spec_sigma_mode calibrated",
         ["calibrated", "simplified", "one number"]),
    Case("calibrated sigma of compare", f"{TEST} --compare --spec_draft_ckpt {DRAFT} --spec_sigma_mode calibrated",
         ["calibrated", "simplified"]),
    Case("too few windows to calibrate on", f"{TEST} --num_samples 9 --spec_sigma_mode calibrated "
         "--data_path short.csv", ["short.csv", "29 windows", "36"],
         lambda: (just_target(), write_rows("short.csv", 400))),
    Case("too few windows to calibrate on, found before the training",
         "--num_samples 9 --spec_sigma_mode calibrated --data_path short.csv", ["short.csv", "36"],
         lambda: write_rows("short.csv", 400)),
    Case("too few rows to calibrate a prediction on", f"{PREDICT} --num_samples 9 --data_path short.csv",
         ["short.csv", "80 rows", "21 windows", "95 rows", "--spec_sigma"],
         lambda: (just_target(), Path("short.csv").write_text("a,b\n" + "1,2\n2,1\n" * 40))),
    Case("a calibrated law of a forecast without paths", f"{PREDICT} --spec_draft_ckpt {DRAFT} "
         "--spec_accept_rule exact --spec_sigma_mode calibrated", ["calibrated", "--do_predict", "--num_samples"]),
    Case("a law that follows the proposals of a prediction", f"{PREDICT} --num_samples 9 --spec_sigma_mode adaptive",
         ["adaptive", "--num_samples"]),
    Case("a calibration cut short", f"{TEST} --num_samples 9 --spec_sigma_mode calibrated",
         ["calibration_good_48_diag.pth", "damaged", "delete it"], cut_calibration),
    Case("teacher noise of an unknown kind", "--model timer_xl_draft --distill --distill_target_ckpt x "
         "--draft_teacher_noise much", ["--draft_teacher_noise", "'much'"]),
    Case("spec_debug_accept together with compare",
         f"{TEST} --compare --spec_draft_ckpt {DRAFT} --spec_debug_accept", ["--spec_debug_accept", "--compare"]),
    Case("cosine together with lradj", "--cosine --lradj type1", ["--lradj", "--cosine", "leave one"]),
    Case("amp_dtype without amp", "--amp_dtype bf16", ["--amp_dtype", "--amp"]),
    Case("fp16 on the CPU", "--amp --amp_dtype fp16", ["--amp_dtype fp16", "GPU"]),
    Case("draft_scale for a target", "--draft_scale_d_ff 0.5", ["--draft_scale_d_ff", "--model timer_xl_draft"]),
    Case("spec_sigma_adapt_c for a fixed sigma", f"{SPECULATIVE} --spec_sigma 0.2 --spec_sigma_adapt_c 4",
         ["--spec_sigma_adapt_c", "--spec_sigma_mode adaptive"]),
    Case("draft_nll_var_reg for a target", "--draft_nll_var_reg 0.1 --draft_stochastic --use_speculative "
         f"--spec_draft_ckpt {DRAFT}", ["--draft_nll_var_reg", "--model timer_xl_draft"], pair()),
    Case("gpu together with ddp", "--ddp --gpu 0", ["--gpu", "--ddp", "--devices"]),
    Case("devices that are no numbers", "--ddp --devices 0,one", ["--devices", "'one'", "whole number"]),
    Case("devices named twice", "--ddp --devices 0,0", ["--devices", "0,0", "twice"]),
    Case("dp", "--dp", ["--dp", "--ddp", "torchrun"]),
    Case("ddp without torchrun", "--ddp", ["--ddp", "torchrun"]),
]


def tree(folder):
    """Every file and folder below, with content."""
    return {path: path.read_bytes() if path.is_file() else None for path in Path(folder).rglob("*")}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    # one level down, so that names with '..' would land inside tmp_path and be seen
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.delenv("RANK", raising=False)
    write_rows("good.csv", 600)
    return tmp_path


def assert_one_error_line(text, words):
    assert re.fullmatch(r"error: [^\n]+\n", text), text
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in: {text}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(workplace, capsys, recwarn, case):
    case.prepare()
    before = tree(workplace)
    code = run.main(f"{SMALL} {case.flags}".split())
    said = capsys.readouterr().err
    assert code == 2, said
    assert_one_error_line(said, case.words)
    assert not [str(warning.message) for warning in recwarn]  # outside of pytest it would be another line on stderr
    assert tree(workplace) == before  # no folder either; a payload would have left 'executed'


def test_the_payload_of_these_tests_would_really_run(workplace):
    # else the test of malicious checkpoints could not fail
    pickle.loads(pickle.dumps(Payload()))
    assert Path("executed").exists()


def test_the_base_flags_of_these_tests_are_good(workplace, capsys):
    # else every case could fail for another reason than its own
    just_target()
    assert run.main(f"{SMALL} {TEST}".split()) == 0, capsys.readouterr().err


def test_the_program_ends_with_code_2_and_without_a_traceback(workplace):
    command = [sys.executable, str(ROOT / "run.py"), *SMALL.split(), "--data_path", "nowhere.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert_one_error_line(done.stderr, ["nowhere.csv"])
    assert "Traceback" not in done.stdout + done.stderr
    assert not Path("checkpoints").exists() and not Path("test_results").exists()


@pytest.mark.parametrize("rank, devices", [("1", "0"), ("2", "0,1")])
def test_more_processes_than_devices_are_refused_before_they_wait_for_each_other(workplace, capsys, monkeypatch, rank,
                                                                                 devices):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert run.main(f"{SMALL} --ddp --devices {devices}".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["--ddp", f"process {int(rank) + 1}", "--devices"])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 1 GiB.\n more"),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 TB")])
def test_exhausted_memory_is_one_line(workplace, capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error
    just_target()
    monkeypatch.setitem(MODELS, "timer_xl", fail)
    assert run.main(f"{SMALL} {TEST}".split()) == 2
    assert_one_error_line(capsys.readouterr().err, ["out of memory", "--batch_size"])


def test_an_error_of_the_program_itself_is_not_hidden(workplace, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")
    just_target()
    monkeypatch.setitem(MODELS, "timer_xl", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run.main(f"{SMALL} {TEST}".split())


INTERRUPTED = """
import sys
class Finder:
    def find_spec(self, name, *_):
        if name == "torch":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
import run
sys.exit(run.main(["--is_training", "0"]))
"""


def test_an_interruption_while_the_program_is_loading_ends_with_code_130():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted") and done.stderr.count("\n") == 1
