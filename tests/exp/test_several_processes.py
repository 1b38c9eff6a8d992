"""Tests by several processes of torchrun: the files of one process, but for times."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exp_helpers import save_pair
from helpers import ROOT

import run
from exp.evaluate.methods import make_speculative
from exp.evaluate.planning import plan_once
from exp.exp_forecast import Exp_Forecast
from exp.options import read_command_line
from exp.team import Team
from models.config import ModelConfig
from utils.planner import Plan

CONFIG = ModelConfig(input_token_len=12, d_model=16, n_heads=2, d_ff=32, e_layers=1, use_norm=True)
TEST = ("--quiet --root_path . --data_path noise.csv --test_pred_len 36 --batch_size 16 --is_training 0 "
        "--test_dir target")
DRAFT = "--spec_draft_ckpt checkpoints/draft"
TIMES = {"seconds", "share_pct", "windows_per_second", "processes", "ms_per_forecast", "ddp", "threads"}
NOT_COMPARED = {"settings.json", "compare.csv", "compare.png"}  # they hold times, and whether there was --ddp


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    t = np.arange(600)[:, None]
    values = np.sin(2 * np.pi * t / np.array([12, 24])) + 0.3 * np.random.default_rng(0).normal(size=(600, 2))
    pd.DataFrame(values.round(5), columns=["a", "b"]).to_csv("noise.csv", index=False)
    save_pair(CONFIG, "noise.csv", seq_len=48)


def torchrun(processes, *flags):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                           str(processes), str(ROOT / "run.py"), "--ddp", *flags], capture_output=True, text=True,
                          timeout=200, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})


def untimed(value):
    """What does not depend on the clock."""
    if isinstance(value, dict):
        return {key: untimed(part) for key, part in value.items()
                if not key.startswith(("ms_batch", "speedup", "plan")) and key not in TIMES | {"flags", "decision"}}
    if isinstance(value, list):
        return [untimed(part) for part in value]
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


@pytest.mark.slow
@pytest.mark.parametrize("processes, flags", [
    (2, f"--use_speculative {DRAFT} --spec_accept_rule coupling --num_samples 5 --save_samples --spec_debug_accept "
        "--spec_sigma_mode calibrated --trace_inference_breakdown"),
    (2, f"--use_speculative {DRAFT} --spec_accept_rule parareal --spec_rms 0.3 --data UnivariateDatasetBenchmark"),
    (3, f"--compare {DRAFT} --test_windows 35"),
], ids=["samples", "promise", "comparison"])
def test_several_processes_find_what_one_finds(processes, flags):
    assert run.main(f"{TEST} {flags}".split()) == 0
    shutil.move("test_results", "one")
    for fitted in Path("checkpoints").rglob("*_c[ae]*.pth"):  # calibrations and certificates: they make their own
        fitted.unlink()
    done = torchrun(processes, *TEST.split(), *flags.split())
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\nresults: " if "--compare" not in flags else "\ntable: ") == 1
    found = {path.relative_to("one") for path in Path("one").rglob("*") if path.is_file()}
    assert found == {path.relative_to("test_results") for path in Path("test_results").rglob("*") if path.is_file()}
    for path in found:
        one, several = Path("one") / path, Path("test_results") / path
        if path.name == "metrics.json":
            one, several = (json.loads(each.read_text()) for each in (one, several))
            assert several["processes"] == processes and one["processes"] == 1
            assert untimed(one) == untimed(several)
        elif path.name not in NOT_COMPARED:
            assert one.read_bytes() == several.read_bytes(), path


def test_what_the_main_process_has_planned_is_planned_in_all():
    class Second(Team):
        def once(self, work):
            return {"it": {16: Plan(3, 16, 0.9, {})}}
    experiment = Exp_Forecast(read_command_line(f"{TEST} --use_speculative {DRAFT} --spec_k auto".split()))
    experiment.team = Second(1, 2)
    method = make_speculative(experiment.load_tested(Path("checkpoints/target/checkpoint.pth")),
                              experiment.load_draft(), experiment.settings.spec, 36, 0)
    plan_once(experiment, {"it": method}, [16])
    assert method.proposals_for(16) == 3


@pytest.mark.slow
def test_seconds_of_all_processes_are_added_up():
    done = torchrun(2, *TEST.split())
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = json.loads(next(Path("test_results").rglob("metrics.json")).read_text())
    assert (f"ms_per_forecast: {metrics['ms_per_forecast']:.3f} (of work, added up over 2 processes), "
            f"windows a second: {metrics['windows_per_second']:.1f}") in done.stdout
    assert metrics["windows"] == 85
