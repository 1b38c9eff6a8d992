"""From the command line to the files: a target and its draft are trained once, then used in every way."""
import csv
import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch

import run
from models import timer_xl, timer_xl_draft
from models.config import ModelConfig
from utils.checkpoint import read_settings, read_state

CONTEXT, PATCH, ROWS = 48, 12, 600
BASE = f"--quiet --data_path tiny.csv --seq_len {CONTEXT} --input_token_len {PATCH}"
SIZES = "--d_model 16 --n_heads 2 --d_ff 32 --use_norm --learning_rate 0.003 --train_epochs 1 --test_pred_len 12"
TARGET, DRAFT = "forecast_t_timer_xl_test_0", "forecast_d_timer_xl_draft_test_0"
# between the smallest and the largest gap of this pair: some proposals pass, some do not
TOLERANCE = 0.5
METHODS = ["target alone", "draft alone", "seasonal-naive (24)", "speculative simplified, sampled",
           "speculative simplified, mean", "speculative tolerance 0.5"]


def tiny_series():
    t = np.arange(ROWS)[:, None]
    waves = np.sin(2 * np.pi * t / np.array([24, 24, 36]) + np.array([0, 1, 2]))
    return waves + 0.3 * np.random.default_rng(0).normal(size=(ROWS, 3))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the series, a trained target and its distilled draft."""
    folder = tmp_path_factory.mktemp("lab")
    frame = pd.DataFrame(tiny_series().round(5), columns=["a", "b", "c"])
    frame.insert(0, "date", pd.date_range("2020-01-01", periods=ROWS, freq="h"))
    frame.to_csv(folder / "tiny.csv", index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train = f"{BASE} {SIZES} --root_path ."
        assert run.main(f"{train} --model_id t".split()) == 0
        distil = (f"--distill --distill_target_ckpt checkpoints/{TARGET}/checkpoint.pth --draft_stochastic "
                  "--draft_scale_d_ff 0.5 --draft_teacher_noise 0.1")
        assert run.main(f"{train} --model_id d --model timer_xl_draft {distil}".split()) == 0
    return folder


@pytest.fixture(scope="module")
def causal(lab):
    """Settings of a causally normalised target and of an on-policy draft that speaks of two patches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(lab)
        train = f"{BASE} {SIZES} --root_path ."
        assert run.main(f"{train} --model_id tc --norm_mode causal --test_pred_len 24".split()) == 0
        target = "forecast_tc_timer_xl_test_0"
        distil = (f"--distill --distill_target_ckpt checkpoints/{target}/checkpoint.pth --draft_stochastic "
                  "--draft_patches 2 --draft_rollout 4")
        assert run.main(f"{train} --model_id dc --model timer_xl_draft {distil}".split()) == 0
    return target, "forecast_dc_timer_xl_draft_test_0"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(lab, flags, tested=TARGET):
    places = f"--is_training 0 --root_path {lab} --checkpoints {lab}/checkpoints --test_dir {tested}"
    return run.main(f"{BASE} {places} {flags}".split())


def test_a_flag_that_agrees_with_the_checkpoint_is_welcome_in_a_test(lab, causal, place, capsys):
    window = json.loads((lab / "checkpoints" / causal[0] / "args.json").read_text())["norm_window"]
    assert command(lab, f"--test_pred_len 24 --norm_window {window} --norm_mode causal", causal[0]) == 0
    assert command(lab, f"--test_pred_len 24 --norm_window {window + 1}", causal[0]) == 2
    assert f"--norm_window {window + 1}" in capsys.readouterr().err


def speculate(lab, flags="", horizon=60):
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth"
    assert command(lab, f"--test_pred_len {horizon} {draft} {flags}") == 0
    return metrics()


def results():
    """The one folder of results in the current directory."""
    folders = list(Path("test_results").iterdir())
    assert len(folders) == 1
    return folders[0]


def metrics():
    return json.loads((results() / "metrics.json").read_text())


def load(lab, setting):
    path = lab / "checkpoints" / setting / "checkpoint.pth"
    settings = read_settings(path)
    model = (timer_xl_draft if settings["model"] == "timer_xl_draft" else timer_xl).Model(
        ModelConfig.from_mapping(settings))
    model.load_state_dict(read_state(path))
    return model.eval()


