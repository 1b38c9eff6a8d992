"""The tables of every data set: made of the csv, never typed; cells by hand."""
import pytest
from helpers import ROOT

from exp.evaluate.comparison import CSV_COLUMNS
from scripts.benchmark import bands, frontier
from scripts.results import documents, drafts, table
from scripts.results.documents import (
    BANDS_AT_EVERY_LEAD,
    BLOCKS,
    EMPTY,
    EVERY_DATA_SET,
    FRONTIER,
    GUIDE,
    LOSSLESS,
    POOL_DRAFTS,
    SUCCESS,
    readme_block,
    replaced,
    results_block,
)
from scripts.results.entries import BY_NAME, ENTRIES, label, windows_of
from scripts.results.measure import TABLE
from scripts.results.table import COLUMNS, Table, read_rows, read_table, rows_of
from utils.errors import UserError

USED = {"test_windows": "300", "target_sha256": "a1", "draft_sha256": "b2", "data_sha256": "c3"}
TARGET, DRAFT, NAIVE = "target alone (cached)", "draft alone", "seasonal-naive (24)"
TOLERANCE = "speculative tolerance 0.15"


def metrics(target=(0.4, 0.5), draft=(0.44, 0.55), tolerance=(0.401, 0.5005), use="speculation", kept=99.0):
    """What --compare leaves, for three methods; the tolerance is the best rule."""
    def row(method, errors, target_passes=None, draft_passes=None, speed=1.0, **more):
        return {"method": method, "mse": errors[0], "mae": errors[1], "mase": 2 * errors[1], "ms_batch_1": 12 / speed,
                "ms_batch_n": 3 / speed, "speedup_batch_1": speed, "speedup_batch_n": speed / 2, "batch_n": 64,
                "windows": 2100, "context": 672, "device": "AMD EPYC", "cores": 2, "threads": 2, "torch": "2.13.0",
                "target_passes": target_passes, "draft_passes": draft_passes} | more
    rows = [row(TARGET, target, 8.0, rms_in_windows=0.0), row(DRAFT, draft, None, 8.0, 6.0, rms_in_windows=0.2),
            row(NAIVE, (0.6, 0.6), speed=100.0),
            row(TOLERANCE, tolerance, 1.25, 9.0, 2.5, acceptance_pct=87.654321, kept_pct=kept, plan_batch_1=7,
                plan_batch_n=0)]
    best = {"method": TOLERANCE}
    recommended = {"speculation": TOLERANCE, "draft": DRAFT, "target": TARGET, "seasonal-naive": NAIVE}[use]
    return {"rows": rows, "decision": {"use": use, "method": recommended, "ways": {"speculation": best},
                                       "batch_sizes": [1] if use == "speculation" else []}}


def made(entry="etth1", data="ETTh1", seed=2021, horizon=720, used=USED, **changes):
    return rows_of({"entry": entry, "data": data, "seed": seed, "horizon": horizon}, used, metrics(**changes))


def cells(lines, *start):
    """Heading -> cell of the only row that starts so."""
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (found,) = [row for row in split if row[:len(start)] == list(start)]
    heading = [row for row in split[:split.index(found)] if len(row) == len(found) and "---" not in row]
    return dict(zip(next(row for row in reversed(heading) if row[0] in ("data", "horizon", "method")), found))


