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
from exp.sweep import plots
from exp.sweep.table import SweepTable
from scripts.sweeps import analyze_sweep_results as analysis
from scripts.sweeps import param_sweep

NOTEBOOK = ROOT / "scripts" / "sweeps" / "analyze_sweep_results.ipynb"
SETTINGS = {"data": "x.csv", "horizon": 336, "windows": "9 of 10", "batch_size": 64, "device": "none", "threads": 2}


def write(path, draft_ms=1.0):
    """Sigma decides acceptance, errors and passes, K the time, bias nothing. The MAE is lowest where the MSE is not."""
    table = SweepTable(path, SETTINGS)
    common = {"accepted": 1, "attempted": 2, "seed": 1}
    table.add({"rule": TARGET}, common | {"mse": 0.50, "mae": 0.60, "ms_per_forecast": 10.0, "target_passes": 4})
    table.add({"rule": DRAFT}, common | {"mse": 0.40, "mae": 0.50, "ms_per_forecast": draft_ms, "draft_passes": 4})
    for sigma, accepted, mse, mae, passes in ((0.1, 20.0, 0.49, 0.57, 3.5), (0.25, 71.0, 0.44, 0.59, 2.0),
                                              (0.5, 100.0, 0.46, 0.63, 1.0)):
        for k, ms in ((1, 6.0), (3, 4.0 + 4 * sigma)):
            for bias in (1.0, 10.0):
                table.add({"rule": "simplified", "emit": "mean", "sigma": sigma, "bias": bias, "k": k},
                          common | {"mse": mse, "mae": mae, "acceptance_pct": accepted, "ms_per_forecast": ms,
                                    "target_passes": passes})


def test_lists_fronts_and_sensitivity(tmp_path):
    write(tmp_path / "t.csv")
    settings, cells, references = analysis.load_sweep(tmp_path / "t.csv")
    assert len(cells) == 12 and list(references["rule"]) == [TARGET, DRAFT] and settings["windows"] == "9 of 10"
    assert list(analysis.top_by_acceptance(cells, 4)["sigma"]) == [0.5] * 4
    assert list(analysis.top_by_error(cells, "mse", 2)[["sigma", "ms_per_forecast"]].iloc[0]) == [0.25, 5.0]
    assert list(analysis.top_by_error(cells, "mae", 2)[["sigma", "ms_per_forecast"]].iloc[0]) == [0.1, 4.4]
    assert set(analysis.balanced(cells)["sigma"]) == {0.25, 0.5} and analysis.balanced(cells)["sigma"].iloc[0] == 0.25
    assert set(analysis.balanced(cells, at_least=90)["sigma"]) == {0.5}
    fronts = {(cost, error): analysis.pareto_front(cells, cost, error)[[cost, error]].to_numpy().tolist()
              for cost in ("ms_per_forecast", "target_passes") for error in ("mse", "mae")}
    assert fronts == {("ms_per_forecast", "mse"): [[4.4, 0.49], [5.0, 0.44]],
                      ("ms_per_forecast", "mae"): [[4.4, 0.57]],
                      ("target_passes", "mse"): [[1.0, 0.46], [2.0, 0.44]],
                      ("target_passes", "mae"): [[1.0, 0.63], [2.0, 0.59], [3.5, 0.57]]}
    moved = analysis.sensitivity(cells).set_index("parameter")
    assert list(moved.index) == ["sigma", "bias", "k"]
    assert moved["acceptance_pct"].to_dict() == pytest.approx({"sigma": 80, "bias": 0, "k": 0})
    assert moved.loc["sigma", "mse"] == pytest.approx(0.05) and moved.loc["k", "ms_per_forecast"] > 0.8
    assert moved.loc["sigma", "mae"] == pytest.approx(0.06) and moved.loc["sigma", "target_passes"] == 2.5


