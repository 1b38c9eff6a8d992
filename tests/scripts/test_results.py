"""scripts/results.sh: which parts run, in which order, and what is left after a failure, a kill, a new checkpoint."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, tiny_series, tiny_target, write_series
from test_results_tables import USED, metrics

from exp.flags import flat
from exp.ownership import SOURCES, sources
from models.checkpoint import read_settings, save_checkpoint, save_tensors
from scripts.results import documents, measure, plans
from scripts.results.entries import BY_NAME, SEEDS
from scripts.results.plans import missing, plan_of, settings_of
from scripts.results.table import Table
from utils.errors import UserError


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """The loop without its programs; what they were asked to do, and a set of what has to fail."""
    asked, failing = [], set()

    def plan(settings, seed, checkpoints):
        parts = [(["ETTh2.csv"], horizon, [settings, str(seed), str(horizon)]) for horizon in (96, 720)]
        return SimpleNamespace(target=[f"{settings} {seed}"], draft=["draft"], comparisons=lambda entry: parts)

    def program(flags):
        asked.append(" ".join(flags))
        if asked[-1] in failing:
            raise UserError(f"`horizon` of {asked[-1]}")
        (tmp_path / "metrics.json").write_text(json.dumps(metrics()))
        return {"table": str(tmp_path / "compare.csv")}
    monkeypatch.setattr(measure, "run_program", program)
    monkeypatch.setattr(plans, "plan_of", plan)
    monkeypatch.setattr(plans, "missing", lambda flags: flags if flags != ["draft"] else None)
    monkeypatch.setattr(plans, "used_by", lambda plan, flags: USED)
    monkeypatch.setattr(documents, "write_documents", lambda root, rows: None)
    monkeypatch.setattr(measure, "TABLE", tmp_path / "docs" / "table.csv")
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    return SimpleNamespace(asked=asked, failing=failing, rows=lambda: Table(measure.TABLE).rows)


def test_seeds_and_entries_can_be_chosen(faked):
    assert measure.main(["--only", "etth2,etth1", "--seeds", "2"]) == 0
    assert faked.asked == [part for settings, seed in (("etth1", 2021), ("etth1", 2022), ("etth2_causal", 2021))
                           for part in (f"{settings} {seed}", f"{settings} {seed} 96", f"{settings} {seed} 720")]
    assert {(row["entry"], row["seed"]) for row in faked.rows()} == {("etth1", "2021"), ("etth1", "2022"),
                                                                    ("etth2", "2021")}


def test_everything_is_measured_by_default(faked):
    assert measure.main([]) == 0
    assert {(row["entry"], row["seed"]) for row in faked.rows()} == {
        (name, str(seed)) for name, entry in BY_NAME.items() for seed in SEEDS[:entry.seeds]}


def test_what_is_there_is_not_measured_again(faked):
    assert measure.main(["--only", "weather"]) == measure.main(["--only", "weather"]) == 0
    assert faked.asked == ["weather 2021", "weather 2021 96", "weather 2021 720", "weather 2021"]


def test_a_failure_costs_no_other_rows(faked, capsys):
    faked.failing |= {"etth1 2021", "etth2_causal 2021 96"}
    assert measure.main(["--only", "etth1,etth2,weather", "--seeds", "1"]) == 2
    assert {(row["entry"], row["horizon"]) for row in faked.rows()} == {("etth2", "720"), ("weather", "96"),
                                                                       ("weather", "720")}
    (said,) = capsys.readouterr().err.splitlines()
    assert said == ("error: 2 failed, all other rows are in docs/table.csv: etth1, seed 2021: --test_pred_len of etth1 "
                    "2021; etth2, seed 2021, ETTh2, horizon 96: --test_pred_len of etth2_causal 2021 96")


@pytest.mark.parametrize("flags, words", [("--only etth1,ettx", "--only ettx: there is no such entry"),
                                          ("--seeds 0", "--seeds: 0"), ("--train_epochs 1", "--train_epochs")])
def test_bad_flags_are_one_line(faked, capsys, flags, words):
    assert measure.main(flags.split()) == 2 and not faked.asked
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and words in said


def test_table_measures_nothing(faked):
    assert measure.main(["--table"]) == 0 and not faked.asked


@pytest.mark.slow
def test_a_program_that_fails_is_quoted():
    with pytest.raises(UserError, match="^argument --seed: "):
        measure.run_program(["--seed", "x"])


def test_a_plan_is_what_the_scripts_would_run(tmp_path, monkeypatch):
    monkeypatch.setenv("DATASET_ROOT", str(tmp_path / "data"))
    plan = plan_of("pool_zeroshot", 2023, tmp_path / "seed_2023")
    target = settings_of(plan.target)
    draft = tmp_path / "seed_2023" / "forecast_pool_zeroshot_timer_xl_draft_stochastic_0"
    assert target.run.seed == 2023 and target.train.train_epochs == 4 and target.run.is_training
    assert target.run.checkpoints == str(tmp_path / "seed_2023") and target.model.config.e_layers == 4
    assert plan.horizons == [96, 192, 336, 720] and plan.draft_file == draft / "checkpoint.pth"
    assert plan.draft[plan.draft.index("--distill_target_ckpt") + 1] == str(plan.target_file)
    parts = plan.comparisons(BY_NAME["zeroshot"])
    assert [(files, horizon) for files, horizon, _ in parts] == [
        ([file], horizon) for file in ("ETT-small/ETTh2.csv", "weather/weather.csv") for horizon in plan.horizons]
    assert parts[-1][2][-10:] == ["--root_path", str(tmp_path / "data"), "--data_path", "weather/weather.csv",
                                  "--test_pred_len", "720", "--batch_size", "64", "--test_windows", "100"]
    with pytest.raises(UserError, match="no settings 'nothing'"):
        plan_of("nothing", 2021, tmp_path)


def test_a_training_is_left_alone_when_it_has_ended(tmp_path):
    write_series(tiny_series(400), tmp_path / "one.csv")
    flags = ("--is_training 1 --data_path one.csv --seq_len 48 --input_token_len 8 --d_model 16 --n_heads 2 --d_ff 32 "
             f"--root_path {tmp_path} --checkpoints {tmp_path} --model_id one --des target --train_epochs 2").split()
    folder, settings = tmp_path / "forecast_one_timer_xl_target_0", settings_of(flags)
    assert missing(flags) == [*flags, "--resume"]
    kept = flat(settings) | {SOURCES: sources(settings.data.files), "processes": 1}
    save_checkpoint(folder, tiny_target().state_dict(), kept)
    assert missing(flags) == [*flags, "--resume"]  # nothing says that it has ended
    state = {"finished": False, "bad_rounds": 0, "epoch": 2}
    for damaged in ({}, {"finished": True}, state):
        save_tensors(folder / "resume.pth", damaged)
        assert missing(flags) == [*flags, "--resume"]
    save_tensors(folder / "resume.pth", state | {"finished": True})
    assert missing(flags) is None and missing([*flags, "--quiet"]) is None
    longer, wider = [*flags, "--train_epochs", "3"], [*flags, "--d_ff", "64"]
    assert missing(longer) == [*longer, "--resume"]
    assert missing(wider) == wider  # which run.py refuses: the folder is another run's
    write_series(tiny_series(500), tmp_path / "one.csv")
    assert missing(flags) == flags  # the same run on other data starts over


SHORT = """. scripts/settings/tiny.sh
context=48
patch=8
horizons="24"
"""
POOL = SHORT + """dataset_class=UnivariateDatasetBenchmark
target_training+=(--test_windows 5)
draft_training+=(--test_windows 5)
testing+=(--test_windows 5)
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the program whose settings files are for series of 400 rows, of which 20 windows are forecast."""
    project = tmp_path / "project"
    for folder in ("scripts", "exp", "models", "layers", "utils", "data_provider", "docs"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__", "img"))
    for name in ("run.py", "README.md"):
        shutil.copy(ROOT / name, project)
    (project / "docs/results/every_data_set.csv").unlink(missing_ok=True)
    settings, entries = project / "scripts/settings", project / "scripts/results/entries.py"
    entries.write_text(entries.read_text().replace("WINDOWS, WINDOWS_OF = 300", "WINDOWS, WINDOWS_OF = 20"))
    (settings / "etth1.sh").write_text(SHORT + "data_file=one.csv\n")
    (settings / "etth2_causal.sh").write_text(SHORT + "data_file=ETTh2.csv\n")
    (settings / "pool.sh").write_text(POOL + 'data_files="one.csv two.csv"\n')
    (settings / "pool_zeroshot.sh").write_text(POOL + "data_file=one.csv\nunseen_files=two.csv\n")
    (tmp_path / "data").mkdir()
    write_series(tiny_series(400), tmp_path / "data/one.csv")
    write_series(tiny_series(700)[300:], tmp_path / "data/two.csv")
    return tmp_path


def start(checkout, *flags):
    places = {"PYTHON": sys.executable, "DATASET_ROOT": "data", "CHECKPOINTS": "models"}
    return subprocess.Popen(["bash", str(checkout / "project/scripts/results.sh"), *flags], cwd=checkout, text=True,
                            env=os.environ | places, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ran(checkout, *flags, code=0):
    """The steps that were taken: lines of the output that start with ==."""
    process = start(checkout, *flags)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out + err
    return [line.removeprefix("== ") for line in out.splitlines() if line.startswith("== ")], err


def rows(checkout):
    with open(checkout / "project/docs/results/every_data_set.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_documents_fit(checkout):
    project = checkout / "project"
    for name, block in documents.BLOCKS.items():
        text = (project / name).read_text()
        assert documents.replaced(text, block(rows(checkout)), name, documents.EVERY_DATA_SET) == text
        assert documents.EMPTY not in text


def disturb(checkpoint):
    """Other weights, with the same settings."""
    state = torch.load(checkpoint, weights_only=True)
    changed = {name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()}
    save_checkpoint(checkpoint.parent, changed, read_settings(checkpoint))


@pytest.mark.slow
def test_the_pool_its_files_and_those_it_has_not_seen(checkout):
    steps, err = ran(checkout, "--only", "etth2,pool,pool_files,zeroshot", "--seeds", "1", code=2)
    assert steps == [
        "etth2, seed 2021: training the target", "pool, seed 2021: training the target",
        "pool, seed 2021: training the draft", "pool, seed 2021, one two, horizon 24: comparing",
        "pool_files, seed 2021, one, horizon 24: comparing", "pool_files, seed 2021, two, horizon 24: comparing",
        "zeroshot, seed 2021: training the target", "zeroshot, seed 2021: training the draft",
        "zeroshot, seed 2021, two, horizon 24: comparing"]
    *_, said = err.splitlines()
    assert said.startswith("error: 1 failed, all other rows are in docs/results/every_data_set.csv: etth2, seed 2021: ")
    assert "ETTh2.csv" in said  # which is not there
    windows = {(row["entry"], row["data"]): (row["test_windows"], row["windows"]) for row in rows(checkout)}
    assert windows == {("pool", "one two"): ("5", "30"), ("pool_files", "one"): ("20", "60"),
                       ("pool_files", "two"): ("20", "60"), ("zeroshot", "two"): ("20", "60")}
    assert len(rows(checkout)) == 4 * 9 and {row["use"] for row in rows(checkout)} <= {
        "draft", "target", "speculation", "seasonal-naive"}
    assert_documents_fit(checkout)
    assert ran(checkout, "--only", "pool,pool_files,zeroshot", "--seeds", "1")[0] == []


@pytest.mark.slow
def test_a_kill_costs_a_step_and_a_new_checkpoint_new_rows(checkout):
    process = start(checkout, "--only", "etth1", "--seeds", "1")
    assert process.stdout is not None
    next(line for line in process.stdout if "training the draft" in line)
    process.stdout.readline()  # now the training is at work
    process.send_signal(signal.SIGKILL)
    process.wait()
    while list((checkout / "models").rglob(".lock")):  # it ends for want of a reader
        time.sleep(0.1)
    steps, _ = ran(checkout, "--only", "etth1", "--seeds", "1")
    assert steps == ["etth1, seed 2021: training the draft", "etth1, seed 2021, one, horizon 24: comparing"]
    first = rows(checkout)
    models = checkout / "models/seed_2021"

    disturb(models / "forecast_etth1_timer_xl_draft_stochastic_0/checkpoint.pth")
    assert ran(checkout, "--only", "etth1", "--seeds", "1")[0] == steps[1:]
    second = rows(checkout)
    assert len(second) == len(first) == 9 and second[0]["target_sha256"] == first[0]["target_sha256"]
    assert second[0]["draft_sha256"] != first[0]["draft_sha256"] and second[1]["mse"] != first[1]["mse"]

    disturb(models / "forecast_etth1_timer_xl_target_0/checkpoint.pth")  # a draft learns from its own target
    assert ran(checkout, "--only", "etth1", "--seeds", "1")[0] == steps
    assert rows(checkout)[0]["target_sha256"] != second[0]["target_sha256"]
    assert_documents_fit(checkout)


@pytest.mark.slow
def test_an_interruption_ends_the_training_and_is_told_in_a_line(checkout):
    process = start(checkout, "--only", "etth1", "--seeds", "1")
    assert process.stdout is not None
    next(line for line in process.stdout if "training the target" in line)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and err.splitlines()[-1].startswith("interrupted: the rows so far are kept")
    assert not list((checkout / "models").rglob(".lock"))
