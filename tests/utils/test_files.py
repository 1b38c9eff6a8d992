"""Files are written whole or not at all, and names from flags cannot lead out of their folder."""
import json
import os

import pytest

from utils.errors import UserError
from utils.files import append_text, inside, refuse_unwritable, replace_when_done, write_json, write_text


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "result.txt"
    with replace_when_done(path) as beside:
        beside.write_text("half")
        assert not path.exists()
        assert beside.parent == path.parent  # a rename is atomic within one file system only
        beside.write_text("whole")
    assert path.read_text() == "whole"
    assert listing(path.parent) == ["result.txt"]


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, failure):
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(failure), replace_when_done(path) as beside:
        beside.write_text("half")
        raise failure("disk full")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["result.txt"]


def test_a_failure_before_anything_is_written_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), replace_when_done(tmp_path / "result.txt"):
        raise RuntimeError("early")
    assert listing(tmp_path) == []


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    # a rename that reaches the disk before the content leaves an empty file after a power cut
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_text(tmp_path / "a.txt", "x")
    assert calls == ["fsync", "replace"]


def test_json_and_text_come_back_as_they_were(tmp_path):
    content = {"b": [1, 2.5, None], "a": "sigma \u03c3"}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
    assert (tmp_path / "a.json").read_text(encoding="utf-8").index('"a"') < 10  # sorted, so that two runs diff well
    write_text(tmp_path / "a.txt", "\u03c3\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "\u03c3\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_other_programs_could_not_read_is_not_written(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"mse": value})
    assert listing(tmp_path) == []


def test_a_folder_that_can_be_made_is_writable_and_is_not_made(tmp_path):
    refuse_unwritable(tmp_path / "a" / "b", "--des")
    assert listing(tmp_path) == []


def test_a_folder_without_permission_is_refused_with_the_flag(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="no permission.*--des"):
        refuse_unwritable(tmp_path / "a", "--des")


def test_appending_keeps_what_is_there(tmp_path):
    append_text(tmp_path / "log.txt", "first\n")
    append_text(tmp_path / "log.txt", "second\n")
    assert (tmp_path / "log.txt").read_text() == "first\nsecond\n"


@pytest.mark.parametrize("name, expected", [("run", "run"), ("a/b.pth", "a/b.pth"), ("./run", "run"), ("a..b", "a..b")])
def test_a_name_inside_the_folder_is_kept(tmp_path, name, expected):
    assert inside(tmp_path / "checkpoints", name, "--test_dir") == tmp_path / "checkpoints" / expected


@pytest.mark.parametrize("name", ["..", "../x", "../../x", "a/../../x", "/etc/passwd", "../checkpoints_of_others"])
def test_a_name_that_leaves_the_folder_is_refused_with_its_flag(tmp_path, name):
    with pytest.raises(UserError, match="--test_dir") as caught:
        inside(tmp_path / "checkpoints", name, "--test_dir")
    assert name in str(caught.value)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "checkpoints" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="leaves the folder"):
        inside(tmp_path / "checkpoints", "link/x", "--test_dir")


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "real")
    assert inside(tmp_path / "checkpoints", "run", "--test_dir") == tmp_path / "checkpoints" / "run"
