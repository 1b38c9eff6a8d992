"""From the command line to the files: training leads to a test, and one model is tested alone."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exp_helpers import (
    BASE,
    CONTEXT,
    DRAFT,
    PATCH,
    TARGET,
    TOLERANCE,
    assert_picture,
    command,
    load,
    metrics,
    results,
    rolling_errors,
    speculate,
)

import run
from models import timer_xl_draft
from models.checkpoint import read_settings

# --- training leads to a test

def test_training_is_followed_by_a_test_of_the_best_weights(lab):
    for setting, model in ((TARGET, "timer_xl"), (DRAFT, "timer_xl_draft")):
        folder = lab / "checkpoints" / setting
        assert {"args.json", "checkpoint.pth", "resume.pth"} <= {path.name for path in folder.iterdir()}
        assert read_settings(folder / "checkpoint.pth")["model"] == model
        tested = json.loads((lab / "test_results" / f"{setting}_pl12" / "metrics.json").read_text())
        assert tested["mse"] == pytest.approx(np.mean(rolling_errors(load(lab, setting), 12) ** 2), rel=1e-4)


def test_the_distilled_draft_is_nearer_to_its_target(lab):
    target, draft = (rolling_errors(load(lab, setting), 12) for setting in (TARGET, DRAFT))
    torch.manual_seed(0)
    untrained = timer_xl_draft.Model(load(lab, DRAFT).config).eval()
    assert np.mean((draft - target) ** 2) < 0.5 * np.mean((rolling_errors(untrained, 12) - target) ** 2)


def test_a_flag_that_agrees_with_the_checkpoint_is_welcome(lab, causal, place, capsys):
    window = json.loads((lab / "checkpoints" / causal[0] / "args.json").read_text())["norm_window"]
    assert command(lab, f"--test_pred_len 24 --norm_window {window} --norm_mode causal", causal[0]) == 0
    assert command(lab, f"--test_pred_len 24 --norm_window {window + 1}", causal[0]) == 2
    assert f"--norm_window {window + 1}" in capsys.readouterr().err


# --- one model alone

@pytest.mark.parametrize("setting, flags, options", [
    (TARGET, "--test_pred_len 30", {"horizon": 30}),  # not a multiple of the patch
    (TARGET, "--test_pred_len 8", {"horizon": 8}),  # less than a patch
    (TARGET, "--test_pred_len 24 --test_seq_len 72", {"horizon": 24, "context": 72}),
    (TARGET, "--test_pred_len 24 --data UnivariateDatasetBenchmark", {"horizon": 24, "univariate": True}),
    (DRAFT, "--test_pred_len 24 --model timer_xl_draft", {"horizon": 24}),
])
def test_the_metrics_equal_an_independent_rolling_forecast(lab, place, setting, flags, options):
    assert command(lab, flags, setting) == 0
    errors, got = rolling_errors(load(lab, setting), **options), metrics()
    assert got["windows"] == len(errors)
    assert got["mse"] == pytest.approx(np.mean(errors**2), rel=1e-4)
    assert got["mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-4)
    assert got["horizon"] == options["horizon"] and got["context"] == options.get("context", CONTEXT)


def test_mixed_precision_changes_the_forecast_only_a_little(lab, place):
    assert command(lab, "--test_pred_len 24 --amp") == 0
    exact = np.mean(rolling_errors(load(lab, TARGET), 24) ** 2)
    assert metrics()["mse"] == pytest.approx(exact, rel=0.02)
    assert metrics()["mse"] != pytest.approx(exact, rel=1e-6)


def test_the_published_text_files_are_appended_to(lab, place):
    for horizon in (12, 24):
        assert command(lab, f"--test_pred_len {horizon} --trace_inference_breakdown") == 0
    forecast = Path("result_long_term_forecast.txt").read_text()
    for horizon in (12, 24):
        saved = metrics(f"{TARGET}_pl{horizon}")
        assert f"{TARGET}_pl{horizon}  \nmse:{saved['mse']}, mae:{saved['mae']}, rmse:" in forecast
        for name in ("result_inference_summary.txt", "result_inference_breakdown.txt"):
            assert f"{TARGET}_pl{horizon}  \n" in Path(name).read_text()


def test_the_trace_adds_up_and_counts_every_pass(lab, place):
    got = speculate(lab, "--spec_tol 0 --batch_size 16 --trace_inference_breakdown")
    parts = got["breakdown"]
    assert set(parts) == {"target", "draft", "rest"}
    assert sum(part["seconds"] for part in parts.values()) == pytest.approx(got["seconds"])
    assert sum(part["share_pct"] for part in parts.values()) == pytest.approx(100)
    # 61 windows make 4 batches; at tolerance 0 each needs 5 rounds with 4 + 3 + 2 + 1 + 0 proposals
    assert parts["target"]["passes"] == 4 * 5 and parts["draft"]["passes"] == 4 * 10
    shutil.rmtree("test_results")
    assert command(lab, "--test_pred_len 60 --batch_size 16 --trace_inference_breakdown") == 0
    assert metrics()["breakdown"]["model"]["passes"] == 4 * 5


@pytest.mark.parametrize("flags, windows", [("", (0, 24, 48, 72, 96)), ("--pictures 2", (0, 96)), ("--pictures 0", ())])
def test_visualize_draws_windows_spread_over_the_test_part(lab, place, capsys, flags, windows):
    assert command(lab, f"--test_pred_len 24 --visualize {flags}") == 0
    pictures = sorted(results().glob("forecast_*.png"))
    assert [path.name for path in pictures] == [f"forecast_{window:05d}.png" for window in windows]
    assert f"pictures: {len(windows)} of 97 windows (--pictures N for more)" in capsys.readouterr().out
    for path in pictures:
        assert_picture(path)


@pytest.mark.slow
def test_visualize_leaves_no_pictures_of_an_older_run(lab, place):
    older = place / "test_results" / f"{TARGET}_pl24" / "forecast_99999.png"
    older.parent.mkdir(parents=True)
    older.touch()
    assert command(lab, "--test_pred_len 24 --visualize") == 0
    assert not older.exists() and len(list(results().glob("forecast_*.png"))) == 5


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--spec_accept_rule simplified", f"--spec_tol {TOLERANCE}"])
def test_visualize_also_shows_speculation(lab, place, flags):
    speculate(lab, f"--visualize {flags}")
    assert len(list(results().glob("forecast_*.png"))) == 5
    for path in results().glob("forecast_*.png"):
        assert_picture(path)


def test_output_attention_writes_the_weights_and_a_picture(lab, place):
    assert command(lab, "--test_pred_len 24 --output_attention") == 0
    assert_picture(results() / "attention.png")
    with np.load(results() / "attention.npz") as archive:
        assert archive.files == ["layer0"]
        weights = archive["layer0"]
    tokens = 3 * CONTEXT // PATCH
    assert weights.shape == (2, tokens, tokens)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    time = np.arange(tokens) % (CONTEXT // PATCH)
    assert (weights[:, time[:, None] < time[None, :]] == 0).all()  # nobody looks into the future
    assert (weights[:, time[:, None] >= time[None, :]] > 0).all()


def test_each_file_has_a_folder_of_results(lab, place):
    (place / "other.csv").write_text((lab / "tiny.csv").read_text())
    assert command(lab, "--test_pred_len 12") == 0
    first = metrics(f"{TARGET}_pl12")
    assert run.main(f"{BASE} --is_training 0 --root_path . --data_path other.csv --checkpoints {lab}/checkpoints "
                    f"--test_dir {TARGET} --test_pred_len 12".replace("--data_path tiny.csv ", "").split()) == 0
    assert metrics(f"{TARGET}_pl12") == first and metrics(f"{TARGET}_pl12_other")["data_path"] == "other.csv"