@pytest.mark.parametrize("name", BLOCKS)
def test_documents_hold_what_the_table_gives(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == replaced(text, BLOCKS[name](read_table(TABLE)), name, EVERY_DATA_SET), \
        f"{name} differs from docs/results/every_data_set.csv: run bash scripts/results.sh --table"


def test_the_drafts_of_the_pool_are_those_of_their_csv():
    text = (ROOT / SUCCESS).read_text(encoding="utf-8")
    assert text == replaced(text, drafts.lines_of(read_rows(drafts.TABLE, drafts.COLUMNS)), SUCCESS, POOL_DRAFTS), \
        "run bash scripts/distillation/pool_drafts.sh --table"


def test_entries_have_settings_files():
    for entry in ENTRIES:
        assert (ROOT / "scripts" / "settings" / f"{entry.settings}.sh").is_file()
    assert len(BY_NAME) == len(ENTRIES) == 8
    assert [entry.name for entry in ENTRIES if entry.seeds == 3] == ["etth1", "pool"]


def test_a_file_is_forecast_on_the_same_windows_alone_and_from_the_pool():
    assert windows_of(["ETTh1.csv"]) == windows_of(["ETT-small/ETTh1.csv"]) == 300
    assert windows_of(["weather/weather.csv"]) == 100
    assert windows_of(["ETT-small/ETTh1.csv", "weather/weather.csv"]) is None  # as the settings say
    assert label(["ETT-small/ETTh1.csv", "weather/weather.csv"]) == "ETTh1 weather"


def test_columns_are_those_of_a_comparison():
    assert set(table.MEASURED + table.OF_RUN) <= set(CSV_COLUMNS)


def test_a_summary_by_hand():
    found = cells(results_block(made()), "ETTh1", "720")
    assert found == {
        "data": "ETTh1", "horizon": "720", "target MSE / MAE": "0.4000 / 0.5000", "draft MSE / MAE": "0.4400 / 0.5500",
        "draft as good": "no", "best rule": "tolerance 0.15", "its MSE / MAE": "0.4010 / 0.5005",
        "its target passes": "1.25 of 8", "kept %": "99.0", "speed-up, batch 1": "2.50", "batch 64": "1.25",
        "recommended": "tolerance 0.15, batch 1"}


def test_all_methods_by_hand():
    lines = results_block(made())
    assert sum(line.startswith("<details>") for line in lines) == sum(line == "</details>" for line in lines) == 1
    found = cells(lines, "720", "tolerance 0.15")
    assert found["MASE"] == "1.0010" and found["accepted %"] == "87.7" and found["target passes"] == "1.25 of 8"
    assert found["ms, batch 1"] == "4.80" and found["ms, batch 64"] == "1.20" and found["planner's K, batch 1"] == "7"
    assert found["batch 64"] == "0"  # the planner's K there
    naive = cells(lines, "720", NAIVE)
    assert naive["target passes"] == naive["accepted %"] == naive["speed-up"] == "-"
    assert naive["ms, batch 64"] == "0.030"


def test_seeds_are_shown_as_mean_and_range():
    rows = [row for seed, mse in ((2021, 0.40), (2022, 0.41), (2023, 0.45))
            for row in made(seed=seed, target=(mse, 0.5), kept=None if seed == 2022 else 90 + seed - 2021)]
    found = cells(results_block(rows), "720", TARGET)
    assert found["MSE"] == "0.4200 (0.4000 to 0.4500)" and found["MAE"] == "0.5000"
    assert cells(results_block(rows), "720", "tolerance 0.15")["kept %"] == "91.0 (90.0 to 92.0)"
    assert any("(seeds: 2021, 2022, 2023)" in line for line in results_block(rows))


def test_the_draft_is_as_good_within_half_a_per_cent_of_both_errors():
    def said(draft):
        return cells(results_block(made(target=(0.4, 0.5), draft=draft)), "ETTh1", "720")["draft as good"]
    assert said((0.4019, 0.5024)) == said((0.3, 0.4)) == "yes"
    assert said((0.4021, 0.4)) == said((0.3, 0.5026)) == "no"


def test_seeds_that_disagree_are_counted():
    rows = [*made(seed=2021, use="draft", draft=(0.4, 0.5)), *made(seed=2022), *made(seed=2023, use="draft")]
    found = cells(results_block(rows), "ETTh1", "720")
    assert found["recommended"] == "draft alone (2 of 3 seeds), tolerance 0.15, batch 1 (1 of 3 seeds)"
    assert found["draft as good"] == "no (2 of 3 seeds), yes (1 of 3 seeds)"


@pytest.mark.parametrize("use, words", [("target", "target alone"),
                                        ("seasonal-naive", "no model: seasonal-naive (24)")])
def test_recommendations_in_words(use, words):
    assert cells(results_block(made(use=use)), "ETTh1", "720")["recommended"] == words


def test_targets_of_one_file_and_of_the_pool_stand_side_by_side():
    rows = [*made("etth2", "ETTh2", target=(0.40, 0.5)), *made("pool_files", "ETTh2", target=(0.41, 0.51)),
            *made("zeroshot", "ETTh2", target=(0.42, 0.52)), *made("etth1", target=(0.3, 0.4)),
            *made("pool_files", "ETTh1", target=(0.31, 0.41)), *made("etth1", horizon=96)]
    lines = documents.of_the_pool(documents.comparisons_of(rows))
    assert lines[-4:-1] == ["| --- | --- | --- | --- | --- |",
                            "| ETTh1 | 720 | 0.3000 / 0.4000 | 0.3100 / 0.4100 | - |",
                            "| ETTh2 | 720 | 0.4000 / 0.5000 | 0.4100 / 0.5100 | 0.4200 / 0.5200 |"]
    assert not documents.of_the_pool(documents.comparisons_of(made()))
    titles = [line.split(":")[0] for line in results_block(rows) if "<summary>" in line]
    assert titles == [f"<details><summary>{title}" for title in ("ETTh1", "ETTh2", "pool's pair on ETTh1",
                                                                 "pool's pair on ETTh2", "zero-shot on ETTh2")]


def test_the_front_page_has_the_pool_and_the_last_horizon():
    pool = made("pool", "ETTh1 weather", used=USED | {"test_windows": "40"})
    lines = readme_block([*made(horizon=96, target=(0.1, 0.1)), *made(), *pool])
    assert "One pair for 2 files, H = 720:" in lines
    assert any(line.startswith("MAE at H = 720, with the target passes") for line in lines)
    assert cells(lines, "tolerance 0.15")["target passes"] == "1.25 of 8"
    assert cells(lines, "ETTh1") == {
        "data": "ETTh1", "target": "0.5000", "draft": "0.5500", "tolerance": "0.5005", "its passes": "1.25 of 8",
        "its RMS": cells(lines, "tolerance 0.15")["RMS in windows"], "parareal": "-", "parareal's passes": "-",
        "parareal's RMS": "-", "recommended": "tolerance 0.15, batch 1"}
    assert not any("0.1000" in line for line in lines)
    assert "300 (ETTh1), 40 (the pool)" in " ".join(lines) and "AMD EPYC, cores: 2, threads: 2" in " ".join(lines)


def test_without_rows_a_line_says_what_fills_the_section():
    assert results_block([]) == readme_block([]) == [EMPTY] and "`bash scripts/results.sh`" in EMPTY


def test_what_stands_outside_of_the_comments_stays():
    marks = documents.Marks("things", "make things", "things.csv")
    begin, end = "<!-- things: made by `make things` from things.csv -->", "<!-- the end of things -->"
    text = f"before\n{begin}\nold\n| 1 |\n{end}\nafter\n"
    assert replaced(text, ["new"], "a.md", marks) == f"before\n{begin}\nnew\n{end}\nafter\n"
    for damaged in ("before", f"{begin}\n", f"{end}\n{begin}\n", f"{text}{begin}", f"{text}{end}"):
        with pytest.raises(UserError, match="a.md needs the lines"):
            replaced(damaged, ["new"], "a.md", marks)


def test_rows_of_a_comparison_take_the_place_of_their_former_ones(tmp_path):
    kept = Table(tmp_path / "t.csv")
    kept.put(made("pool", "ETTh1 weather"))
    kept.put(made(horizon=96))
    kept.put(made(seed=2022, target=(0.9, 0.9)))
    kept.put(made(seed=2022))
    read = Table(tmp_path / "t.csv")
    assert read.rows == kept.rows == [*made(horizon=96), *made(seed=2022), *made("pool", "ETTh1 weather")]
    assert list(read.rows[0]) == COLUMNS and not list(tmp_path.glob(".*"))


def test_a_comparison_is_known_by_its_files_and_windows(tmp_path):
    kept, of = Table(tmp_path / "t.csv"), {"entry": "etth1", "data": "ETTh1", "seed": 2021, "horizon": 720}
    assert not kept.has(of, USED)
    kept.put(made())
    assert kept.has(of, USED) and not kept.has(of | {"horizon": 96}, USED)
    for name in USED:
        assert not kept.has(of, USED | {name: "other"})


@pytest.mark.parametrize("spoil, words", [
    (lambda text: text.replace("mase", "maze"), "other columns"),
    (lambda text: text.replace("0.401", "nan"), "row 4: mse is 'nan'"),
    (lambda text: text.replace("etth1", "etth9", 1), "row 1: no entry is called 'etth9'"),
    (lambda text: text.replace("speculation", "", 1), "row 1: it has no use"),
    (lambda text: text[:-60], "row 4: it does not have 40 values"),
])
def test_a_damaged_table_is_refused_in_a_line(tmp_path, spoil, words):
    Table(tmp_path / "t.csv").put(made())
    (tmp_path / "t.csv").write_text(spoil((tmp_path / "t.csv").read_text()))
    with pytest.raises(UserError, match=words) as refused:
        read_table(tmp_path / "t.csv")
    assert "move it away" in str(refused.value)


def test_the_frontiers_tables_are_those_of_their_csv():
    text, rows = (ROOT / SUCCESS).read_text(encoding="utf-8"), read_rows(frontier.TABLE, frontier.COLUMNS)
    for marks, lines in ((FRONTIER, frontier.parareal_lines(rows)), (LOSSLESS, frontier.coupling_lines(rows))):
        assert text == replaced(text, lines, SUCCESS, marks), "run bash scripts/benchmark/frontier.sh"


def test_the_table_of_bands_is_that_of_its_csv():
    text, rows = (ROOT / GUIDE).read_text(encoding="utf-8"), read_rows(bands.TABLE, bands.COLUMNS)
    assert text == replaced(text, bands.table_lines(rows), GUIDE, BANDS_AT_EVERY_LEAD), "run scripts/benchmark/bands.sh"
