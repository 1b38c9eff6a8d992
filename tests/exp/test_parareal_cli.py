"""--spec_accept_rule parareal from the command line to the files, in predictions, and what is refused."""
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import DRAFT, TARGET, command, load, metrics, results, rolling_errors, speculate

from exp.evaluate import pictures
from exp.evaluate.methods import make_rule, make_speculative
from exp.speculation import SpecSettings
from utils.speculative_decoder import decode_parareal

PARAREAL = "--spec_accept_rule parareal"
PATCHES = 5  # of a forecast of 60 steps


@pytest.mark.parametrize("flags", ["--spec_tol 0", f"--spec_passes {PATCHES} --spec_tol 0", "--spec_tol 1e-6"])
def test_as_many_passes_as_patches_are_the_target_alone(lab, place, flags):
    got = speculate(lab, f"{PARAREAL} {flags}")
    assert got["mse"] == pytest.approx(np.mean(rolling_errors(load(lab, TARGET), 60) ** 2), rel=1e-4)
    assert got["target_passes"] == PATCHES and got["target_passes_histogram"] == [0, 0, 0, 0, got["windows"]]
    assert got["gap_by_patch"] == [0.0] * (PATCHES - 1) and "acceptance_pct" not in got


def test_passes_and_gaps_are_counted_and_drawn(lab, place, capsys, monkeypatch):
    drawn, real = [], pictures.forecast_figure
    monkeypatch.setattr(pictures, "forecast_figure", lambda *of, **more: drawn.append(more) or real(*of, **more))
    got = speculate(lab, f"{PARAREAL} --spec_tol 0.1 --visualize --batch_size 16")
    histogram = got["target_passes_histogram"]
    assert sum(histogram) == got["windows"] and len(histogram) == PATCHES and len(got["gap_by_patch"]) == PATCHES - 1
    assert got["target_passes"] == pytest.approx(np.dot(histogram, range(1, PATCHES + 1)) / got["windows"])
    assert all(len(more["gap"]) == PATCHES - 1 and more["target_alone"].shape == (60, 2) for more in drawn) and drawn
    assert 1 < got["target_passes"] < PATCHES and max(got["gap_by_patch"]) <= 0.1
    said = capsys.readouterr().out
    assert f"histogram: {histogram}, draft passes: " in said and "gap left, by patch: 0.0" in said
    assert results().name.endswith("_spec_parareal_mean") and list(results().glob("forecast_*.png"))
    assert got["speculation"]["spec_passes"] is None and got["speculation"]["spec_tol"] == 0.1
    shutil.rmtree("test_results")
    alone = speculate(lab, f"{PARAREAL} --spec_tol 0.1 --batch_size 1")
    assert alone["target_passes_histogram"] == histogram and alone["mse"] == pytest.approx(got["mse"], rel=1e-5)


def test_a_number_of_passes_ends_it_too(lab, place):
    got = speculate(lab, f"{PARAREAL} --spec_tol 0 --spec_passes 2")
    assert got["target_passes"] == 2 and got["gap_by_patch"][0] == 0 < min(got["gap_by_patch"][1:])
    assert got["draft_passes"] == PATCHES - 1 + PATCHES - 2


def test_paths_become_those_of_the_target_alone(lab, place):
    paths = []
    for flags in ("", f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth {PARAREAL} "
                      "--spec_tol 0"):
        assert command(lab, f"--test_pred_len 60 {flags} --num_samples 4 --test_windows 9 --save_samples "
                            "--spec_sigma 0.3", TARGET) == 0
        paths.append(np.load(results() / "samples.npz")["samples"])
        shutil.rmtree("test_results")
    np.testing.assert_allclose(*paths, atol=2e-5)


def test_paths_tell_how_far_their_law_is_from_the_targets(lab, place, capsys):
    found = {}
    for flags in ("--spec_tol 0 --spec_passes 1", "--spec_tol 0 --spec_passes 3", "--spec_tol 0", "--spec_passes 3"):
        draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth {PARAREAL} {flags}"
        paths = "--test_pred_len 60 --num_samples 4 --test_windows 9 --spec_sigma 0.3"
        assert command(lab, f"{paths} {draft}", TARGET) == 0
        assert "divergence_nats" not in metrics()  # the point forecasts have no law
        samples = metrics()["samples"]
        found[flags] = samples["divergence_nats"], samples["lossless"]
        said = capsys.readouterr().out
        line = next(line for line in said.splitlines() if line.startswith("samples: 4 paths"))
        if samples["divergence_nats"] is None:
            assert ", law unknown (--spec_tol ends each path by its own noise; --spec_tol 0 fixes" in line
        else:
            apart = f"{samples['divergence_nats']:.2g} nats a path from the target's law, a total variation of at most"
            assert apart in line and (": lossless" in line) == samples["lossless"]
    (one, _), (three, _), full, void = found.values()
    assert one > 3 * three > 0 and full == (0, True) and void == (None, False)
    assert [kept for nats, kept in found.values()] == [nats is not None and nats < 0.001 for nats, _ in found.values()]
    assert not found["--spec_tol 0 --spec_passes 1"][1]


