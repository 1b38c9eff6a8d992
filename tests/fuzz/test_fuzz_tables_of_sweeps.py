"""Tables of sweeps: continued and analysed, or one line and left as they are."""
import pytest
from fuzz.damage import damaged
from fuzz.endings import CASES, USUAL, ends_well, share
from hypothesis import given
from hypothesis import strategies as st

from exp.report.results import DRAFT, TARGET
from exp.sweep.table import COLUMNS, SweepTable
from scripts.sweeps import analyze_sweep_results as analysis

SETTINGS = {"target": "t", "draft": "d", "data": "x.csv", "horizon": 36, "windows": "9 of 10", "batch_size": 64,
            "device": "none", "threads": 2, "seed": 1}
MEASURED = {"mse": 0.5, "mae": 0.5, "ms_per_forecast": 10.0, "seed": 1}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "t.csv"
    made = SweepTable(path, SETTINGS)
    made.add({"rule": TARGET}, MEASURED)
    made.add({"rule": DRAFT}, MEASURED)
    for k in (1, 3):
        made.add({"rule": "simplified", "emit": "mean", "sigma": 0.5, "bias": 1.0, "k": k},
                 MEASURED | {"acceptance_pct": 30.0 * k, "accepted": 3, "attempted": 9})
    return path


def check(path, content):
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        read = ends_well(lambda: analysis.load_sweep(path))
        if read is not None:
            analysis.report(*read)
            if CASES > USUAL and path.read_bytes()[-1] % 4 == 0:  # pictures take long
                analysis.draw(path.parent / "pictures", *read)
        assert path.read_bytes() == content
        continued = ends_well(lambda: SweepTable(path, SETTINGS))
        if continued is not None:
            continued.add({"rule": "tolerance", "emit": "mean", "tol": 0.1, "k": 1},
                          MEASURED | {"acceptance_pct": 1.0})
            assert ends_well(lambda: SweepTable(path, SETTINGS)) is not None  # what it wrote, it can read
        else:
            assert path.read_bytes() == content
    finally:
        path.write_bytes(before)


@share(4)
@given(st.data())
def test_damaged_bytes(table, data):
    check(table, data.draw(damaged(table.read_bytes())))


@share(4)
@given(st.data())
def test_other_cells_and_notes(table, data):
    lines = table.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if not line.startswith("#")) + 1
    for _ in range(data.draw(st.integers(1, 2))):
        row = data.draw(st.integers(start, len(lines) - 1))
        cells = lines[row].split(",")
        cells[data.draw(st.integers(0, len(COLUMNS) - 1))] = data.draw(st.sampled_from(
            ["", "nan", "inf", "-1", "1e400", "x", "0", "1_0", '"', "exact", TARGET, " 1", "١", "-0", "7"]))
        lines[row] = ",".join(cells)
    for _ in range(data.draw(st.integers(0, 2))):
        note = data.draw(st.integers(0, start - 2))
        lines[note] = data.draw(st.sampled_from([lines[note][:5], "#", "# :", "# windows", lines[note] + ":", "# \t"]))
    if data.draw(st.booleans()):
        lines.pop(data.draw(st.integers(0, len(lines) - 1)))
    check(table, ("\n".join(lines) + "\n").encode())