def rolling_errors(model, horizon, context=CONTEXT, univariate=False, growing=False):
    """forecast - truth of every test window [windows, horizon, C], by a loop that knows nothing of the program's
    loaders, decoder and metrics: it re-encodes the last `context` steps (or, growing, all of them) for every patch."""
    values = tiny_series().round(5)
    rows, test = int(ROWS * 0.7), int(ROWS * 0.2)
    values = (values - values[:rows].mean(axis=0)) / values[:rows].std(axis=0)
    errors = []
    for column in ([[0], [1], [2]] if univariate else [[0, 1, 2]]):
        part = values[ROWS - test - context:, column]
        for start in range(len(part) - context - horizon + 1):
            series = part[start:start + context].astype(np.float32)
            while len(series) < context + horizon:
                with torch.no_grad():
                    out = model(torch.from_numpy(series[None, 0 if growing else -context:].copy()))
                out = out[0] if isinstance(out, tuple) else out
                series = np.concatenate([series, out[0, -PATCH:].numpy()])
            errors.append(series[context:context + horizon] - part[start + context:start + context + horizon])
    return np.stack(errors)


def assert_picture(path):
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 100
    assert pixels[..., :3].std() > 0.01  # not an empty page


# --- training leads to a test

def test_training_is_followed_by_a_test_of_the_best_weights(lab):
    for setting, model in ((TARGET, "timer_xl"), (DRAFT, "timer_xl_draft")):
        folder = lab / "checkpoints" / setting
        assert {"args.json", "checkpoint.pth", "resume.pth"} <= {path.name for path in folder.iterdir()}
        assert read_settings(folder / "checkpoint.pth")["model"] == model
        tested = json.loads((lab / "test_results" / f"{setting}_pl12" / "metrics.json").read_text())
        assert tested["mse"] == pytest.approx(np.mean(rolling_errors(load(lab, setting), 12) ** 2), rel=1e-4)


def test_the_distilled_draft_is_nearer_to_its_target_than_an_untrained_one(lab):
    target, draft = (rolling_errors(load(lab, setting), 12) for setting in (TARGET, DRAFT))
    torch.manual_seed(0)
    untrained = timer_xl_draft.Model(load(lab, DRAFT).config).eval()
    assert np.mean((draft - target) ** 2) < 0.5 * np.mean((rolling_errors(untrained, 12) - target) ** 2)


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


def test_mixed_precision_changes_the_forecast_a_little_and_only_a_little(lab, place):
    assert command(lab, "--test_pred_len 24 --amp") == 0
    exact = np.mean(rolling_errors(load(lab, TARGET), 24) ** 2)
    assert metrics()["mse"] == pytest.approx(exact, rel=0.02)
    assert metrics()["mse"] != pytest.approx(exact, rel=1e-6)


def test_the_published_text_files_are_appended_to(lab, place):
    for horizon in (12, 24):
        assert command(lab, f"--test_pred_len {horizon} --trace_inference_breakdown") == 0
    forecast = Path("result_long_term_forecast.txt").read_text()
    for horizon in (12, 24):
        saved = json.loads((place / "test_results" / f"{TARGET}_pl{horizon}" / "metrics.json").read_text())
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


def test_visualize_writes_pictures_of_windows_spread_over_the_test_part(lab, place):
    assert command(lab, "--test_pred_len 24 --visualize") == 0
    pictures = sorted(results().glob("forecast_*.png"))
    assert [path.name for path in pictures] == [f"forecast_{window:05d}.png" for window in (0, 24, 48, 72, 96)]
    for path in pictures:
        assert_picture(path)


def test_visualize_leaves_no_pictures_of_an_older_run(lab, place):
    assert command(lab, "--test_pred_len 24 --visualize") == 0
    older = results() / "forecast_99999.png"
    older.touch()
    assert command(lab, "--test_pred_len 24 --visualize") == 0
    assert not older.exists() and len(list(results().glob("forecast_*.png"))) == 5


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


# --- speculation

def test_tolerance_zero_gives_the_forecast_of_the_target_alone(lab, place):
    got = speculate(lab, "--spec_tol 0")
    assert got["mse"] == pytest.approx(np.mean(rolling_errors(load(lab, TARGET), 60) ** 2), rel=1e-4)
    assert got["accepted"] == 0 and got["target_passes"] == 5


def test_a_wide_tolerance_takes_one_pass_of_the_target(lab, place):
    got = speculate(lab, "--spec_tol 1000")
    assert got["target_passes"] == 1 and got["acceptance_pct"] == 100 and got["draft_passes"] == 4


def test_what_tolerance_accepts_enters_the_forecast_as_the_targets_mean_on_the_drafts_context(lab, place):
    got = speculate(lab, "--spec_tol 1000", horizon=24)
    target, draft = load(lab, TARGET), load(lab, DRAFT)
    values = tiny_series().round(5)
    values = ((values - values[:420].mean(axis=0)) / values[:420].std(axis=0)).astype(np.float32)
    errors = []
    for start in range(480, ROWS - 24 + 1):
        context = torch.from_numpy(values[None, start - CONTEXT:start])
        with torch.no_grad():
            after_draft = torch.cat([context[:, PATCH:], draft(context)[0][:, -PATCH:]], dim=1)
            forecast = torch.cat([target(context)[0, -PATCH:], target(after_draft)[0, -PATCH:]])
        errors.append(forecast.numpy() - values[start:start + 24])
    assert got["mse"] == pytest.approx(np.mean(np.stack(errors) ** 2), rel=1e-4)


