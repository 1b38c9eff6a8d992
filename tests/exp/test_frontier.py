"""scripts/benchmark/frontier.sh: rows and picture of a tiny pair, what is not measured again, bad input."""
import csv

import pytest
from exp_helpers import assert_picture

from scripts.benchmark import frontier


@pytest.fixture
def out(any_plan, place, monkeypatch):
    """The path of a table."""
    monkeypatch.setattr(frontier, "WINDOWS", 6)
    monkeypatch.setattr(frontier, "REPEATS", 1)
    return place / "frontier.csv"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_closeness_and_cost_of_every_rule(out, capsys):
    assert frontier.main(["--only", "etth1", "--horizons", "60", "--out", str(out)]) == 0, capsys.readouterr().err
    found = rows(out)
    assert {(row["data"], row["horizon"], row["windows"]) for row in found} == {("etth1", "60", "6")}
    target, draft = found[:2]
    assert (target["rule"], target["rms_from_target"], target["target_passes"]) == ("target alone", "0", "5")
    assert draft["rule"] == "draft alone" and draft["target_passes"] == "" and float(draft["rms_from_target"]) > 0
    for kind in ("mean", "path"):  # closer with every pass, and the target's own forecast, or path, in the end
        passes = [row for row in found if (row["kind"], row["rule"]) == (kind, "parareal, passes")]
        assert [float(row["target_passes"]) for row in passes] == [1, 2, 3, 4, 5]
        deviation = [float(row["rms_from_target"]) for row in passes]
        assert deviation == sorted(deviation, reverse=True) and deviation[0] > 1e-3 > 1e-5 > deviation[-1]
    own = next(row for row in found if (row["kind"], row["rule"]) == ("path", "target alone"))
    assert own["target_passes"] == "5" and float(own["mse"]) > float(target["mse"])
    coupling = [row for row in found if row["rule"].startswith("coupling")]
    assert len(coupling) == 2 and all(row["rms_from_target"] == "" and row["kind"] == "path" for row in coupling)
    assert_picture(out.with_suffix(".png"))


def test_what_is_there_is_not_measured_again(out, monkeypatch):
    flags = ["--only", "etth1,etth2", "--out", str(out), "--horizons"]
    assert frontier.main([*flags[:1], "etth1", *flags[2:], "24"]) == 0
    before, asked, real = rows(out), [], frontier.measure
    monkeypatch.setattr(frontier, "measure", lambda *of: asked.append(of) or real(*of))
    assert frontier.main([*flags, "24,36"]) == 0
    assert [(name, horizon) for name, _, horizon in asked] == [("etth1", 36), ("etth2", 24), ("etth2", 36)]
    assert rows(out)[:len(before)] == before and len(rows(out)) == 4 * len(before)


@pytest.mark.parametrize("flags, words", [
    ("--only nothing", "--only nothing: there are pool,"),
    ("--only electricity", "--only electricity: there are pool,"),
    ("--horizons long", "--horizons long"), ("--horizons 0", "--horizons 0"),
    ("--out table.txt", "table.txt must end in .csv")])
def test_bad_input_is_one_line(out, capsys, flags, words):
    assert frontier.main([*(["--out", str(out)] if "--out" not in flags else []), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not out.exists()