def test_a_prediction_says_how_many_passes_it_took(lab, place, capsys):
    flags = f"--do_predict --use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth {PARAREAL}"
    assert command(lab, f"--test_pred_len 60 {flags} --spec_tol 0 --spec_passes 2", TARGET) == 0
    assert "target passes: 2, draft passes: 7" in capsys.readouterr().out
    cost = json.loads((results() / "forecast.json").read_text())["cost"]
    assert cost["target_passes"] == 2 and cost["target_passes_histogram"][1] > 0
    assert len(pd.read_csv(results() / "forecast.csv")) == 3 * 60 and list(Path(results()).glob("forecast_*.png"))


def test_the_comparison_has_a_row_whose_flags_reproduce_it(lab, place):
    draft = f"--spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth"
    assert command(lab, f"--test_pred_len 60 --compare {draft} --spec_tol 0.1", TARGET) == 0
    row = next(row for row in metrics()["rows"] if row["method"] == "speculative parareal 0.1")
    assert row["target_passes"] > 1 and "acceptance_pct" not in row and not row["sampled"]
    assert row["flags"] == ["--use_speculative", "--spec_draft_ckpt", f"{lab}/checkpoints/{DRAFT}/checkpoint.pth",
                            "--spec_accept_rule", "parareal", "--spec_tol", "0.1"]
    assert command(lab, f"--test_pred_len 60 {' '.join(row['flags'])}", TARGET) == 0
    assert metrics()["mse"] == row["mse"] and metrics()["target_passes"] == row["target_passes"]


@pytest.mark.parametrize("flags, words", [
    ("--spec_k 3", "--spec_k does not apply to --spec_accept_rule parareal"),
    ("--spec_k auto", "--spec_k does not apply to --spec_accept_rule parareal"),
    ("--spec_repropose corrected", "--spec_repropose does not apply to --spec_accept_rule parareal"),
    ("--spec_adaptive", "--spec_adaptive does not apply to --spec_accept_rule parareal"),
    ("--spec_accept_bias 2", "--spec_accept_bias does not apply to --spec_accept_rule parareal: use simplified"),
    ("--spec_emit sample", "--spec_emit sample does not apply to --spec_accept_rule parareal, which emits means"),
    ("--spec_sigma 0.2", "--spec_sigma has no effect with --spec_accept_rule parareal without --num_samples"),
    ("--spec_temp 2", "--spec_temp has no effect with --spec_accept_rule parareal without --num_samples"),
    ("--spec_sigma_mode adaptive --num_samples 3", "--spec_sigma_mode adaptive takes the target's sigma"),
    ("--spec_debug_accept", "--spec_debug_accept has no effect with --spec_accept_rule parareal"),
    ("--spec_passes 0", "--spec_passes"), ("--spec_passes 1.5", "--spec_passes"),
])
def test_flags_that_do_not_apply_are_refused(lab, place, capsys, flags, words):
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth"
    assert command(lab, f"--test_pred_len 60 {draft} {PARAREAL} {flags}", TARGET) == 2
    assert words in capsys.readouterr().err and not Path("test_results").exists()


def test_the_passes_are_those_of_parareal_only(lab, place, capsys):
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth"
    assert command(lab, f"--test_pred_len 60 {draft} --spec_passes 2", TARGET) == 2
    assert "--spec_passes does not apply to --spec_accept_rule tolerance: use parareal" in capsys.readouterr().err


def test_settings_in_python_are_those_of_the_command_line(lab):
    target, draft = load(lab, TARGET), load(lab, DRAFT)
    spec = SpecSettings(rule="parareal", passes=2, tol=0.0)
    method = make_speculative(target, draft, spec, 60, 2021, make_rule(spec))
    context = torch.randn(3, 48, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(method.forecast(context), decode_parareal(target, draft, context, 60, 2).forecast)
    assert method.plan(context) is None and method.again().rule is method.rule
