"""--compare: the table, its columns, and that its rows are what they say."""
import csv
import json

import numpy as np
import pytest
from exp_helpers import DRAFT, TARGET, TOLERANCE, assert_picture, command, load, results, rolling_errors, standardised

from exp.evaluate.methods import SpeculativeMethod
from utils.planner import Plan

METHODS = ["target alone", "draft alone", "seasonal-naive (24)", "speculative simplified, sampled",
           "speculative simplified, mean", "speculative tolerance 0.5"]


def compared(lab, folder, tolerance, horizon=60, more=""):
    """Folder and rows of --compare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = f"--test_pred_len {horizon} --compare --spec_tol {tolerance} --batch_size 16 {more}"
        assert command(lab, f"{flags} --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth") == 0
        saved = results().resolve()
    with open(saved / "compare.csv", newline="") as handle:
        return saved, list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def table(lab, tmp_path_factory):
    return compared(lab, tmp_path_factory.mktemp("compare"), TOLERANCE)


@pytest.mark.slow
def test_the_table_has_a_row_for_every_method_and_its_picture(table):
    folder, rows = table
    assert [row["method"] for row in rows] == METHODS
    assert_picture(folder / "compare.png")
    assert [row["method"] for row in json.loads((folder / "metrics.json").read_text())["rows"]] == METHODS


def test_the_table_has_its_columns(table):
    _, rows = table
    measured = {"mse", "mae", "ms_batch_1", "speedup_batch_1", "ms_batch_n", "speedup_batch_n", "rms_from_target",
                "ms_batch_1_p10", "ms_batch_1_p90", "windows", "horizon", "context", "batch_n", "threads"}
    speculative = {"acceptance_pct", "used_pct", "target_passes", "draft_passes"}
    for row in rows:
        assert measured | speculative | {"device", "torch"} <= set(row)
        assert all(float(row[name]) >= 0 for name in measured)
        assert row["windows"] == "61" and row["horizon"] == "60" and row["batch_n"] == "16"
        assert all(row[name] for name in speculative) is row["method"].startswith("speculative")


def test_rows_without_speculation_are_what_another_loop_measures(lab, table):
    _, rows = table
    target, draft = (rolling_errors(load(lab, setting), 60) for setting in (TARGET, DRAFT))
    values = standardised()
    naive = np.stack([np.concatenate([values[t - 24:t]] * 3)[:60] - values[t:t + 60] for t in range(480, 541)])
    for row, errors in zip(rows, (target, draft, naive)):
        assert float(row["mse"]) == pytest.approx(np.mean(errors**2), rel=1e-4)
        deviation = np.sqrt(np.mean((errors - target) ** 2))
        assert float(row["rms_from_target"]) == pytest.approx(deviation, rel=1e-3, abs=1e-6)
    assert float(rows[0]["target_passes"]) == 5 and float(rows[1]["draft_passes"]) == 5
    assert float(rows[0]["speedup_batch_1"]) == float(rows[0]["speedup_batch_n"]) == 1


@pytest.mark.slow
def test_tolerance_zero_stands_in_the_table_as_the_target_itself(lab, table, place):
    _, rows = compared(lab, place, 0)
    assert rows[5]["method"] == "speculative tolerance 0"
    assert float(rows[5]["rms_from_target"]) < 1e-5
    assert float(rows[5]["mse"]) == pytest.approx(float(rows[0]["mse"]), rel=1e-6)
    _, wider = table
    assert float(wider[5]["rms_from_target"]) > 1e-4  # the column can tell


def test_a_horizon_of_one_patch_has_no_acceptance_and_another_season_another_row(lab, place, capsys):
    folder, rows = compared(lab, place, TOLERANCE, 12, "--season 10 --test_windows 20")
    for row in rows[3:]:
        assert row["acceptance_pct"] == row["used_pct"] == "" and row["target_passes"] == "1.0"
    saved = json.loads((folder / "metrics.json").read_text())["rows"]
    assert [row.get("acceptance_pct", "none") for row in saved] == ["none"] * 3 + [None] * 3
    said = capsys.readouterr().out
    assert said.count("nothing was proposed, so this is the target alone (the horizon is a single patch)") == 2
    assert said.count("nothing was proposed, so these are samples around the target's means") == 1
    assert rows[2]["method"] == "seasonal-naive (10)"
    values, starts = standardised(), [480 + i * 108 // 19 for i in range(20)]
    errors = [np.concatenate([values[t - 10:t]] * 2)[:12] - values[t:t + 12] for t in starts]
    assert float(rows[2]["mse"]) == pytest.approx(np.mean(np.square(errors)), rel=1e-4)


def test_what_the_planner_chose_is_told_for_each_batch_size(lab, place, capsys, monkeypatch):
    def plan(self, context):
        chosen = Plan(2 if len(context) == 1 else 1, len(context), 1.0, {0: 1.0})
        self.plans[len(context)] = chosen
        return chosen
    monkeypatch.setattr(SpeculativeMethod, "plan", plan)
    _, rows = compared(lab, place, TOLERANCE, more="--spec_k auto --test_windows 20")
    said = capsys.readouterr().out
    assert said.count("--spec_k auto chose K = 2 at batch 1 and K = 1 at batch 16. Each time is that of its own") == 3
    assert float(rows[5]["draft_passes"]) > 0


def test_sampled_emission_is_worse_than_mean_emission(table):
    # noise injected into a point forecast is an error: the table must show it
    _, rows = table
    assert float(rows[3]["mse"]) > float(rows[4]["mse"])


def test_speedups_are_over_the_target_alone_of_the_same_run(table):
    _, rows = table
    for row in rows:
        for batch in ("batch_1", "batch_n"):
            expected = float(rows[0][f"ms_{batch}"]) / float(row[f"ms_{batch}"])
            assert float(row[f"speedup_{batch}"]) == pytest.approx(expected)
            assert float(row[f"ms_{batch}_p10"]) <= float(row[f"ms_{batch}"]) <= float(row[f"ms_{batch}_p90"])