def test_errors_are_also_given_relative_to_the_target_and_cheap_cells_are_those_near_it(tmp_path):
    write(tmp_path / "t.csv")
    _, cells, references = analysis.load_sweep(tmp_path / "t.csv")
    assert list(references["mse_pct"]) == pytest.approx([0, -20]) and list(cells["mae_pct"][:1]) == pytest.approx([-5])
    # sigma 0.5 has the fewest passes, but an MAE 5 % above the target's
    assert set(analysis.top_by_cost(cells, "target_passes", n=4)["sigma"]) == {0.25}
    assert set(analysis.top_by_cost(cells, "target_passes", at_most=6, n=4)["sigma"]) == {0.5}
    assert list(analysis.top_by_cost(cells, "ms_per_forecast", n=1)["ms_per_forecast"]) == [4.4]


def test_a_draft_that_beats_every_cell_is_named(tmp_path):
    for draft_ms, said in ((1.0, True), (5.5, False)):
        write(tmp_path / f"{said}.csv", draft_ms)
        lines = analysis.verdict(*analysis.load_sweep(tmp_path / f"{said}.csv")[1:])
        assert lines[0].startswith("target alone: MSE 0.5000, MAE 0.6000, 10.00 ms")
        assert "12 are faster, 12 have a lower MSE, 8 a lower MAE, 8 all three" in lines[0]
        assert ("by itself" in lines[-1]) is said


@pytest.mark.slow
def test_the_program_prints_tables_and_draws_without_a_screen(tmp_path):
    write(tmp_path / "t.csv")
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "PYTHONPATH")}
    done = subprocess.run([sys.executable, ROOT / "scripts/sweeps/analyze_sweep_results.py", "t.csv", "--top", "2"],
                          cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for heading in ("Top 2 by acceptance", "Top 2 by MSE", "Top 2 by MAE", "Top 2 by target passes", "Top 2 by time",
                    "Balanced", "Pareto front of the cells, target passes and MAE",
                    "Pareto front of the cells, time and MSE", "Sensitivity"):
        assert heading in done.stdout
    pictures = sorted((tmp_path / "t").glob("*.png"))
    assert [path.name for path in pictures] == [
        "errors_by_acceptance.png", "errors_by_passes.png", "errors_by_time.png", "heatmaps_simplified_mean.png"]
    for picture in pictures:
        pixels = matplotlib.image.imread(picture)[..., :3]
        assert pixels.shape[0] > 300 and pixels.shape[1] > 500 and 0.02 < (pixels < 0.98).any(axis=2).mean() < 0.95


LINES = ["errors_by_acceptance.png", "errors_by_passes.png", "errors_by_time.png"]


@pytest.mark.parametrize("parameters", [{"rule": "tolerance", "tol": (0.1, 0.2)}, {
    "rule": "simplified", "sigma": (0.1, 0.2), "bias": (1.0, 1.0)}])
def test_without_a_grid_of_sigma_and_bias_there_is_no_heat_map_but_other_pictures(tmp_path, parameters):
    table = SweepTable(tmp_path / "t.csv", SETTINGS)
    for at in (0, 1):
        table.add({name: value if name == "rule" else value[at] for name, value in parameters.items()}
                  | {"emit": "mean", "k": 3},
                  {"mse": 0.4, "mae": 0.4, "acceptance_pct": 10 * at, "ms_per_forecast": 1 + at, "target_passes": 4})
    paths = analysis.draw(tmp_path / "out", *analysis.load_sweep(tmp_path / "t.csv"))
    assert sorted(path.name for path in paths) == LINES and all(path.is_file() for path in paths)


@pytest.fixture
def drawn(monkeypatch):
    """Name of a picture -> its figure, as it is saved."""
    figures = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.update({path.name: figure}))
    return figures


