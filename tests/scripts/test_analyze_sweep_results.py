"""The analysis of a sweep: lists, front and sensitivity on figures known beforehand, pictures, and the notebook."""
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
from helpers import ROOT

from exp.report.results import DRAFT, TARGET
from exp.sweep.table import SweepTable
from scripts.sweeps import analyze_sweep_results as analysis
from scripts.sweeps import param_sweep

NOTEBOOK = ROOT / "scripts" / "sweeps" / "analyze_sweep_results.ipynb"
SETTINGS = {"data": "x.csv", "horizon": 336, "windows": "9 of 10", "batch_size": 64, "device": "none", "threads": 2}


def write(path, draft_ms=1.0):
    """Sigma decides acceptance and error, K the time, bias nothing."""
    table = SweepTable(path, SETTINGS)
    common = {"mae": 0.5, "accepted": 1, "attempted": 2, "seed": 1}
    table.add({"rule": TARGET}, common | {"mse": 0.50, "ms_per_forecast": 10.0, "target_passes": 4})
    table.add({"rule": DRAFT}, common | {"mse": 0.40, "ms_per_forecast": draft_ms, "draft_passes": 4})
    for sigma, accepted, mse in ((0.1, 20.0, 0.49), (0.25, 71.0, 0.44), (0.5, 100.0, 0.46)):
        for k, ms in ((1, 6.0), (3, 4.0 + 4 * sigma)):
            for bias in (1.0, 10.0):
                table.add({"rule": "simplified", "emit": "mean", "sigma": sigma, "bias": bias, "k": k},
                          common | {"mse": mse, "acceptance_pct": accepted, "ms_per_forecast": ms})


def test_lists_front_and_sensitivity(tmp_path):
    write(tmp_path / "t.csv")
    settings, cells, references = analysis.load_sweep(tmp_path / "t.csv")
    assert len(cells) == 12 and list(references["rule"]) == [TARGET, DRAFT] and settings["windows"] == "9 of 10"
    assert list(analysis.top_by_acceptance(cells, 4)["sigma"]) == [0.5] * 4
    assert list(analysis.top_by_mse(cells, 2)[["sigma", "ms_per_forecast"]].iloc[0]) == [0.25, 5.0]
    assert set(analysis.balanced(cells)["sigma"]) == {0.25, 0.5} and analysis.balanced(cells)["sigma"].iloc[0] == 0.25
    assert set(analysis.balanced(cells, at_least=90)["sigma"]) == {0.5}
    front = analysis.pareto_front(cells)
    assert list(zip(front["ms_per_forecast"], front["mse"])) == [(4.4, 0.49), (5.0, 0.44)]
    moved = analysis.sensitivity(cells).set_index("parameter")
    assert list(moved.index) == ["sigma", "bias", "k"]
    assert moved["acceptance_pct"].to_dict() == pytest.approx({"sigma": 80, "bias": 0, "k": 0})
    assert moved.loc["sigma", "mse"] == pytest.approx(0.05) and moved.loc["k", "ms_per_forecast"] > 0.8


def test_a_draft_that_beats_every_cell_is_named(tmp_path):
    for draft_ms, said in ((1.0, True), (5.5, False)):
        write(tmp_path / f"{said}.csv", draft_ms)
        lines = analysis.verdict(*analysis.load_sweep(tmp_path / f"{said}.csv")[1:])
        assert lines[0].startswith("target alone: MSE 0.5000, 10.00 ms")
        assert "12 are faster, 12 more accurate, 12 both" in lines[0]
        assert ("by itself" in lines[-1]) is said


@pytest.mark.slow
def test_the_program_prints_tables_and_draws_without_a_screen(tmp_path):
    write(tmp_path / "t.csv")
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "PYTHONPATH")}
    done = subprocess.run([sys.executable, ROOT / "scripts/sweeps/analyze_sweep_results.py", "t.csv", "--top", "2"],
                          cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for heading in ("Top 2 by acceptance", "Top 2 by MSE", "Balanced", "Pareto front", "Sensitivity"):
        assert heading in done.stdout
    pictures = sorted((tmp_path / "t").glob("*.png"))
    assert [path.name for path in pictures] == ["acceptance_mse.png", "heatmaps_simplified_mean.png", "pareto.png"]
    for picture in pictures:
        pixels = matplotlib.image.imread(picture)[..., :3]
        assert pixels.shape[0] > 300 and pixels.shape[1] > 500 and 0.02 < (pixels < 0.98).any(axis=2).mean() < 0.95


def test_rules_without_bias_have_no_heat_map_but_other_pictures(tmp_path):
    table = SweepTable(tmp_path / "t.csv", SETTINGS)
    for tol in (0.1, 0.2):
        table.add({"rule": "tolerance", "emit": "mean", "tol": tol, "k": 3},
                  {"mse": 0.4, "acceptance_pct": 100 * tol, "ms_per_forecast": 1 / tol})
    paths = analysis.draw(tmp_path / "out", *analysis.load_sweep(tmp_path / "t.csv"))
    assert sorted(path.name for path in paths) == ["acceptance_mse.png", "pareto.png"]
    assert all(path.is_file() for path in paths)


HEAD = "".join(f"# {name}: {value}\n" for name, value in SETTINGS.items()) + ",".join(analysis.COLUMNS) + "\n"
CELL = "1,1,1,simplified,mean,,0.5" + ",1" * 8 + "\n"


@pytest.mark.parametrize("content, word", [
    (None, "No such file"), ("a,b\n1,2\n", "not the table of a sweep"),
    (HEAD, "no cell yet"),
    (HEAD + CELL.replace("0.5", "bad"), "mse is 'bad'"),
    (HEAD + CELL.replace("0.5", "inf"), "mse is 'inf'"),
    (HEAD + CELL.replace("0.5", ""), "no mse"),
    (HEAD + CELL.replace("simplified", "faster"), "rule of a row is 'faster'"),
    (HEAD + CELL + CELL, "two rows are of one cell, simplified, emit mean, sigma 1, bias 1, k 1"),
    (HEAD + CELL[:20] + "\n", "does not have 15 values"),
    (HEAD.replace("# windows: 9 of 10\n", "") + CELL, "no note of windows"),
    (HEAD.replace("# device: none\n# threads: 2\n", "# dev\n") + CELL, "no note of device, threads"),
    (HEAD + "x" * 140_000 + CELL, "cannot be read")])
def test_what_is_no_sweep_is_one_line(tmp_path, capsys, content, word):
    if content is not None:
        (tmp_path / "t.csv").write_text(content)
    assert analysis.main([str(tmp_path / "t.csv")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and word in error and error.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_notebook_runs_on_a_small_real_sweep(place, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    flags = f"{place} --rule simplified,tolerance --tol 0.1,0.5 --bias 1,5 --out small.csv"
    assert param_sweep.main(flags.split()) == 0
    monkeypatch.setenv("SWEEP_CSV", str(Path("small.csv").resolve()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3
    best = analysis.top_by_mse(analysis.load_sweep(Path("small.csv"))[1], 1)
    tables = [output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert any(str(best["mse"].iloc[0])[:5] in table for table in tables)
