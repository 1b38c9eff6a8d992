"""A speculative test from the command line to the files: rules, acceptance log, what is on record."""
import csv
import shutil

import numpy as np
import pytest
import torch
from exp_helpers import (
    CONTEXT,
    DRAFT,
    PATCH,
    ROWS,
    TARGET,
    TOLERANCE,
    load,
    results,
    rolling_errors,
    speculate,
    standardised,
)


def test_tolerance_zero_is_the_forecast_of_the_target_alone(lab, place):
    got = speculate(lab, "--spec_tol 0")
    assert got["mse"] == pytest.approx(np.mean(rolling_errors(load(lab, TARGET), 60) ** 2), rel=1e-4)
    assert got["accepted"] == 0 and got["target_passes"] == 5


def test_a_wide_tolerance_takes_one_pass_of_the_target(lab, place):
    got = speculate(lab, "--spec_tol 1000")
    assert got["target_passes"] == 1 and got["acceptance_pct"] == 100 and got["draft_passes"] == 4


def test_accepted_patches_are_target_means_on_the_drafts_context(lab, place):
    got = speculate(lab, "--spec_tol 1000", horizon=24)
    target, draft = load(lab, TARGET), load(lab, DRAFT)
    values = standardised().astype(np.float32)
    errors = []
    for start in range(480, ROWS - 24 + 1):
        context = torch.from_numpy(values[None, start - CONTEXT:start])
        with torch.no_grad():
            after_draft = torch.cat([context[:, PATCH:], draft(context)[0][:, -PATCH:]], dim=1)
            forecast = torch.cat([target(context)[0, -PATCH:], target(after_draft)[0, -PATCH:]])
        errors.append(forecast.numpy() - values[start:start + 24])
    assert got["mse"] == pytest.approx(np.mean(np.stack(errors) ** 2), rel=1e-4)


def test_the_acceptance_log_has_a_line_for_every_proposal_judged(lab, place):
    got = speculate(lab, f"--spec_tol {TOLERANCE} --batch_size 16 --spec_debug_accept --spec_debug_n 1000")
    assert 0 < got["accepted"] < got["attempted"] <= got["proposed"]
    with open(results() / "spec_accept_debug.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == got["attempted"]
    assert sum(int(row["accepted"]) for row in rows) == got["accepted"]
    for row in rows:
        assert (float(row["score"]) <= TOLERANCE) is (row["accepted"] == "1")
    assert {int(row["window"]) for row in rows} == set(range(61))
    assert {int(row["patch"]) for row in rows} <= set(range(4))  # the last patch is always the target's own


def test_the_acceptance_log_keeps_to_the_asked_windows_and_name(lab, place):
    speculate(lab, "--batch_size 16 --spec_debug_accept --spec_debug_n 20 --spec_debug_out log/judged.csv")
    with open(results() / "log" / "judged.csv", newline="") as handle:
        assert {int(row["window"]) for row in csv.DictReader(handle)} == set(range(20))


@pytest.mark.parametrize("flag", ["--spec_sigma 0.3", "--spec_accept_bias 1.5", "--spec_sigma_mode adaptive"])
def test_a_published_flag_means_the_published_rule_and_a_note(lab, place, capsys, flag):
    got = speculate(lab, flag)
    said = capsys.readouterr().out
    assert f"note: {flag.split()[0]} without --spec_accept_rule selects the published rule 'simplified'" in said
    assert got["speculation"]["spec_accept_rule"] == "simplified"
    assert got["speculation"]["spec_emit"] == "sample"
    assert results().name.endswith("_spec_simplified_sample")


def test_without_such_a_flag_the_rule_is_tolerance(lab, place, capsys):
    assert speculate(lab)["speculation"]["spec_accept_rule"] == "tolerance"
    assert "selects the published rule" not in capsys.readouterr().out


@pytest.mark.parametrize("flags", ["", "--spec_k 2"])
def test_the_batch_size_does_not_change_what_tolerance_decides(lab, place, flags):
    got = []
    for batch_size in (1, 7, 64):
        got.append(speculate(lab, f"--spec_tol {TOLERANCE} {flags} --batch_size {batch_size}"))
        shutil.rmtree("test_results")
    assert 0 < got[0]["accepted"] < got[0]["attempted"]
    for other in got[1:]:
        assert other["mse"] == pytest.approx(got[0]["mse"], rel=1e-5)
        for count in ("accepted", "attempted", "proposed", "target_passes", "accepted_length_histogram"):
            assert other[count] == got[0][count], count


def test_a_sampling_run_repeats_itself_with_its_seed_only(lab, place):
    mse = []
    for seed in (1, 1, 2):
        mse.append(speculate(lab, f"--spec_accept_rule simplified --seed {seed}")["mse"])
        shutil.rmtree("test_results")
    assert mse[0] == mse[1] != mse[2]


@pytest.mark.parametrize("rule", ["exact", "coupling"])
def test_a_lossless_rule_samples_about_the_targets_means(lab, place, capsys, rule):
    flags = f"--spec_accept_rule {rule} --spec_sigma 0.3 --spec_temp 1.5"
    alone = np.mean(rolling_errors(load(lab, TARGET), 60) ** 2)
    sampled = speculate(lab, f"{flags} --spec_debug_accept --spec_debug_n 1000")
    said = capsys.readouterr().out
    assert "selects the published rule" not in said and "preserves no law" not in said
    assert results().name.endswith(f"_spec_{rule}_sample") and sampled["mse"] > alone + 0.5 * 0.45**2
    with open(results() / "spec_accept_debug.csv", newline="") as handle:
        assert sum(int(row["accepted"]) for row in csv.DictReader(handle)) == sampled["accepted"]
    shutil.rmtree("test_results")
    for emitted in ("", "--spec_k auto", "--spec_repropose corrected"):
        mean = speculate(lab, f"{flags} --spec_emit mean {emitted}")
        assert mean["mse"] < 1.005 * alone
        shutil.rmtree("test_results")


def test_spec_k_bounds_the_proposals_of_a_round(lab, place):
    assert len(speculate(lab, "--spec_tol 1000 --spec_k 2")["accepted_length_histogram"]) == 3


def test_every_setting_of_the_speculation_is_on_record(lab, place):
    got = speculate(lab, "--spec_tol 0.2 --spec_k 2")
    assert got["speculation"]["spec_tol"] == 0.2 and got["speculation"]["spec_k"] == 2
    assert got["speculation"]["spec_draft_ckpt"].endswith("checkpoint.pth")
