"""--compare: the table, its columns, and that its rows are what they say."""
import csv
import json
import shlex

import numpy as np
import pytest
from exp_helpers import (
    DRAFT,
    TARGET,
    TOLERANCE,
    assert_picture,
    command,
    load,
    metrics,
    results,
    rolling_errors,
    standardised,
)
from helpers import tiny_series, write_series

from exp.evaluate.methods import SpeculativeMethod
from utils.planner import Plan

METHODS = ["target alone", "draft alone", "seasonal-naive (24)", "speculative simplified, sampled",
           "speculative simplified, mean", "speculative exact", "speculative coupling", "speculative parareal 0.5",
           "speculative tolerance 0.5"]
UNTIMED = ("mse", "mae", "acceptance_pct", "used_pct", "target_passes", "draft_passes")


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
    saved = json.loads((folder / "metrics.json").read_text())
    assert [row["method"] for row in saved["rows"]] == METHODS
    # untrained beyond a horizon of one patch: which way wins is not the point here
    assert saved["decision"]["use"] in ("draft", "speculation", "target", "seasonal-naive")
    assert set(saved["decision"]["ways"]) == {"draft", "speculation", "target", "seasonal-naive"}


def test_the_table_has_its_columns(table):
    _, rows = table
    measured = {"mse", "mae", "ms_batch_1", "speedup_batch_1", "ms_batch_n", "speedup_batch_n", "rms_from_target",
                "rms_in_windows", "ms_batch_1_p10", "ms_batch_1_p90", "windows", "horizon", "context", "batch_n",
                "threads"}
    speculative = {"acceptance_pct", "used_pct", "target_passes", "draft_passes"}
    for row in rows:
        assert measured | speculative | {"device", "torch", "kept_pct", "plan_batch_1", "plan_batch_n"} <= set(row)
        assert all(float(row[name]) >= 0 for name in measured)
        assert row["windows"] == "61" and row["horizon"] == "60" and row["batch_n"] == "16"
        judged = row["method"].startswith("speculative") and "parareal" not in row["method"]
        assert all(row[name] for name in speculative) is judged


def test_rows_without_speculation_are_what_another_loop_measures(lab, table):
    _, rows = table
    target, draft = (rolling_errors(load(lab, setting), 60) for setting in (TARGET, DRAFT))
    values = standardised()
    naive = np.stack([np.concatenate([values[t - 24:t]] * 3)[:60] - values[t:t + 60] for t in range(480, 541)])
    for row, errors in zip(rows, (target, draft, naive)):
        assert float(row["mse"]) == pytest.approx(np.mean(errors**2), rel=1e-4)
        deviation = np.sqrt(np.mean((errors - target) ** 2))
        assert float(row["rms_from_target"]) == pytest.approx(deviation, rel=1e-3, abs=1e-6)
        relative = [(error - other) / np.sqrt(np.var(values[t - 48:t], axis=0) + 1e-5)
                    for error, other, t in zip(errors, target, range(480, 541))]
        assert float(row["rms_in_windows"]) == pytest.approx(np.sqrt(np.mean(np.square(relative))), rel=1e-3, abs=1e-6)
    assert float(rows[0]["target_passes"]) == 5 and float(rows[1]["draft_passes"]) == 5
    assert float(rows[0]["speedup_batch_1"]) == float(rows[0]["speedup_batch_n"]) == 1


@pytest.mark.slow
def test_tolerance_zero_stands_in_the_table_as_the_target_itself(lab, table, place):
    _, rows = compared(lab, place, 0)
    assert rows[-1]["method"] == "speculative tolerance 0"
    assert float(rows[-1]["rms_from_target"]) < 1e-5
    assert float(rows[-1]["mse"]) == pytest.approx(float(rows[0]["mse"]), rel=1e-6)
    _, wider = table
    assert float(wider[-1]["rms_from_target"]) > 1e-4  # the column can tell


