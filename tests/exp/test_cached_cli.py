"""Decoding from a cache, and a causal pair, from the command line to the files."""
import shutil

import numpy as np
import pytest
import torch
from exp_helpers import command, load, metrics, rolling_errors, speculate

from layers import linear
from layers.linear import can_pack
from models import timer_xl


def test_a_causal_target_with_its_cache_equals_growing_passes(lab, causal, place, capsys):
    assert command(lab, "--test_pred_len 60", causal[0]) == 0
    assert "note: rolling" not in capsys.readouterr().out
    model = load(lab, causal[0])
    assert metrics()["mse"] == pytest.approx(np.mean(rolling_errors(model, 60, growing=True) ** 2), rel=1e-4)
    shutil.rmtree("test_results")
    assert command(lab, "--test_pred_len 60 --rolling window", causal[0]) == 0
    said = capsys.readouterr().out
    assert said.count("note: rolling by window changes the forecast of") == 1
    assert "as if the series began there" in said
    windows, growing = (np.mean(rolling_errors(model, 60, growing=grows) ** 2) for grows in (False, True))
    assert metrics()["mse"] == pytest.approx(windows, rel=1e-4) and windows != pytest.approx(growing, rel=1e-4)


def test_other_precisions_and_recorded_decodes_use_the_cache_too(lab, causal, place, monkeypatch, capsys):
    monkeypatch.setattr(linear, "PACKED_FROM", 0)
    errors = []
    for flags in ("", "--amp", "--bf16", "--compile"):
        assert command(lab, f"--test_pred_len 60 {flags}", causal[0]) == 0
        errors.append(metrics()["mse"])
        shutil.rmtree("test_results")
    assert "note: --compile records CUDA graphs" in capsys.readouterr().out or torch.cuda.is_available()
    for low in errors[1:3]:
        assert low == pytest.approx(errors[0], rel=0.02)
        assert low != pytest.approx(errors[0], rel=1e-6) or not can_pack(torch.bfloat16)
    assert errors[3] == pytest.approx(errors[0], rel=1e-5)


def test_a_processor_without_bfloat16_stays_in_float32_and_says_so(lab, causal, place, monkeypatch, capsys):
    errors = []
    monkeypatch.setattr(linear, "PACKED_FROM", 0)
    monkeypatch.setattr(timer_xl, "can_pack", lambda dtype: False)
    for flags in ("", "--bf16"):
        assert command(lab, f"--test_pred_len 60 {flags}", causal[0]) == 0
        errors.append(metrics()["mse"])
    assert errors[1] == pytest.approx(errors[0], rel=1e-5)
    assert capsys.readouterr().out.count("does not multiply in bfloat16") == 1


def test_the_cache_of_a_window_model_is_used_only_if_asked_for(lab, place, capsys):
    assert command(lab, "--test_pred_len 60") == 0
    exact = metrics()["mse"]
    assert "APPROXIMATION" not in capsys.readouterr().out
    shutil.rmtree("test_results")
    assert command(lab, "--test_pred_len 60 --rolling cache") == 0
    assert "APPROXIMATION" in capsys.readouterr().out
    assert metrics()["mse"] != pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("flags", ["", "--spec_repropose target", "--spec_k auto"])
def test_a_causal_pair_at_tolerance_zero_is_its_target(lab, causal, place, flags):
    got = speculate(lab, f"--spec_tol 0 {flags}", pair=causal)
    assert got["mse"] == pytest.approx(np.mean(rolling_errors(load(lab, causal[0]), 60, growing=True) ** 2), rel=1e-4)
    # two patches a draft pass: 4, 3, 2, 1, 0 proposals; what the target left over needs no draft; auto asks none
    assert got["draft_passes"] == {"": 2 + 2 + 1 + 1, "--spec_repropose target": 2, "--spec_k auto": 0}[flags]


def test_planning_does_not_enter_the_trace(lab, causal, place):
    got = speculate(lab, "--spec_tol 0 --spec_k auto --batch_size 16 --trace_inference_breakdown", pair=causal)
    assert got["breakdown"]["target"]["passes"] == 4 * 5  # four batches of plain decoding


def test_the_planner_says_what_it_predicts_and_measures(lab, causal, place, capsys):
    speculate(lab, "--spec_tol 1000 --spec_k auto --batch_size 1", pair=causal)
    said = capsys.readouterr().out
    assert "planner, batch 1: acceptance 100.0 %" in said and "predicted" in said and "-> K = " in said
    assert "ms_per_forecast" in said  # what was then measured
