"""Flags out of range, and names that leave their folder."""
from pathlib import Path

import pytest
from bad_input.cases import DRAFT, SPECULATIVE, TEST, Case, just_target, name_of, pair

CASES = [
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
    Case("model_id too long for a folder", f"--model_id {300 * 'a'}", ["--model_id", "aaa...", "at most 60 bytes"]),
    Case("des too long for a folder", f"--des {31 * 'ö'}", ["--des", "at most 60 bytes"]),
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
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_values_are_refused(refused, case):
    refused(case)
