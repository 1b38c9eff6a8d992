"""Flags of other programs: an error that says what to write, none of them taken and ignored."""
import re

import pytest

import run
from exp.flags import FLAGS, build_parser
from exp.foreign_flags import WORDS


def refused(flags, capsys):
    assert run.main(flags.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "Traceback" not in said
    return said


def test_no_flag_of_this_program_counts_as_foreign():
    assert not WORDS.keys() & FLAGS.keys()


def test_what_is_proposed_exists():
    own = build_parser().own_flags() | {"--nproc_per_node"}
    proposed = {flag for words in WORDS.values() for flag in re.findall(r"--\w+", words)}
    assert proposed and proposed <= own


@pytest.mark.parametrize("flags, words", [
    ("--pred_len 96", ["--pred_len: write --test_pred_len"]),
    ("--enc_in 7 --dec_in=7 --c_out 7", ["--enc_in, --dec_in, --c_out: leave it out"]),
    ("--spec_topp 0.9 --spec_draft_seq_len 96", ["--spec_topp: ", "; --spec_draft_seq_len: "]),
    ("--spec_debug_max_batches 3 --spec_debug_max_rounds 4",
     ["--spec_debug_max_batches, --spec_debug_max_rounds: ", "--spec_debug_n"]),
    ("--adapter_to_target --target_d_model 64 --time_exclude_norm", ["--adapter_to_target, --target_d_model: "]),
    # short for flags of ours, were they not known
    ("--checkpoint a.pth", ["--checkpoint: write --checkpoints"]), ("--d_mode common", ["--d_mode: "]),
    ("--mode mix_channel", ["--mode: "]),
])
def test_a_flag_of_another_program_is_answered_with_what_replaces_it(flags, words, capsys):
    said = refused(flags, capsys)
    assert all(word in said for word in words)


@pytest.mark.parametrize("flag, near", [("--spec_tolerance", "--spec_tol?"), ("--test_pred_length", "--test_pred_len?"),
                                        ("--sed", "--seed")])
def test_an_unknown_flag_is_answered_with_the_nearest(flag, near, capsys):
    said = refused(f"{flag} 1", capsys)
    assert f"{flag}: no such flag, did you mean {near}" in said


def test_a_flag_like_none_has_no_nearest(capsys):
    assert "--xyzzy: no such flag (" in refused("--xyzzy 1", capsys)


def test_a_value_for_a_switch_is_named(capsys):
    assert "no flag takes 1: leave it out" in refused("--use_norm 1", capsys)


def test_a_task_that_is_no_forecast_is_answered_with_those_that_are(capsys):
    said = refused("--task_name imputation", capsys)
    assert "imputation" in said and "forecast" in said and "pretrain" in said
