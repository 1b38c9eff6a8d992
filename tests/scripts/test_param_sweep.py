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
from exp.sweep.bench import Bench
from exp.sweep.table import COLUMNS
from scripts.sweeps import param_sweep


def sweep(flags):
    return param_sweep.main(flags.split())


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


def test_the_width_of_a_calibrated_law_can_be_given(place):
    lines = Path("two.csv").read_text().splitlines()
    Path("two.csv").write_text("\n".join(lines + 4 * lines[1:]) + "\n")
    own = place.replace("--sigma 0.2,0.4 --bias 1", "")
    flags = f"{own} --rule exact --emit sample --spec_sigma_mode calibrated --k 3"
    found = {}
    for width in ("one", "mixture"):
        assert sweep(f"{flags} --bf16 --spec_width {width} --out {width}.csv") == 0
        found[width] = rows_of(f"{width}.csv")[2]["mse"]
    assert found["one"] != found["mixture"]


ALL_RULES = "--grid gap --tol 0.1,0.5 --k 1,all"  # besides what `place` sets


def measured_by(monkeypatch):
    """The cells that are measured from here on."""
    measured, measure = [], Bench.measure
    monkeypatch.setattr(Bench, "measure", lambda bench, cell: measured.append(cell) or measure(bench, cell))
    return measured


def noted(path, name="gap"):
    return [line for line in Path(path).read_text().splitlines() if line.startswith(f"# {name}: ")]


def without(flags, *names):
    words = flags.split()
    return " ".join(word for at, word in enumerate(words) if not {word, words[max(0, at - 1)]} & set(names))


def test_the_default_grid_measures_every_rule_around_the_gap_and_says_so(place, capsys, monkeypatch):
    default = without(place, "--grid", "--sigma", "--bias", "--k")
    assert sweep(f"{default} --out a.csv") == 0
    first, gap, *_ = capsys.readouterr().out.splitlines()
    assert first == "at most 66 cells and two references" and gap.startswith("gap: on ")
    assert noted("a.csv") == [f"# {gap}"]
    rows = rows_of("a.csv")
    assert {(row["rule"], row["emit"]) for row in rows[2:]} == {
        ("simplified", "mean"), ("simplified", "sample"), ("exact", "sample"), ("coupling", "sample"),
        ("tolerance", "mean"), ("parareal", "mean")}
    assert {row["k"] for row in rows[2:] if row["rule"] != "parareal"} == {"1", "3"}
    assert {row["bias"] for row in rows[2:]} == {"1", ""}
    tols = sorted({float(row["tol"]) for row in rows if row["tol"]})
    assert len(tols) == 6 and f"tol {','.join(f'{tol:g}' for tol in tols)};" in gap
    # it says something: neither all nor nothing
    accepted = [float(row["acceptance_pct"]) for row in rows if row["rule"] == "tolerance"]
    assert min(accepted) < 30 and max(accepted) > 80 and len(set(accepted)) > 4
    measured = measured_by(monkeypatch)  # the same command again: the same grid
    assert sweep(f"{default} --out a.csv") == 0 and not measured and rows_of("a.csv") == rows


def test_the_grid_depends_on_the_validation_part_alone(place):
    flags = f"{without(place, '--sigma')} {ALL_RULES} --rule simplified,tolerance --k 1"
    assert sweep(f"{flags} --out a.csv") == 0
    lines = Path("two.csv").read_text().splitlines()
    # 600 rows: 420 for training, then 60 for validation; models and scaling stay as they are
    for name, (start, stop), same in (("test.csv", (480, 600), True), ("val.csv", (430, 480), False)):
        changed = [f"{i % 5},{i % 7}" if start < i <= stop else line for i, line in enumerate(lines)]
        Path(name).write_text("\n".join(changed) + "\n")
        assert sweep(f"{flags} --data_path {name} --out of_{name}") == 0
        assert (noted(f"of_{name}") == noted("a.csv")) is same
        assert untimed(f"of_{name}") != untimed("a.csv")