def test_a_horizon_of_one_patch_has_no_acceptance_and_another_season_another_row(lab, place, capsys):
    folder, rows = compared(lab, place, TOLERANCE, 12, "--season 10 --test_windows 20")
    for row in rows[3:]:
        assert row["acceptance_pct"] == row["used_pct"] == "" and row["target_passes"] == "1.0"
    saved = json.loads((folder / "metrics.json").read_text())["rows"]
    assert [row.get("acceptance_pct", "none") for row in saved] == ["none"] * 3 + [None] * 4 + ["none", None]
    said = capsys.readouterr().out
    assert ("speculative simplified, mean, speculative parareal 0.5, speculative tolerance 0.5: nothing was proposed, "
            "so this is the target alone (the horizon is a single patch)") in said
    assert ("speculative simplified, sampled, speculative exact, speculative coupling: nothing was proposed, so these "
            "are samples around the target's means") in said
    decision = json.loads((folder / "metrics.json").read_text())["decision"]
    assert decision["use"] != "speculation" and decision["ways"]["speculation"] is None
    assert rows[-1]["plan_batch_1"] == rows[-1]["plan_batch_n"] == "0"
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
    assert said.count("--spec_k auto chose another K at batch 1 than at batch 16") == 1
    assert [(row["plan_batch_1"], row["plan_batch_n"]) for row in rows] == [
        ("", "")] * 3 + [("2", "1")] * 4 + [("", ""), ("2", "1")]  # parareal has no K
    assert float(rows[-1]["draft_passes"]) > 0


def test_the_plan_of_the_tolerance_is_shown_and_changes_nothing(lab, table, place, monkeypatch):
    asked = []

    def plan(self, context):
        asked.append((self.rule.name, tuple(context.shape)))
        self.plans[len(context)] = Plan(1 if len(context) == 1 else 0, len(context), 1.0, {0: 1.0})
        return self.plans[len(context)]
    monkeypatch.setattr(SpeculativeMethod, "plan", plan)
    _, rows = compared(lab, place, TOLERANCE)
    assert asked == [("tolerance", (1, 48, 3)), ("tolerance", (16, 48, 3))]
    assert [(row["plan_batch_1"], row["plan_batch_n"]) for row in rows] == [("", "")] * 8 + [("1", "0")]
    _, others = table  # with the planner's own choice
    assert [[row[name] for name in UNTIMED] for row in rows] == [[row[name] for name in UNTIMED] for row in others]
    assert float(rows[-1]["draft_passes"]) > 0  # K = 0 would propose nothing


def test_without_validation_windows_the_table_has_no_plan(lab, place, capsys):
    write_series(tiny_series(110))  # 11 rows of validation, but a patch has 12
    (place / "checkpoints").symlink_to(lab / "checkpoints")
    folder, rows = compared(place, place, TOLERANCE, 12)
    assert len(rows) == 9 and not any(row["plan_batch_1"] or row["plan_batch_n"] for row in rows)
    said = capsys.readouterr().out
    assert "note: --compare is without the planner's K: " in said and "rows are too few for the val split" in said
    assert "--seq_len" in said and "`" not in said and "plan 1" not in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [
    "", "--spec_k 2 --spec_repropose target --spec_sigma 0.4 --spec_temp 1.5 --spec_accept_bias 2 "
    "--spec_accept_mse_tol 0.3 --seed 3",
    "--spec_sigma_mode adaptive --spec_sigma_adapt_c 3 --spec_repropose corrected --spec_adaptive"])
def test_the_flags_of_a_row_reproduce_it(lab, place, more):
    folder, rows = compared(lab, place, TOLERANCE, more=more)
    saved = json.loads((folder / "metrics.json").read_text())["rows"]
    assert not any("flags" in row for row in saved[:3])
    seed = "--seed 3" if "--seed" in more else ""
    for row in saved[3:]:
        assert command(lab, f"--test_pred_len 60 --batch_size 16 {seed} {shlex.join(row['flags'])}") == 0
        alone = metrics()
        assert {name: alone.get(name) for name in UNTIMED} == {name: row.get(name) for name in UNTIMED}, row["method"]


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