def test_the_acceptance_log_has_one_line_for_every_proposal_judged(lab, place):
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
def test_a_published_command_line_gets_the_published_rule_and_a_note(lab, place, capsys, flag):
    got = speculate(lab, flag)
    said = capsys.readouterr().out
    assert "note:" in said and flag.split()[0] in said and "simplified" in said
    assert got["speculation"]["spec_accept_rule"] == "simplified"
    assert got["speculation"]["spec_emit"] == "sample"
    assert results().name.endswith("_spec_simplified_sample")


def test_without_such_a_flag_the_rule_is_tolerance_and_there_is_no_note(lab, place, capsys):
    assert speculate(lab)["speculation"]["spec_accept_rule"] == "tolerance"
    assert "note:" not in capsys.readouterr().out


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


def test_a_sampling_run_repeats_itself_with_its_seed_and_differs_with_another(lab, place):
    mse = []
    for seed in (1, 1, 2):
        mse.append(speculate(lab, f"--spec_accept_rule simplified --seed {seed}")["mse"])
        shutil.rmtree("test_results")
    assert mse[0] == mse[1] != mse[2]


@pytest.mark.parametrize("rule", ["exact", "coupling"])
def test_a_rule_that_keeps_the_law_samples_about_the_target_and_its_means_are_the_targets(lab, place, capsys, rule):
    flags = f"--spec_accept_rule {rule} --spec_sigma 0.3 --spec_temp 1.5"
    alone = np.mean(rolling_errors(load(lab, TARGET), 60) ** 2)
    sampled = speculate(lab, f"{flags} --spec_debug_accept --spec_debug_n 1000")
    assert "note:" not in capsys.readouterr().out
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


# --- cached decoding

def test_a_causal_target_decodes_from_its_cache_and_equals_growing_passes(lab, causal, place):
    assert command(lab, "--test_pred_len 60", causal[0]) == 0
    model = load(lab, causal[0])
    assert metrics()["mse"] == pytest.approx(np.mean(rolling_errors(model, 60, growing=True) ** 2), rel=1e-4)
    shutil.rmtree("test_results")
    assert command(lab, "--test_pred_len 60 --rolling window", causal[0]) == 0
    assert metrics()["mse"] == pytest.approx(np.mean(rolling_errors(model, 60) ** 2), rel=1e-4)


def test_mixed_precision_and_a_compiled_model_also_decode_from_the_cache(lab, causal, place, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(type(module).__name__))
    errors = []
    for flags in ("", "--amp", "--compile"):
        assert command(lab, f"--test_pred_len 60 {flags}", causal[0]) == 0
        errors.append(metrics()["mse"])
        shutil.rmtree("test_results")
    assert errors[1] == pytest.approx(errors[0], rel=0.02) and errors[1] != pytest.approx(errors[0], rel=1e-6)
    assert errors[2] == pytest.approx(errors[0], rel=1e-5) and compiled == ["TimerBlock"]


def test_the_cache_of_a_window_model_is_used_only_if_asked_for_and_says_so(lab, place, capsys):
    assert command(lab, "--test_pred_len 60") == 0
    exact = metrics()["mse"]
    assert "APPROXIMATION" not in capsys.readouterr().out
    shutil.rmtree("test_results")
    assert command(lab, "--test_pred_len 60 --rolling cache") == 0
    assert "APPROXIMATION" in capsys.readouterr().out
    assert metrics()["mse"] != pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("flags", ["", "--spec_repropose target", "--spec_k auto"])
def test_a_causal_pair_at_tolerance_zero_is_its_target(lab, causal, place, flags):
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{causal[1]}/checkpoint.pth"
    assert command(lab, f"--test_pred_len 60 {draft} --spec_tol 0 {flags}", causal[0]) == 0
    got = metrics()
    assert got["mse"] == pytest.approx(np.mean(rolling_errors(load(lab, causal[0]), 60, growing=True) ** 2), rel=1e-4)
    # two patches a draft pass: 4, 3, 2, 1, 0 proposals; what the target left over needs no draft; auto asks none
    assert got["draft_passes"] == {"": 2 + 2 + 1 + 1, "--spec_repropose target": 2, "--spec_k auto": 0}[flags]


def test_planning_does_not_enter_the_trace(lab, causal, place):
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{causal[1]}/checkpoint.pth"
    flags = "--spec_tol 0 --spec_k auto --batch_size 16 --trace_inference_breakdown"
    assert command(lab, f"--test_pred_len 60 {draft} {flags}", causal[0]) == 0
    assert metrics()["breakdown"]["target"]["passes"] == 4 * 5  # four batches of plain decoding


