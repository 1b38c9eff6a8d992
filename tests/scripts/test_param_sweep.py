"""The sweep: which cells there are, one row each, continued after a kill, refused where it would mix two sweeps."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import PATCH, ROOT, rows_of, untimed

from exp.exp_forecast import Exp_Forecast
from exp.options import read_command_line
from exp.report.results import DRAFT, TARGET
from exp.settings import SpecSettings
from exp.sweep.bench import Bench, Cell, make_cells
from exp.sweep.table import COLUMNS
from scripts.sweeps import param_sweep
from utils.acceptance import RULES
from utils.errors import UserError

GRID = {"rule": ["simplified"], "emit": ["mean"], "sigma": [0.1, 0.5], "bias": [1.0, 9.0], "tol": [0.1, 0.2, 0.3],
        "k": [1, 2]}


def sweep(flags):
    return param_sweep.main(flags.split())


def cells(grid, given=()):
    return make_cells(SpecSettings(), set(), GRID | grid, set(given))


def test_the_default_grid_has_80_cells_and_the_two_references():
    got = make_cells(SpecSettings(), set(), param_sweep.DEFAULTS, set())
    assert len(got) == len(set(got)) == 82 and got[:2] == [Cell(TARGET), Cell(DRAFT)]


def test_a_parameter_without_meaning_makes_no_cells_and_no_value():
    got = cells({"rule": ["simplified", "tolerance"], "emit": ["mean", "sample"]})
    simplified, tolerance = ([cell for cell in got if cell.rule == name] for name in ("simplified", "tolerance"))
    assert len(simplified) == 2 * 2 * 2 * 2 and {cell.tol for cell in simplified} == {None}
    assert len(set(tolerance)) == len(tolerance) == 3 * 2
    assert {(cell.emit, cell.sigma, cell.bias) for cell in tolerance} == {("mean", None, None)}


def test_every_rule_of_the_program_can_be_swept():
    got = cells({"rule": sorted(RULES)})
    assert {cell.rule for cell in got} == {TARGET, DRAFT, *RULES}


@pytest.mark.parametrize("grid, given, word", [
    ({"rule": ["tolerance"]}, {"sigma"}, "--sigma"), ({"rule": ["tolerance"]}, {"bias", "tol"}, "--bias"),
    ({"rule": ["tolerance"], "emit": ["sample"]}, {"emit"}, "--emit"), ({}, {"tol"}, "--tol")])
def test_a_list_that_no_rule_has_a_use_for_is_refused(grid, given, word):
    with pytest.raises(UserError, match=f"{word} .* does not apply to --rule"):
        cells(grid, given)


def test_the_table_reads_as_published_and_says_what_run_py_says(place):
    assert sweep(f"{place} --out a.csv") == 0
    table = pd.read_csv("a.csv", comment="#")
    assert list(table.columns) == COLUMNS and len(table) == 6
    assert list(table["rule"][:2]) == [TARGET, DRAFT] and table["acceptance_pct"][:2].isna().all()
    assert table["target_passes"][0] == 4 and table["draft_passes"][1] == 4
    # the same cell by another way: every window, hence the same ones
    flags = ("--is_training 0 --checkpoints given --test_dir timer_xl --root_path . --data_path two.csv --batch_size 8 "
             f"--test_pred_len {4 * PATCH} --quiet --spec_draft_ckpt given/timer_xl_draft/checkpoint.pth "
             "--use_speculative --spec_sigma 0.4 --spec_accept_bias 1 --spec_k 3 --spec_emit sample")
    assert sweep(f"{place} --out b.csv --sigma 0.4 --k 3 --emit sample --windows 89") == 0
    (row,) = pd.read_csv("b.csv", comment="#").iloc[2:].to_dict("records")
    experiment = Exp_Forecast(read_command_line(flags.split()))
    expected = experiment.test("timer_xl", experiment.tested_checkpoint(), Path("results"))
    assert expected["windows"] == 89 and 0 < row["accepted"] < row["attempted"]
    for name in ("mse", "mae", "acceptance_pct", "accepted", "attempted", "target_passes", "draft_passes", "seed"):
        assert row[name] == pytest.approx(expected[name], rel=1e-5), name


def test_folders_are_taken_for_their_checkpoints(place):
    for out, flags in (("a.csv", place), ("b.csv", place.replace("/checkpoint.pth", ""))):
        assert sweep(f"{flags} --out {out} --k 1 --sigma 0.2") == 0
    assert untimed("a.csv") == untimed("b.csv")


def test_further_flags_stand_in_the_table_as_they_were_given(place):
    assert sweep(f"{place} --out a.csv --draft_stochastic --spec_temp 2") == 0
    assert "# further_flags: --draft_stochastic True --spec_temp 2.0\n" in Path("a.csv").read_text()


def test_rows_do_not_depend_on_the_order_or_on_the_other_cells(place):
    assert sweep(f"{place} --emit sample --out all.csv") == 0
    for k in (3, 1):
        assert sweep(f"{place} --emit sample --out one_by_one.csv --k {k}") == 0
    assert untimed("all.csv") == untimed("one_by_one.csv")


def test_a_calibrated_sigma_is_not_multiplied_by_the_sigmas(place):
    lines = Path("two.csv").read_text().splitlines()
    Path("two.csv").write_text("\n".join(lines + 4 * lines[1:]) + "\n")  # a validation part that suffices
    flags = f"{place} --rule exact --emit sample --spec_sigma_mode calibrated --k 1,3 --out a.csv"
    assert sweep(flags.replace("--sigma 0.2,0.4 --bias 1 ", "")) == 0
    cells = rows_of("a.csv")[2:]
    assert [(row["rule"], row["sigma"], row["k"]) for row in cells] == [("exact", "", "1"), ("exact", "", "3")]
    # white noise of a fixed sigma draws other paths
    assert sweep(f"{place} --rule exact --emit sample --k 1,3 --out b.csv".replace(" --bias 1", "")) == 0
    assert not {row["mse"] for row in cells} & {row["mse"] for row in rows_of("b.csv")}


@pytest.mark.slow
def test_after_kill_9_the_same_command_does_the_missing_cells(place, monkeypatch):
    long = f"{place} --emit sample --sigma 0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8 --bias 1,2,4,8"
    child = subprocess.Popen([sys.executable, "-m", "scripts.sweeps.param_sweep", *long.split(), "--out", "killed.csv"],
                             env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (os.path.exists("killed.csv") and len(rows_of("killed.csv")) > 3) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = rows_of("killed.csv")
    measured, measure = [], Bench.measure
    monkeypatch.setattr(Bench, "measure", lambda bench, cell: measured.append(cell) or measure(bench, cell))
    assert sweep(f"{long} --out killed.csv") == 0
    assert 3 < len(kept) < 66 and len(measured) == 66 - len(kept)
    assert all(row in rows_of("killed.csv") for row in kept)
    assert sweep(f"{long} --out whole.csv") == 0
    assert untimed("killed.csv") == untimed("whole.csv")


def test_an_interrupted_sweep_keeps_its_rows_and_exits_130(place, monkeypatch, capsys):
    measured, measure = [], Bench.measure

    def until_the_third(bench, cell):
        measured.append(cell)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(bench, cell)
    monkeypatch.setattr(Bench, "measure", until_the_third)
    assert sweep(f"{place} --out a.csv") == 130
    assert "the same command continues" in capsys.readouterr().err
    assert [row["rule"] for row in rows_of("a.csv")] == [TARGET, DRAFT]


def another_draft():
    save = Path("given/timer_xl_draft/args.json")
    save.write_text(save.read_text().replace('"seq_len"', '"seen_len"'))


@pytest.mark.parametrize("flags, words, prepare", [
    ("--seed 7", ["seed 2021", "seed", "7", "--out"], None),
    ("--windows 21", ["windows 20 of", "21 of", "--out"], None),
    ("--horizon 16", ["horizon 32", "16", "--out"], None),
    ("--batch_size 4", ["batch_size 8", "4", "--out"], None),
    ("--spec_temp 2", ["further_flags none", "--spec_temp 2.0", "--out"], None),
    ("", ["draft_sha256"], another_draft),
    ("", ["not the table of a sweep"], lambda: Path("a.csv").write_text("a,b\n1,2\n")),
    ("", ["a row does not have 15 values"], lambda: Path("a.csv").write_text(Path("a.csv").read_text() + "1,2\n")),
])
def test_a_table_of_another_sweep_is_refused_and_left_as_it_is(place, capsys, flags, words, prepare):
    assert sweep(f"{place} --out a.csv --sigma 0.2 --k 1") == 0
    if prepare:
        prepare()
    content = Path("a.csv").read_text()
    capsys.readouterr()
    assert sweep(f"{place} --out a.csv --sigma 0.2 --k 1 {flags}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a.csv") and error.count("\n") == 1 and all(word in error for word in words)
    assert Path("a.csv").read_text() == content


@pytest.mark.parametrize("flags, words", [
    ("--sigma 0.1,wide", ["--sigma", "'wide' is not a number"]),
    ("--sigma 0", ["--sigma", "0 is out of range"]),
    ("--k 1,auto", ["--k", "'auto'"]),
    ("--rule fastest", ["--rule", "'fastest' is not one of", "tolerance"]),
    ("--target nowhere.pth", ["--target nowhere.pth does not exist", "scripts/quickstart.sh"]),
    ("--windows 5000", ["--windows 5000", "two.csv", "at most"]),
    ("--out table.txt", ["--out table.txt", ".csv"]),
    ("--out two.csv/a.csv", ["two.csv is a file", "--out"]),
    ("--spec_sigma 0.3", ["--spec_sigma is not a flag of a sweep"]),
    ("--test_pred 96", ["--test_pred_len is not a flag of a sweep"]),
    # its own names for what run.py calls otherwise
    ("--spec_sigma 0.3", ["write --sigma"]), ("--test_pred_len 96", ["write --horizon"]),
    ("--horizon 100000", ["--horizon", "two.csv"]), ("--pred_len 96", ["--pred_len: write --horizon"]),
    ("--sigm 0.3", ["--sigm: no such flag, did you mean --sigma?"]),
    ("--target given/timer_xl_draf", ["given/timer_xl_draf does not exist", "(there are: given/timer_xl_draft, "]),
    ("--visualize", ["--visualize is not a flag of a sweep"]),
    ("--dropout 0.2", ["--dropout is not a flag of a sweep"]),
    ("--rule exact --spec_repropose target", ["--spec_repropose target", "exact", "tolerance"]),
    ("--rule simplified,tolerance --spec_temp 2", ["--spec_temp", "tolerance"]),
    ("--spec_sigma_mode calibrated", ["--spec_sigma_mode calibrated", "simplified"]),
    ("--data_path nowhere.csv", ["nowhere.csv does not exist"]),
    ("--rule tolerance --bias 1 --sigma 1", ["does not apply to --rule tolerance"]),
])
def test_bad_input_is_one_line_and_nothing_written(place, capsys, flags, words):
    before = sorted(Path().rglob("*"))
    assert sweep(f"{place} {flags}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and all(word in error for word in words), error
    assert sorted(Path().rglob("*")) == before
