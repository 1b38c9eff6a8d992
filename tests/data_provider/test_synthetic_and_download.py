"""The stand-in data set is the same everywhere; a download is kept only if it is the right file."""
import hashlib
import http.client
import logging
import os
import subprocess
import sys
import urllib.error

import pandas as pd
import pytest
from helpers import ROOT

from data_provider import download as download_module
from data_provider.data_loader import MultivariateDatasetBenchmark
from data_provider.download import download, main, obtain_etth1
from data_provider.splits import Cut
from data_provider.synthetic import synthetic_frame, write_synthetic


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "ETTh_synthetic.csv")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "elsewhere" / "source.csv"
    path.parent.mkdir()
    path.write_bytes(b"date,OT\r\n2020-01-01,1\r\n")
    return path


@pytest.fixture(autouse=True)
def plain_logging(monkeypatch):
    """Messages as a library leaves them, whatever program has run in this process before."""
    logger = logging.getLogger("data_provider")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")
    monkeypatch.setattr(download_module.urllib.request, "urlopen", refuse)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_synthetic_set_written_twice_has_one_checksum(written, tmp_path):
    assert sha256(write_synthetic(tmp_path / "again.csv")) == sha256(written)


def test_another_seed_gives_other_data():
    assert not synthetic_frame(50, seed=1).equals(synthetic_frame(50, seed=2))


def test_the_synthetic_set_has_the_format_of_etth1(written):
    frame = pd.read_csv(written)
    assert list(frame.columns) == ["date", "HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    assert len(frame) == 17420
    assert frame["date"][0] == "2016-07-01 00:00:00"
    assert (pd.to_datetime(frame["date"]).diff().dropna() == pd.Timedelta(hours=1)).all()
    assert frame.notna().all().all()


def test_the_synthetic_set_has_a_daily_season_worth_forecasting(written):
    values = pd.read_csv(written).drop(columns="date")
    day = values.apply(lambda column: column.autocorr(24))
    assert (values.std() > 0.1).all() and day.mean() > 0.3


def test_the_synthetic_set_gives_the_windows_of_etth1(written):
    assert len(MultivariateDatasetBenchmark(written, Cut("test", 672, 96, 96))) == 2785


def test_a_download_with_the_right_checksum_is_kept(source, tmp_path):
    path = tmp_path / "new" / "ETTh1.csv"
    assert download(path, source.as_uri(), sha256(source)) is None
    assert path.read_bytes() == source.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == ["ETTh1.csv"]


def test_a_download_with_a_wrong_checksum_is_not_kept(source, tmp_path):
    path = tmp_path / "new" / "ETTh1.csv"
    problem = download(path, source.as_uri(), "0" * 64)
    assert sha256(source) in problem and "0" * 64 in problem
    assert not path.exists() and not (path.parent.exists() and list(path.parent.iterdir()))


def test_a_failed_download_says_why_and_keeps_an_older_file(source, tmp_path):
    path = tmp_path / "ETTh1.csv"
    path.write_text("mine")
    missing = source.with_name("missing.csv").as_uri()
    assert "missing.csv" in download(path, missing, "0" * 64)
    assert "checksum" in download(path, source.as_uri(), "0" * 64)
    assert path.read_text() == "mine"


def test_a_download_that_breaks_off_is_a_failure_like_others(monkeypatch, tmp_path):
    class Answer:
        headers = {"Content-Length": "8"}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, *_):
            raise http.client.IncompleteRead(b"half")
    monkeypatch.setattr(download_module.urllib.request, "urlopen", lambda *_, **__: Answer())
    assert download(tmp_path / "ETTh1.csv", "http://example.invalid/x") is not None
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_synthetic_set_is_used_and_named(no_network, tmp_path, caplog):
    path = obtain_etth1(tmp_path)
    said = caplog.text
    assert path == tmp_path / "ETT-small" / "ETTh_synthetic.csv" and path.is_file()
    assert "SYNTHETIC" in said and "no route to host" in said and str(path) in said
    assert not (tmp_path / "ETT-small" / "ETTh1.csv").exists()  # never under the name of the real data


def test_the_synthetic_set_is_not_written_again_where_it_exists(no_network, tmp_path):
    stand_in = tmp_path / "ETT-small" / "ETTh_synthetic.csv"
    stand_in.parent.mkdir()
    stand_in.write_text("already here")
    assert obtain_etth1(tmp_path) == stand_in
    assert stand_in.read_text() == "already here"


def test_a_file_that_is_there_is_used_and_named_if_not_public(no_network, tmp_path, caplog):
    path = tmp_path / "ETT-small" / "ETTh1.csv"
    path.parent.mkdir()
    path.write_text("date,OT\n2020-01-01,1\n")
    assert obtain_etth1(tmp_path) == path
    assert "checksum" in caplog.text
    assert path.read_text() == "date,OT\n2020-01-01,1\n"


def test_the_last_line_of_the_command_is_the_file_to_use(no_network, monkeypatch, tmp_path, capsys):
    stand_in = tmp_path / "ETT-small" / "ETTh_synthetic.csv"
    stand_in.parent.mkdir()
    stand_in.write_text("already here")
    monkeypatch.setattr(sys, "argv", ["download", "--folder", str(tmp_path)])
    assert main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(stand_in)


def test_a_folder_that_cannot_be_used_ends_the_command(no_network, monkeypatch, tmp_path, caplog, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["download", "--folder", str(tmp_path / "file")])
    assert main() == 2
    said = caplog.messages[-1]
    assert said.startswith("error: ") and "file" in said and "--folder" in said and "\n" not in said
    assert capsys.readouterr().out == ""


def as_a_program(*arguments):
    """The command in a process of its own, where every connection is refused."""
    environment = os.environ | dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return subprocess.run([sys.executable, "-m", "data_provider.download", *map(str, arguments)], cwd=ROOT,
                          env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    done = as_a_program("--folder", tmp_path / "file")
    assert done.returncode == 2
    said = done.stderr.splitlines()
    assert said[-1].startswith("error: ") and "file" in said[-1] and "--folder" in said[-1]
    assert "Traceback" not in "".join(said)


@pytest.mark.slow
def test_the_command_prints_the_path_and_notes_beside_it(tmp_path):
    path = tmp_path / "ETT-small" / "ETTh1.csv"
    path.parent.mkdir()
    path.write_text("date,OT\n2020-01-01,1\n")
    done = as_a_program("--folder", tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{path}\n")
    assert done.stderr.startswith("note: ") and "checksum" in done.stderr
