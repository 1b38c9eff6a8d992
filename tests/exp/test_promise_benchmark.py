"""scripts/benchmark/promise.sh: audits of a tiny pair, what is measured once, bad input, the table of the guide."""
import csv

import pytest
import torch
from helpers import ROOT

from exp.evaluate.ladders import Step
from scripts.benchmark import promise
from scripts.results.documents import GUIDE, PROMISE, replaced
from scripts.results.table import read_rows


@pytest.fixture
def out(any_plan, place, monkeypatch):
    """The path of a table; the pair of the laboratory stands for every one."""
    monkeypatch.setattr(promise, "HORIZON", 36)
    monkeypatch.setattr(promise, "AUDITS", 50)
    monkeypatch.setattr(promise, "BUDGETS", (0.05, 0.3))
    return place / "promise.csv"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_audits_of_every_rule_and_budget(out, capsys, monkeypatch):
    assert promise.main(["--only", "etth1", "--out", str(out)]) == 0, capsys.readouterr().err
    found = rows(out)
    assert [(row["rule"], row["rms"]) for row in found] == [
        (rule, rms) for rule in ("parareal", "tolerance") for rms in ("0.05", "0.3")]
    for row in found:
        assert (row["windows"], row["patches"], row["audits"]) == ("85", "3", "50")
        assert float(row["broken_pct"]) <= 30 and 0 <= float(row["best_passes"]) <= 3
        assert float(row["best_passes"]) <= float(row["passes_chosen"]) <= 3
        assert float(row["passes_with_audit"]) >= float(row["passes_chosen"])
    before = found
    monkeypatch.setattr(promise, "measure", None)
    assert promise.main(["--only", "etth1", "--out", str(out)]) == 0 and rows(out) == before


def test_the_audits_are_counted_as_they_are():
    """One ladder; its second step fails in 30 of 200 windows, more than a tenth, its first in none."""
    fails = (torch.arange(200) < 30).double()
    steps = [Step("safe", None, torch.zeros(200), torch.full((200,), 3.0), 3.0, {}),
             Step("loose", None, fails, 1 + fails, 1.15, {})]
    found = promise.audits([steps], 0.5, 5)
    assert found["best"] == "safe" and found["best_passes"] == 3 and found["alone_pct"] == 0
    assert 0 < found["broken_pct"] < 5 and found["audited"] == 26
    assert found["passes_chosen"] == pytest.approx(3 - found["broken_pct"] / 100 * 1.85, abs=0.02)
    # the audited take the passes of the target, and of both steps
    audit = 26 / 200 * (5 + 3 + 1.15)
    assert found["passes_with_audit"] == pytest.approx(audit + 174 / 200 * found["passes_chosen"], abs=0.02)


@pytest.mark.parametrize("flags, words", [
    ("--only nothing", "--only nothing: there are etth1, ettm1, pool"),
    ("--only weather", "--only weather: there are etth1, ettm1, pool"),
    ("--out table.txt", "table.txt must end in .csv")])
def test_bad_input_is_one_line(place, capsys, flags, words):
    assert promise.main([*(["--out", "t.csv"] if "--out" not in flags else []), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(place.iterdir())


def test_the_guides_table_is_that_of_its_csv():
    text, found = (ROOT / GUIDE).read_text(encoding="utf-8"), read_rows(promise.TABLE, promise.COLUMNS)
    assert {row["data"] for row in found} == set(promise.PAIRS)
    assert text == replaced(text, promise.lines_of(found), GUIDE, PROMISE), "run bash scripts/benchmark/promise.sh"
    assert all(float(row["broken_pct"]) <= float(row["level_pct"]) for row in found)