def test_given_columns_replace_single_ones_of_the_measured_grid(place, capsys):
    assert sweep(f"{place} {ALL_RULES} --out a.csv") == 0
    assert "gap" not in capsys.readouterr().out and not noted("a.csv")  # nothing was left to measure
    rows = rows_of("a.csv")[2:]
    assert {row["tol"] for row in rows} == {"", "0.1", "0.5"} and {row["sigma"] for row in rows} == {"", "0.2", "0.4"}
    # longer lists, now with measured sigmas, continue the table; a fixed grid does too
    assert sweep(f"{without(place, '--sigma')} {ALL_RULES} --out a.csv") == 0
    (note,) = noted("a.csv")
    more = rows_of("a.csv")[2:]
    assert all(row in more for row in rows) and len({row["sigma"] for row in more}) > 3
    assert {row["tol"] for row in more} == {"", "0.1", "0.5"}
    assert sweep(f"{place} --out a.csv --bias 3") == 0
    assert noted("a.csv") == [note] and len(rows_of("a.csv")) == 2 + len(more) + 2 * 2


def test_a_table_with_another_gap_is_refused(place, capsys):
    flags = f"{without(place, '--sigma')} {ALL_RULES} --k 1"
    assert sweep(f"{flags} --out a.csv") == 0
    Path("a.csv").write_text(Path("a.csv").read_text().replace("# gap: on ", "# gap: off "))
    assert sweep(f"{flags} --out a.csv") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a.csv holds a sweep with gap off") and error.count("\n") == 1


def test_a_table_whose_lossless_rules_had_another_default_is_refused(place, capsys):
    for rule, code in (("coupling", 2), ("simplified", 0)):
        flags = f"{without(place, '--bias')} --rule {rule} --k 1 --out {rule}.csv"
        assert sweep(flags) == 0
        lines = Path(f"{rule}.csv").read_text().splitlines(keepends=True)
        Path(f"{rule}.csv").write_text("".join(line for line in lines if not line.startswith("# lossless_repropos")))
        capsys.readouterr()
        assert sweep(flags) == code
        assert ("lossless_reproposals not set" in capsys.readouterr().err) is (code == 2)


def test_a_larger_k_than_there_are_proposals_is_measured_once(place, capsys, monkeypatch):
    measured = measured_by(monkeypatch)
    assert sweep(f"{place} --sigma 0.2 --k 3,4,5,all --out a.csv") == 0
    assert [cell.k for cell in measured] == [None, None, 3] and len(rows_of("a.csv")) == 3
    assert "4 patches" in capsys.readouterr().out
    # a table of an earlier version, which has such rows, is continued
    row = Path("a.csv").read_text().splitlines()[-1]
    Path("a.csv").write_text(Path("a.csv").read_text() + row.replace(",3,simplified", ",5,simplified") + "\n")
    assert sweep(f"{place} --sigma 0.2 --k 1,5 --out a.csv") == 0
    assert [row["k"] for row in rows_of("a.csv")] == ["", "", "1", "3", "5"] and measured[3:] == [measured[2].__class__(
        "simplified", "mean", 0.2, 1.0, None, 1)]


def test_rules_that_a_flag_does_not_apply_to_are_left_out_with_a_note(place, capsys):
    assert sweep(f"{place} --grid gap --k 1 --spec_temp 2 --out a.csv") == 0
    assert "note: only --rule simplified,exact,coupling: " in capsys.readouterr().out
    assert {row["rule"] for row in rows_of("a.csv")[2:]} == {"simplified", "exact", "coupling"}
    assert sweep(f"{without(place, '--sigma', '--bias')} --grid gap --k 1 --spec_repropose target --out b.csv") == 0
    assert {row["rule"] for row in rows_of("b.csv")[2:]} == {"tolerance"}


def test_without_a_gap_there_is_no_grid_around_it(place, capsys):
    same = place.replace("--draft given/timer_xl_draft", "--draft given/timer_xl")
    flags = f"{without(same, '--sigma')} --spec_draft_model timer_xl --grid gap --rolling window"
    assert sweep(f"{flags} --out a.csv") == 2
    error = capsys.readouterr().err
    assert "predict the same on every validation window" in error and error.count("\n") == 1
    assert not Path("a.csv").exists()


def test_without_validation_windows_the_error_names_the_other_grid(place, capsys):
    lines = Path("two.csv").read_text().splitlines()
    Path("two.csv").write_text("\n".join(lines[:71]) + "\n")  # 7 rows of validation, a patch has 8
    short = f"{place} --horizon 12 --windows 2"
    assert sweep(f"{without(short, '--sigma')} --grid gap --out a.csv") == 2
    error = capsys.readouterr().err
    assert "val split" in error and "--grid published" in error and error.count("\n") == 1
    assert sweep(f"{short} --out a.csv") == 0


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
    ("--k 1,auto", ["--k", "'auto'"]), ("--grid fine", ["--grid", "published"]),
    ("--horizon 8", ["--horizon 8", "one patch (8 steps)", "above 8"]),
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
