"""Sampled paths, and the law that they come from."""
from pathlib import Path

import pytest
from bad_input.cases import DRAFT, PREDICT, SPECULATIVE, TEST, Case, just_target, name_of, pair
from helpers import save_small, write_rows


def cut_calibration():
    save_small("given/target")
    Path("given/target/checkpoint_calibration_good_48_diag.pth").write_bytes(b"PK")


CASES = [
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
    Case("spec_width of a fixed sigma", f"{TEST} --num_samples 9 --spec_width mixture", ["--spec_width", "calibrated"]),
    Case("spec_width of an unknown kind", f"{TEST} --num_samples 9 --spec_sigma_mode calibrated --spec_width two",
         ["--spec_width", "'two'"]),
    Case("spec_growth of a fixed sigma", f"{TEST} --num_samples 9 --spec_growth none", ["--spec_growth", "calibrated"]),
    Case("spec_growth without paths", f"{SPECULATIVE} --spec_accept_rule coupling --spec_sigma_mode calibrated "
         "--spec_growth none", ["--spec_growth", "--num_samples"]),
    Case("spec_growth of a prediction", f"{PREDICT} --num_samples 9 --spec_sigma_mode calibrated --spec_growth none",
         ["--spec_growth", "--do_predict"]),
    Case("spec_sigma of a calibrated law", f"{TEST} --num_samples 9 --spec_sigma_mode calibrated --spec_sigma 1",
         ["--spec_sigma 1", "calibrated"]),
    Case("adaptive sigma without a draft", f"{TEST} --num_samples 9 --spec_sigma_mode adaptive",
         ["adaptive", "fixed or calibrated"]),
    Case("calibrated sigma of the published rule", f"{SPECULATIVE} --spec_sigma_mode calibrated",
         ["calibrated", "simplified", "a single one"]),
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
    Case("two precisions", f"{TEST} --amp --bf16", ["--bf16", "so does --amp", "leave one"]),
    Case("the time of passes that are replayed as one", f"{TEST} --compile --trace_inference_breakdown",
         ["--trace_inference_breakdown", "--compile", "leave one"]),
    Case("training with half weights", "--is_training 1 --bf16", ["--bf16", "--is_training 0"]),
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


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_laws_are_refused(refused, case):
    refused(case)
