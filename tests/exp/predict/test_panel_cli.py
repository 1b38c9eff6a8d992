"""Panels on the command line: files in and out, what is listed beside them, and runs that are ended and go on."""
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exp_helpers import assert_picture, keep, keep_pair
from helpers import PATCH, ROOT, tiny_target

import run
from exp.panels import PanelSettings
from exp.predict import Forecaster
from exp.predict.panel import PanelForecaster
from exp.predict.panel_parts import Parts, csv_text

CONTEXT, HORIZON = 5 * PATCH, 20
FOLDER = Path(f"test_results/uni_pl{HORIZON}_predict_mine")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keep_pair("checkpoints/uni", tiny_target(norm_mode="causal", norm_window=5), data="UnivariateDatasetBenchmark")
    keep("checkpoints/together", tiny_target())
    return tmp_path


def ragged(count=12, seed=0):
    """Series of 8 to 80 rows, in hours, days or months; some have holes, some are too short or constant."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(count):
        rows, frequency = int(rng.integers(8, 80)), ("h", "D", "MS")[i % 3]
        y = rng.normal(size=rows).cumsum() + 5 * np.sin(np.arange(rows))
        part = pd.DataFrame({"unique_id": f"s{i:03d}, \"{i}\"", "ds": pd.date_range("2001-01-01", periods=rows,
                                                                                   freq=frequency), "y": y.round(4)})
        if i % 4 == 1:
            part = part.drop(index=part.index[2:4])
        elif i % 4 == 2:
            part.loc[part.index[3:5], "y"] = np.nan
        elif i % 8 == 3:
            part["y"] = 1.5
        parts.append(part.head(3) if i % 8 == 7 else part)
    return pd.concat(parts, ignore_index=True)


FILLED = "--missing interpolate --on_bad skip"


def predict(flags="", data="mine.csv", name="uni"):
    return run.main(f"--quiet --do_predict --root_path . --data_path {data} --test_dir {name} "
                    f"--test_pred_len {HORIZON} --pictures 0 {flags}".split())


def in_python(frame, **how):
    return Forecaster.load("checkpoints/uni", quiet=True, **how).predict(
        frame, HORIZON, panel=PanelSettings(missing="interpolate", on_bad="skip"))


def write(frame, kind):
    if kind == ".parquet":
        pytest.importorskip("pyarrow")
        frame.to_parquet(f"mine{kind}", index=False)
    else:
        frame.to_csv(f"mine{kind}", index=False)
    return f"mine{kind}"


@pytest.mark.parametrize("kind", [".csv", ".csv.gz", ".parquet"])
def test_a_file_is_forecast_as_its_frame_is(place, kind):
    data = write(ragged(), kind)
    assert predict(FILLED, data) == 0
    folder = next(Path("test_results").iterdir())
    wanted = in_python(ragged())
    if kind == ".parquet":
        got = pd.read_parquet(folder / "forecast.parquet")
        assert list(got.dtypes) == list(pd.read_parquet(data)[["unique_id", "ds", "y"]].dtypes)
    else:
        got = pd.read_csv(folder / "forecast.csv", parse_dates=["ds"])
    pd.testing.assert_frame_equal(got, wanted, rtol=1e-8, check_dtype=False)
    skipped = pd.read_csv(folder / "skipped.csv")
    assert dict(zip(skipped.unique_id, skipped.reason)) == wanted.attrs["skipped"] and len(skipped) >= 2
    short = pd.read_csv(folder / "short.csv")
    assert set(short.unique_id) < set(got.unique_id) and (short.context % PATCH == 0).all()
    assert short.context.max() < CONTEXT and not list(folder.glob("parts*"))


@pytest.mark.parametrize("name, wanted", [("f.csv", "csv"), ("deep/er/f.parquet", "parquet"),
                                          ("with space.csv", "csv")])
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_the_ending_of_out_says_what_is_written(place, kind, name, wanted):
    pytest.importorskip("pyarrow")
    data = write(ragged(), kind)
    flags = f"--quiet --do_predict --root_path . --data_path {data} --test_dir uni --test_pred_len {HORIZON} {FILLED}"
    assert run.main([*flags.split(), "--pictures", "0", "--out", name]) == 0
    got = pd.read_csv(name, parse_dates=["ds"]) if wanted == "csv" else pd.read_parquet(name)
    pd.testing.assert_frame_equal(got, in_python(ragged()), rtol=1e-8, check_dtype=False)
    assert not list(FOLDER.parent.glob("*/forecast.csv"))


def test_another_kind_of_out_is_refused(place, capsys):
    write(ragged(), ".csv")
    assert predict("--out f.xlsx") == 2
    assert "--out f.xlsx: unknown kind of file: end its name with .csv or .parquet" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine.csv", "./link.csv", "folder.csv"])
def test_the_table_itself_and_folders_are_refused_as_out(place, capsys, name):
    write(ragged(), ".csv")
    before = Path("mine.csv").read_bytes()
    Path("link.csv").symlink_to("mine.csv")
    Path("folder.csv").mkdir()
    assert predict(f"{FILLED} --out {name}") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: --out") and "name " in said
    assert Path("mine.csv").read_bytes() == before and not list(Path("folder.csv").iterdir())


def test_a_compressed_file_that_is_no_long_table_is_refused(place, capsys):
    with gzip.open("mine.csv.gz", "wt") as text:
        text.write("date,a\n2020-01-01,1\n")
    assert predict(data="mine.csv.gz") == 2
    assert "read as a long table only, by --do_predict" in capsys.readouterr().err


def test_text_stays_as_it_was_written(place):
    """Ids that look like numbers, and times with a T and a zone."""
    times = pd.date_range("2024-03-30", periods=50, freq="h", tz="UTC").strftime("%Y-%m-%dT%H:%M:%SZ")
    table = pd.DataFrame({"item_id": "007", "timestamp": times, "target": np.sin(np.arange(50.0)), "price": 1.0})
    table.to_csv("mine.csv", index=False)
    assert predict() == 0
    lines = (FOLDER / "forecast.csv").read_text().splitlines()
    assert lines[0] == "item_id,timestamp,mean" and lines[1].startswith("007,2024-04-01T02:00:00Z,")
    notes = json.loads((FOLDER / "forecast.json").read_text())["notes"]
    assert "left out: 'price' (of a long table only item_id, timestamp, target are used)" in notes


def test_columns_are_named_by_flags(place):
    ragged().set_axis(["shop", "when", "sold"], axis=1).to_csv("mine.csv", index=False)
    assert predict(f"{FILLED} --id_col shop --time_col when --target_col sold") == 0
    folder = next(Path("test_results").iterdir())
    assert (folder / "forecast.csv").read_text().startswith("shop,when,mean\n")


@pytest.mark.parametrize("flags, words", [
    ("", ["series have", "missing values", "--missing interpolate"]),
    ("--missing last", ["series cannot be forecast", "is constant", "--on_bad skip"]),
    ("--id_col shop", ["no column 'shop' for --id_col"])])
def test_a_table_that_cannot_be_forecast_leaves_nothing(place, capsys, flags, words):
    write(ragged(), ".csv")
    assert predict(flags) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not [word for word in words if word not in said], said
    assert not Path("test_results").exists()


@pytest.mark.parametrize("flags", ["--missing last", "--on_bad skip", "--out x.csv", "--id_col unique_id", "--resume",
                                   "--backtest 2"])
def test_flags_of_a_panel_are_refused_for_every_other_forecast(place, capsys, flags):
    pd.DataFrame({"a": np.sin(np.arange(60.0)), "b": np.cos(np.arange(60.0))}).to_csv("mine.csv", index=False)
    assert predict(flags) == 2
    assert "no column" in (said := capsys.readouterr().err) or f"{flags.split()[0]} is for long tables" in said
    write(ragged(), ".csv")
    assert predict(flags, name="together") == 2
    said = capsys.readouterr().err
    assert f"{flags.split()[0]} is for long tables whose series are forecast each by itself, but the target " in said
    assert "forecasts all series together (--data UnivariateDatasetBenchmark" in said
    assert run.main(f"--quiet --is_training 0 --test_dir uni {flags}".split()) == 2
    assert "has no effect without" in capsys.readouterr().err


def test_the_provenance_tells_what_was_done(place):
    write(ragged(), ".csv")
    assert predict(f"{FILLED} --spec_draft_ckpt checkpoints/uni_draft/checkpoint.pth --spec_tol 0.3") == 0
    record = json.loads(next(Path("test_results").glob("*/forecast.json")).read_text())
    counts = record["counts"]
    assert (counts["series"], counts["forecast"], counts["windows"]) == (12, 9, 9)
    assert counts["filled"] == 6 and counts["cells"] == 12 and record["settings"]["missing"] == "interpolate"
    assert 1 <= record["cost"]["target_passes"] <= 3 and record["cost"]["accepted"] <= record["cost"]["judged"]
    assert set(record["frequencies"]) == {"h", "D", "1 month"} and sum(record["frequencies"].values()) == 9
    assert record["settings"]["spec_tol"] == 0.3


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_a_table_of_which_nothing_is_left_has_a_header_and_a_list(place, capsys, kind):
    write(ragged(2).assign(y=1.5), kind)
    assert predict("--missing last --on_bad skip", f"mine{kind}") == 0
    assert capsys.readouterr().out.rstrip().endswith(f"forecast{kind}: 0 of 2 series, {HORIZON} steps")
    table = pd.read_csv(FOLDER / "forecast.csv") if kind == ".csv" else pd.read_parquet(FOLDER / "forecast.parquet")
    assert list(table.columns) == ["unique_id", "ds", "mean"] and not len(table)
    assert len(pd.read_csv(FOLDER / "skipped.csv")) == 2


def test_pictures_are_of_the_first_series_that_are_forecast(place):
    write(ragged(), ".csv")
    assert run.main(f"--quiet --do_predict --root_path . --data_path mine.csv --test_dir uni --test_pred_len {HORIZON} "
                    f"--pictures 3 {FILLED} --num_samples 20 --spec_sigma 0.3".split()) == 0
    folder = next(Path("test_results").iterdir())
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == ["forecast_000_s000_0.png", "forecast_001_s001_1.png", "forecast_002_s002_2.png"]
    for name in names:
        assert_picture(folder / name)


# --- runs that are ended

def small_blocks(monkeypatch, rows=60):
    monkeypatch.setattr("data_provider.panel.BLOCK", rows)


def end_at(monkeypatch, part, error=KeyboardInterrupt):
    """Ends the next run when it forecasts part number `part`."""
    real = PanelForecaster.forecast

    def broken(self, prepared, number):
        if number == part:
            raise error
        return real(self, prepared, number)
    monkeypatch.setattr(PanelForecaster, "forecast", broken)


HOW = {"plain": "", "paths": "--num_samples 20 --spec_sigma 0.3",
       "exact": "--spec_draft_ckpt checkpoints/uni_draft/checkpoint.pth --spec_accept_rule exact --spec_sigma 0.4",
       "parareal": "--spec_draft_ckpt checkpoints/uni_draft/checkpoint.pth --spec_accept_rule parareal",
       "planned": "--spec_draft_ckpt checkpoints/uni_draft/checkpoint.pth --spec_k auto"}


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("how", HOW)
def test_a_run_that_goes_on_gives_the_same_as_one_that_was_not_ended(place, monkeypatch, capsys, how, scattered):
    small_blocks(monkeypatch)
    table = ragged(20)
    write(table.sample(frac=1, random_state=0) if scattered else table, ".csv")
    flags = f"{FILLED} {HOW[how]}"
    with monkeypatch.context() as patch:
        end_at(patch, 4)
        assert predict(flags) == 130
    folder = next(Path("test_results").iterdir())
    said = capsys.readouterr()
    assert "4 finished parts are kept: --resume goes on from them" in said.out
    assert len(list((folder / "parts").glob("0*.json"))) == 4 and not (folder / "forecast.csv").exists()
    before = [path.stat().st_mtime_ns for path in sorted((folder / "parts").glob("0*.csv"))]
    done = []
    real = PanelForecaster.forecast
    with monkeypatch.context() as patch:
        patch.setattr(PanelForecaster, "forecast", lambda self, part, number: done.append(number)
                      or real(self, part, number))
        patch.setattr(Parts, "clear", lambda self: None)
        patch.setattr("exp.evaluate.methods.make_plan", None)  # K is not chosen again
        assert predict(f"{flags} --resume") == 0
    assert done[0] == 4 and len(done) >= 5
    assert [path.stat().st_mtime_ns for path in sorted((folder / "parts").glob("0*.csv"))][:4] == before
    resumed = (folder / "forecast.csv").read_bytes()
    lists = [(folder / name).read_bytes() for name in ("skipped.csv", "short.csv")]
    counts = json.loads((folder / "forecast.json").read_text())
    if how != "planned":  # K might be chosen in another way
        assert predict(flags) == 0
        assert (folder / "forecast.csv").read_bytes() == resumed
        assert [(folder / name).read_bytes() for name in ("skipped.csv", "short.csv")] == lists
        again = json.loads((folder / "forecast.json").read_text())
        assert again["counts"] == counts["counts"] and again["cost"] == counts["cost"]
    else:
        plans = [json.loads(path.read_text())["plan"] for path in (folder / "parts").glob("0*.json")]
        assert all(plan == plans[0] for plan in plans)


def test_other_settings_or_another_table_start_at_the_beginning(place, monkeypatch):
    small_blocks(monkeypatch)
    write(ragged(20), ".csv")
    with monkeypatch.context() as patch:
        end_at(patch, 4)
        assert predict(FILLED) == 130
    done = []
    real = PanelForecaster.forecast
    monkeypatch.setattr(PanelForecaster, "forecast", lambda self, part, number: done.append(number)
                        or real(self, part, number))
    assert predict("--missing last --on_bad skip --resume") == 0 and done[0] == 0
    done.clear()
    write(ragged(20, seed=1), ".csv")
    assert predict(f"{FILLED} --resume") == 0 and done[0] == 0


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(place):
    """SIGKILL in the middle: what was finished is kept, what was half written is not used."""
    write(ragged(400), ".csv")
    code = ("import sys, data_provider.panel as panel\npanel.BLOCK = 300\nimport run, torch\ntorch.set_num_threads(1)\n"
            "sys.exit(run.main(sys.argv[1:]))")
    command = [sys.executable, "-c", code, *f"--quiet --do_predict --root_path . --data_path mine.csv --test_dir uni "
               f"--test_pred_len {HORIZON} --pictures 0 {FILLED}".split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(Path("test_results").glob("*/parts/0*.json"))) < 5:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = next(Path("test_results").iterdir())
    assert (folder / "parts").exists() and not (folder / "forecast.csv").exists()
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=True)
    assert " parts of this table are finished" in done.stdout
    resumed = (folder / "forecast.csv").read_bytes()
    subprocess.run(command, env=environment, capture_output=True, check=True)
    assert (folder / "forecast.csv").read_bytes() == resumed


# --- parts

def test_a_part_counts_once_its_record_is_there(tmp_path):
    frame = pd.DataFrame({"id": ["a"], "ds": ["1"], "mean": [1.0]})
    parts = Parts(tmp_path, "csv", {"x": 1}, resume=False)
    for number in range(3):
        parts.write(number, frame, {"gathered": False, "n": number})
    (tmp_path / "parts/000001.json").write_text("{damaged")
    assert list(Parts(tmp_path, "csv", {"x": 1}, resume=True).finished) == [0, 2]
    assert not Parts(tmp_path, "csv", {"x": 2}, resume=True).finished


def test_cells_are_quoted_where_need_be():
    frame = pd.DataFrame({"id": ["a,b", 'c"d', "e"], "ds": ["1", "2", "3"], "mean": [1 / 3, 1e-20, -5.0]})
    assert csv_text(frame) == '"a,b",1,0.3333333333\n"c""d",2,1e-20\ne,3,-5\n'


# --- from anywhere

@pytest.mark.slow
def test_it_runs_as_a_module_from_any_folder_with_spaces_in_its_paths(place):
    folder = place / "a folder" / "my data"
    folder.mkdir(parents=True)
    ragged().to_csv(folder / "my table.csv", index=False)
    flags = f"--quiet --do_predict --test_dir uni --test_pred_len {HORIZON} --pictures 0 {FILLED}".split()
    command = [sys.executable, "-m", "run", *flags, "--checkpoints", str(place / "checkpoints"), "--root_path",
               "my data", "--data_path", "my table.csv", "--out", "my forecasts/f.csv"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=place / "a folder", env=environment, check=True, capture_output=True)
    got = pd.read_csv(place / "a folder" / "my forecasts" / "f.csv", parse_dates=["ds"])
    pd.testing.assert_frame_equal(got, in_python(ragged()), rtol=1e-8, check_dtype=False)
    closed = subprocess.run(["bash", "-c", '"$@" | true; exit "${PIPESTATUS[0]}"', "bash", *command],
                            cwd=place / "a folder", env=environment, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (141, "")