def test_the_planner_says_what_it_predicts_and_measures(lab, causal, place, capsys):
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{causal[1]}/checkpoint.pth"
    assert command(lab, f"--test_pred_len 60 {draft} --spec_tol 1000 --spec_k auto --batch_size 1", causal[0]) == 0
    said = capsys.readouterr().out
    assert "planner, batch 1: acceptance 100.0 %" in said and "predicted" in said and "-> K = " in said
    assert "ms_per_forecast" in said  # what was then measured


# --- the table

@pytest.fixture(scope="module")
def tables(lab, tmp_path_factory):
    """Rows of --compare by method, at tolerance 0.5 and at 0."""
    out = {}
    for tolerance in (TOLERANCE, 0):
        folder = tmp_path_factory.mktemp("compare")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            flags = f"--test_pred_len 60 --compare --spec_tol {tolerance} --batch_size 16"
            assert command(lab, f"{flags} --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth") == 0
            saved = results().resolve()
        with open(saved / "compare.csv", newline="") as handle:
            out[tolerance] = saved, list(csv.DictReader(handle))
    return out


def test_the_table_has_a_row_for_every_way_to_forecast_and_its_picture(tables):
    folder, rows = tables[TOLERANCE]
    assert [row["method"] for row in rows] == METHODS
    assert_picture(folder / "compare.png")
    assert [row["method"] for row in json.loads((folder / "metrics.json").read_text())["rows"]] == METHODS


def test_the_table_has_its_columns(tables):
    _, rows = tables[TOLERANCE]
    measured = {"mse", "mae", "ms_batch_1", "speedup_batch_1", "ms_batch_n", "speedup_batch_n", "rms_from_target",
                "ms_batch_1_p10", "ms_batch_1_p90", "windows", "horizon", "context", "batch_n", "threads"}
    speculative = {"acceptance_pct", "used_pct", "target_passes", "draft_passes"}
    for row in rows:
        assert measured | speculative | {"device", "torch"} <= set(row)
        assert all(float(row[name]) >= 0 for name in measured)
        assert row["windows"] == "61" and row["horizon"] == "60" and row["batch_n"] == "16"
        assert all(row[name] for name in speculative) is row["method"].startswith("speculative")


def test_the_rows_of_target_draft_and_naive_are_what_an_independent_loop_measures(lab, tables):
    _, rows = tables[TOLERANCE]
    target, draft = (rolling_errors(load(lab, setting), 60) for setting in (TARGET, DRAFT))
    values = tiny_series().round(5)
    values = (values - values[:420].mean(axis=0)) / values[:420].std(axis=0)
    naive = np.stack([np.concatenate([values[t - 24:t]] * 3)[:60] - values[t:t + 60] for t in range(480, 541)])
    for row, errors in zip(rows, (target, draft, naive)):
        assert float(row["mse"]) == pytest.approx(np.mean(errors**2), rel=1e-4)
        deviation = np.sqrt(np.mean((errors - target) ** 2))
        assert float(row["rms_from_target"]) == pytest.approx(deviation, rel=1e-3, abs=1e-6)
    assert float(rows[0]["target_passes"]) == 5 and float(rows[1]["draft_passes"]) == 5
    assert float(rows[0]["speedup_batch_1"]) == float(rows[0]["speedup_batch_n"]) == 1


def test_tolerance_zero_stands_in_the_table_as_the_target_itself(tables):
    _, rows = tables[0]
    assert rows[5]["method"] == "speculative tolerance 0"
    assert float(rows[5]["rms_from_target"]) < 1e-5
    assert float(rows[5]["mse"]) == pytest.approx(float(rows[0]["mse"]), rel=1e-6)
    _, wider = tables[TOLERANCE]
    assert float(wider[5]["rms_from_target"]) > 1e-4  # the column can tell


def test_sampled_emission_is_worse_than_mean_emission(tables):
    # noise injected into a point forecast is an error: the table must show it
    _, rows = tables[TOLERANCE]
    assert float(rows[3]["mse"]) > float(rows[4]["mse"])


def test_speedups_are_over_the_target_alone_of_the_same_run(tables):
    _, rows = tables[TOLERANCE]
    for row in rows:
        for batch in ("batch_1", "batch_n"):
            expected = float(rows[0][f"ms_{batch}"]) / float(row[f"ms_{batch}"])
            assert float(row[f"speedup_{batch}"]) == pytest.approx(expected)
            assert float(row[f"ms_{batch}_p10"]) <= float(row[f"ms_{batch}"]) <= float(row[f"ms_{batch}_p90"])