def test_pictures_show_both_errors_relative_to_the_target_and_explain_themselves(tmp_path, drawn):
    write(tmp_path / "t.csv")
    analysis.draw(tmp_path, *analysis.load_sweep(tmp_path / "t.csv"))
    figure = drawn["errors_by_passes.png"]
    mse, mae = figure.axes
    assert mse.get_xlabel() == "target passes per forecast" and "MSE" in mse.get_ylabel() and "MAE" in mae.get_ylabel()
    curves = {line.get_label(): line for line in mae.get_lines()}
    assert list(curves["simplified, mean, K 3"].get_xdata()) == [3.5, 2, 1]  # in the order of sigma
    assert list(curves["simplified, mean, K 3"].get_ydata()) == pytest.approx([-5, -100 / 60, 5])
    assert [line.get_ydata()[0] for name, line in curves.items() if name.endswith("alone")] == pytest.approx(
        [0, -100 / 6])
    words = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    for part in ("Each marker is one cell", "colour and shape name the rule", "hollow", "larger K",
                 "in the order of sigma", "Dashed orange: the draft alone"):
        assert part in words
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == [TARGET, DRAFT, "simplified, mean, K 1", "simplified, mean, K 3"]
    heat = drawn["heatmaps_simplified_mean.png"]
    assert "dark blue for the lowest" in heat.get_supxlabel().replace("\n", " ")
    assert {"accepted (%)", "MSE (standardised)", "MAE (standardised)"} <= {axis.get_ylabel() for axis in heat.axes}


def test_a_way_without_k_and_acceptance_is_drawn_where_it_has_a_place(tmp_path, drawn):
    write(tmp_path / "t.csv")
    table = SweepTable(tmp_path / "t.csv", SETTINGS)
    for tol, passes in ((0.1, 2.0), (0.3, 1.0)):
        table.add({"rule": "parareal", "emit": "mean", "tol": tol},
                  {"mse": 0.5, "mae": 0.6, "ms_per_forecast": 5.0, "target_passes": passes})
    analysis.draw(tmp_path, *analysis.load_sweep(tmp_path / "t.csv"))
    for name, expected in (("passes", True), ("time", True), ("acceptance", False)):
        labels = [text.get_text() for text in drawn[f"errors_by_{name}.png"].legends[0].get_texts()]
        assert ("parareal, mean" in labels) is expected and "simplified, mean, K 3" in labels
    line = next(line for line in drawn["errors_by_passes.png"].axes[0].get_lines()
                if line.get_label() == "parareal, mean")
    assert list(line.get_xdata()) == [2, 1]  # in the order of the tolerance


def test_samples_far_above_the_target_do_not_hide_what_is_near_it(tmp_path, drawn):
    write(tmp_path / "t.csv")
    table = SweepTable(tmp_path / "t.csv", SETTINGS)
    table.add({"rule": "coupling", "emit": "sample", "sigma": 3.0, "k": 3},
              {"mse": 9.5, "mae": 3.0, "acceptance_pct": 1.0, "ms_per_forecast": 5.0, "target_passes": 4})
    analysis.draw(tmp_path, *analysis.load_sweep(tmp_path / "t.csv"))
    figure = drawn["errors_by_time.png"]
    assert [axis.get_yscale() for axis in figure.axes] == ["symlog", "symlog"]
    assert "logarithmic" in figure.texts[-1].get_text().replace("\n", " ")


def test_the_table_of_the_first_default_grid_is_still_read_and_drawn(tmp_path, drawn):
    settings, cells, references = analysis.load_sweep(ROOT / "docs" / "results" / "sweep_etth1_336.csv")
    assert len(cells) == 80 and "Top 1 by MAE" in analysis.report(settings, cells, references, 1)
    analysis.draw(tmp_path, settings, cells, references)
    assert sorted(drawn) == [*LINES, "heatmaps_simplified_mean.png"]


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
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    best = analysis.top_by_error(analysis.load_sweep(Path("small.csv"))[1], "mse", 1)
    tables = [output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert any(str(best["mse"].iloc[0])[:5] in table for table in tables)
