"""scripts/benchmark/bands.sh: rows of a tiny target, what is not measured again, its table, bad input."""
import csv

import pytest

from scripts.benchmark import bands


@pytest.fixture
def out(any_plan, place):
    """The path of a table."""
    return place / "bands.csv"


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_bands_of_every_width_and_growth(out, capsys):
    assert bands.main(["--only", "etth1", "--horizon", "30", "--out", str(out)]) == 0, capsys.readouterr().err
    found = rows(out)
    laws = [(width, growth) for width in ("one", "mixture") for growth in ("none", "rollouts")]
    assert list(dict.fromkeys((row["width"], row["growth"]) for row in found)) == laws
    assert {row["growth"] for row in found if row["default"] == "1"} == {"rollouts"}
    for law in laws:
        own = [row for row in found if (row["width"], row["growth"]) == law]
        assert [(row["part"], row["patch"]) for row in own] == [
            *(("validation", patch) for patch in ("1", "2", "3", "newer")),
            *(("test", patch) for patch in ("1", "2", "3", "all"))]
        assert all(float(row["crps"]) > 0 for row in own if row["patch"] in ("newer", "all") or row["part"] == "test")
        shares = [[float(row[f"coverage_{band}"]) for band in (50, 80, 95)] for row in own if row["patch"] != "newer"]
        assert all(0 <= low <= middle <= high <= 100 for low, middle, high in shares)
        assert law[1] == "rollouts" or all(row["factor"] in ("1", "") for row in own)
    lines = bands.table_lines(found)
    assert len(lines) == 2 + 4 and lines[2].startswith("| etth1, 30 | one | none | ")
    worst = max(abs(float(row["coverage_50"]) - 50) for row in found[:3])
    assert lines[2].split(" | ")[3].split(" / ")[0] == f"{worst:.1f}"


def test_what_is_there_is_not_measured_again(out, monkeypatch):
    asked = []
    monkeypatch.setattr(bands, "measure", lambda *of: asked.append(of[0]) or [
        dict.fromkeys(bands.COLUMNS, "") | {"data": of[0], "horizon": str(of[2])}])
    for only in ("ettm1", "etth1,ettm1"):
        assert bands.main(["--only", only, "--out", str(out)]) == 0
    assert asked == ["ettm1", "etth1"] and [row["data"] for row in rows(out)] == ["etth1", "ettm1"]


@pytest.mark.parametrize("flags, words", [
    ("--only nothing", "--only nothing: there is no such entry"),
    ("--only electricity", "--only electricity: there are bands of"),
    ("--horizon 0", "--horizon 0"), ("--out table.txt", "table.txt must end in .csv")])
def test_bad_input_is_one_line(out, capsys, flags, words):
    assert bands.main([*(["--out", str(out)] if "--out" not in flags else []), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not out.exists()
