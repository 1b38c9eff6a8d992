"""The bash scripts: their usage, the folders they are started from, and their horizons, those of the settings."""
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, tiny_series, write_series

SCRIPTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").rglob("*.sh")
                 if path.parent.name != "settings" and path.name not in ("common.sh", "environment.sh"))
ROLLING = "scripts/supervised/rolling_forecast"
SHORT = """. scripts/settings/tiny.sh
context=48
patch=8
horizons="24 36"
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the program with settings for a series of 400 rows, and a folder of the caller's with that series."""
    for folder in ("scripts", "exp", "models", "layers", "utils", "data_provider"):
        shutil.copytree(ROOT / folder, tmp_path / "project" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", tmp_path / "project")
    settings = tmp_path / "project" / "scripts" / "settings"
    (settings / "short.sh").write_text(SHORT + "data_file=short.csv\n")
    (settings / "absolute.sh").write_text(SHORT + f"data_file={tmp_path}/here/data/short.csv\n")
    (settings / "bare.sh").write_text("context=48\npatch=8\n")
    (tmp_path / "here" / "data").mkdir(parents=True)
    write_series(tiny_series(400), tmp_path / "here" / "data" / "short.csv")
    return tmp_path


def start(checkout, script, *arguments, **variables):
    """Started from the caller's folder, with relative paths in the environment."""
    variables = {"PYTHON": sys.executable, "DATASET_ROOT": "data", "CHECKPOINTS": "./models"} | variables
    return subprocess.run(["bash", str(checkout / "project" / script), *arguments], cwd=checkout / "here",
                          env=os.environ | variables, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_usage_needs_no_environment(tmp_path, script, flag):
    # a Python that fails, as would any attempt to install
    variables = {"PATH": os.environ["PATH"], "BASE_PYTHON": "false", "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", str(ROOT / script), flag], cwd=tmp_path, env=variables, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr
    usage, about, *_ = done.stdout.splitlines()
    assert usage.startswith(f"usage: bash {ROOT / script} [")
    assert f"# {about}" == (ROOT / script).read_text().splitlines()[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["short", "short.sh", "scripts/settings/short.sh", "absolute"])
def test_paths_are_those_of_the_caller(checkout, settings):
    variables = {"DATASET_ROOT": "nowhere"} if settings == "absolute" else {}
    done = start(checkout, f"{ROLLING}/timer_xl_etth1.sh", settings, "--quiet", "--train_epochs", "x", **variables)
    # the training itself is refused, to save time
    first, *_, last = done.stderr.splitlines()
    here = checkout / "here"
    assert first == f"data: {here}/data/short.csv, models: {here}/models" and "--train_epochs" in last
    assert done.returncode == 2


@pytest.mark.parametrize("settings, words", [
    ("shrot", ["no settings 'shrot'", "short.sh"]), ("./mine/short.sh", ["copy ./mine/short.sh there"]),
    ("bare", ["scripts/settings/bare.sh sets no horizons="]),
])
def test_settings_that_cannot_be_used_are_named(checkout, settings, words):
    done = start(checkout, "scripts/quickstart.sh", settings, horizons="96")  # a variable of the shell is no setting
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("flag", ["--task_name", "--model_id=x"])
def test_flags_that_would_move_the_folders_are_refused(checkout, flag):
    done = start(checkout, "scripts/quickstart.sh", "short", flag, "pretrain")
    assert done.returncode == 2 and f"error: {flag.partition('=')[0]} sets the paths" in done.stderr


@pytest.mark.slow
def test_every_experiment_runs_on_a_short_series(checkout):
    first = [f"{ROLLING}/timer_xl_etth1.sh", "scripts/distillation/timer_xl_draft_from_target_etth1_stochastic.sh"]
    experiments = [*first, "scripts/quickstart.sh", *(name for name in SCRIPTS if name.startswith(f"{ROLLING}/test_"))]
    for script in experiments:
        done = start(checkout, script, "short", "--quiet")
        assert done.returncode == 0, (script, done.stderr)
    done = start(checkout, "scripts/sweeps/stochastic_draft_param_sweep.sh", "short", "--quiet", "--sigma", "0.2",
                 "--k", "1", "--bias", "1")
    assert done.returncode == 0, done.stderr
    assert "# horizon: 36\n" in (checkout / "project/test_results/sweep_short.csv").read_text()
    assert not (checkout / "project" / "checkpoints").exists()
    results = {path.name for path in (checkout / "project" / "test_results").iterdir()}
    assert {f"forecast_short_timer_xl_target_0_pl{horizon}" for horizon in (24, 36)} <= results
    assert not [name for name in results if "_pl96" in name or "_pl336" in name]


@pytest.fixture
def utsd(checkout):
    """Settings for a folder of npy files in UTSD's layout, in the folder of the caller's data."""
    for number, name in enumerate(("Energy/a.npy", "Health/deep/b.npy")):
        path = checkout / "here" / "data" / "UTSD" / name
        path.parent.mkdir(parents=True)
        np.save(path, tiny_series(900 + 100 * number))
    settings = checkout / "project" / "scripts" / "settings"
    few = "--subset_rand_ratio 0.05 --val_windows 5 --test_windows 5"
    made = f"""horizons=24
target_training+=({few})
draft_training+=(--draft_rollout 2 {few})
adapting=(--train_epochs 1 --learning_rate 1e-4 --val_windows 5 --test_windows 5)
testing+=(--test_windows 5)
"""
    (settings / "made.sh").write_text(SHORT + made + "data_files=UTSD\ndataset_class=Utsd_Npy\n")
    (settings / "single.sh").write_text(SHORT + made + "data_file=short.csv\n")
    return checkout


@pytest.mark.slow
def test_pretraining_and_adaptation_run_on_folders_of_npy_files(utsd):
    done = start(utsd, "scripts/pretrain/timer_xl_utsd.sh", "made", "--quiet")
    assert done.returncode == 0, done.stderr
    few = "models/forecast_made_timer_xl_few_shot_0/checkpoint.pth"
    for shot, variables in (("few", {"adapted_file": "short.csv"}),
                            ("full", {"adapted_file": "UTSD", "CHECKPOINTS": "elsewhere", "PRETRAINED": few})):
        done = start(utsd, f"scripts/adaptation/{shot}_shot/timer_xl_etth1.sh", "made", "--quiet", **variables)
        assert done.returncode == 0, done.stderr
    args = json.loads((utsd / "here" / "elsewhere" / "forecast_made_timer_xl_full_shot_0" / "args.json").read_text())
    assert args["data"] == "UnivariateDatasetBenchmark"  # not split as UTSD is
    assert args["pretrain_model_path"] == str(utsd / "here" / few)
    done = start(utsd, "scripts/pretrain/timer_xl_multivariate.sh", "single", "--quiet")
    assert done.returncode == 0, done.stderr


def test_processes_train_together_and_test_alone(checkout):
    """The commands that a script runs, seen by a stand-in for python."""
    stub = checkout / "python"
    stub.write_text(f'#!/bin/bash\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "$@" >> {checkout}/said\n')
    stub.chmod(0o755)
    trained = checkout / "here" / "models" / "forecast_short_timer_xl_target_0"
    trained.mkdir(parents=True)
    (trained / "checkpoint.pth").touch()
    variables = {"PYTHON": str(stub), "PROCESSES": "2"}
    assert start(checkout, f"{ROLLING}/timer_xl_etth1.sh", "short", **variables).returncode == 0
    first, *tests = (checkout / "said").read_text().splitlines()
    assert first.startswith("-m torch.distributed.run --standalone --nproc_per_node 2 run.py --root_path")
    assert " --ddp " in first and tests
    assert all(line.startswith("run.py ") and "--ddp" not in line for line in tests)


@pytest.mark.parametrize("horizons, published", [("96 192 336 720", 336), ("336", 336), ("24 36", 36), ("1336", 1336)])
def test_the_published_comparison_is_at_336_where_the_settings_have_it(checkout, horizons, published):
    settings = checkout / "project" / "scripts" / "settings" / "short.sh"
    settings.write_text(settings.read_text() + f'horizons="{horizons}"\n')
    words = f". {checkout}/project/scripts/common.sh short; echo $published_horizon"
    done = subprocess.run(["bash", "-c", words], env=os.environ | {"PYTHON": sys.executable}, capture_output=True,
                          text=True, timeout=60)
    assert done.stdout == f"{published}\n"
