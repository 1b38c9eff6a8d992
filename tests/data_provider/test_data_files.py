"""Which files a data path names, and what they are called."""
import os
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_provider import reading
from data_provider.files import LONGEST, data_files, is_pattern, label_of, names_in, parts_of
from utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.csv", "b.npy", "c.npy", "d.csv"):
        (tmp_path / name).write_text("")
    return tmp_path


def labels(root, data_path):
    return [file.label for file in data_files(str(root), data_path)]


def test_files_are_named_found_in_folders_and_by_patterns(folder):
    def names(data_path):
        return [(file.path.name, file.named, file.label) for file in data_files(str(folder), data_path)]
    (folder / "sub" / "deep").mkdir(parents=True)
    for name in ("sub/x.npy", "sub/deep/y.csv", "sub/notes.md"):
        (folder / name).write_text("")
    assert names("d.csv, a.csv") == [("d.csv", True, "d.csv"), ("a.csv", True, "a.csv")]
    assert names("sub") == [("y.csv", False, "sub/deep/y.csv"), ("x.npy", False, "sub/x.npy")]
    assert names("[bc].npy,a.csv,*.csv") == [("b.npy", False, "b.npy"), ("c.npy", False, "c.npy"),
                                             ("a.csv", True, "a.csv"), ("d.csv", False, "d.csv")]  # each once
    assert names(str(folder / "a.csv")) == [("a.csv", True, str(folder / "a.csv"))]
    assert names("gone.csv") == [("gone.csv", True, "gone.csv")]  # whoever reads it says so
    (folder / "a,b.csv").write_text("")
    assert names("a,b.csv") == [("a,b.csv", True, "a,b.csv")]
    for empty in ("*.txt", "sub/deep/*.npy"):
        with pytest.raises(UserError, match="matches no data file"):
            names(empty)
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data file"):
        names("empty")


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_hidden_files_are_not_found_in_folders_or_by_patterns_but_may_be_named(tmp_path):
    make(tmp_path, "u/x.npy", "u/._x.npy", "u/.cache/y.npy", "u/__MACOSX/._x.npy", "u/__MACOSX/sub/._x.npy")
    for data_path in ("u", "u/**/*.npy", ".", "u*"):
        assert labels(tmp_path, data_path) == ["u/x.npy"]
    assert labels(tmp_path, "u/._x.npy") == ["u/._x.npy"]


def test_links_are_followed_and_loops_end(tmp_path):
    make(tmp_path, "u/sub/x.npy", "far/z.npy")
    (tmp_path / "u" / "linked").symlink_to(tmp_path / "far")
    for name in ("u/loop", "u/sub/loop"):
        (tmp_path / name).symlink_to(tmp_path / "u")
    assert labels(tmp_path, "u") == ["u/linked/z.npy", "u/sub/x.npy"]
    (tmp_path / "u" / "sub" / "loop").unlink()
    assert labels(tmp_path, "u/**/*.npy") == ["u/linked/z.npy", "u/sub/x.npy"]  # not u/loop/loop/loop/...


def test_a_link_to_nowhere_is_found_so_that_its_reader_complains(tmp_path):
    make(tmp_path, "u/x.npy")
    (tmp_path / "u" / "y.npy").symlink_to(tmp_path / "gone.npy")
    assert labels(tmp_path, "u") == ["u/x.npy", "u/y.npy"]


def test_a_folder_that_cannot_be_read_is_an_error_not_an_empty_one(tmp_path, monkeypatch):
    make(tmp_path, "u/x.npy", "u/locked/y.npy")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        data_files(str(tmp_path), "u")


def test_a_file_that_may_not_be_read_is_not_called_damaged(folder, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))
    monkeypatch.setitem(reading.READERS, ".csv", denied)
    with pytest.raises(PermissionError, match="a.csv"):
        reading.read_series(folder / "a.csv")


def test_a_pattern_takes_folders_as_if_they_were_named(tmp_path):
    make(tmp_path, "u/energy/deep/x.npy", "u/nature/y.npy", "u/z.csv", "u/notes.md")
    assert labels(tmp_path, "u/*") == labels(tmp_path, "u") == ["u/energy/deep/x.npy", "u/nature/y.npy", "u/z.csv"]


def test_the_root_is_not_a_pattern(tmp_path):
    root = tmp_path / "version [1]*"
    make(root, "u/x.npy", "u/y[2].npy")
    assert labels(root, "u/*.npy") == ["u/x.npy", "u/y[2].npy"]
    assert labels(root, "u/y[2].npy") == ["u/y[2].npy"]


def test_hundreds_of_files_may_be_named(folder):
    names = [f"a_name_of_usual_length_{number}.npy" for number in range(300)]  # together too long for a path
    assert labels(folder, ",".join(names)) == names


def test_a_file_with_two_names_is_one_file(folder):
    (folder / "link.npy").symlink_to(folder / "b.npy")
    (folder / "sub").mkdir()
    for data_path in ("b.npy,./b.npy", "b.npy,sub/../b.npy", f"b.npy,{folder / 'b.npy'}", "b.npy,link.npy",
                      "[bl]*.npy"):
        assert len(data_files(str(folder), data_path)) == 1, data_path


@pytest.mark.parametrize("data_path, label, names", [
    ("ETT-small/ETTh1.csv", "ETTh1", ["ETTh1.csv"]),
    ("ETT-small/ETTh1.csv,weather/*.csv", "ETTh1+weather", ["ETTh1.csv", "*.csv"]),
    ("a.csv, b.csv,c.csv,d.npy", "a+3", ["a.csv", "b.csv", "c.csv", "d.npy"]), ("utsd", "utsd", ["utsd"]),
    ("utsd/**/*.npy", "utsd", ["*.npy"]), ("**/*.npy", "all", ["*.npy"]), ("*.csv", "all", ["*.csv"]),
    ("utsd.v1", "utsd.v1", ["utsd.v1"]), ("..", "all", [".."]), ("x/?.csv", "x", ["?.csv"]),
])
def test_data_have_a_short_name(data_path, label, names):
    assert label_of(data_path) == label and names_in(data_path) == names


NAMES = st.text(string.ascii_letters + "0123456789 .,+-_[]()ü*?", min_size=1, max_size=12).filter(
    lambda name: name.strip(" .,"))
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(st.lists(PATHS, min_size=1, max_size=6).map(",".join))
def test_a_label_is_part_of_a_folder_name(data_path):
    label = label_of(data_path)
    assert label and label not in (".", "..") and not set(label) & set("/*?")
    parts = [part for part in data_path.split(",") if part.strip()]
    assert len(parts) == 1 or len(label.encode()) <= LONGEST + len("+99")


@given(st.lists(PATHS, min_size=1, max_size=6))
def test_parts_are_the_paths_that_were_joined(parts):
    words = [word.strip() for part in parts for word in part.split(",") if word.strip()]
    assert parts_of("/nowhere", ",".join(parts)) == words or "," not in ",".join(parts)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    make(root, "a.csv", "b.npy", "u/a.csv", "u/x.npy", "u/v/x.npy", "u/v/.h.npy", "u/n.md", "w [1]/é.npz",
         "w [1]/t.txt")
    (root / "u" / "v" / "up").symlink_to(root / "u")
    return root


PIECES = st.sampled_from(["a.csv", "b.npy", "u", "v", "w [1]", "*", "**", "x.npy", "?.csv", "[ab].*", ".", "u/..", "up",
                          "é*"])


@settings(deadline=None)
@given(st.lists(st.lists(PIECES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=4).map(",".join))
def test_every_file_is_found_once_under_a_label_that_leads_to_it(tree, data_path):
    try:
        found = data_files(str(tree), data_path)
    except UserError:
        return
    places = [os.path.realpath(file.path) for file in found]
    assert found and len(set(places)) == len(places) and len({file.label for file in found}) == len(found)
    for file, place in zip(found, places):
        assert os.path.realpath(tree / file.label) == place
        if not file.named:
            assert Path(place).suffix in reading.READERS and not file.path.name.startswith(".")
            assert not is_pattern(file.label) or "w [1]" in file.label


def test_the_found_files_are_those_of_a_walk(tree):
    wanted = {os.path.realpath(path) for path in tree.rglob("*") if path.suffix in reading.READERS}
    found = {os.path.realpath(file.path) for file in data_files(str(tree), ".")}
    assert found == {path for path in wanted if not os.path.basename(path).startswith(".")}


def test_names_with_every_sign_are_read(tmp_path):
    for name in ("a, b.npy", "c [1].npy", "d*.npy", "é ü.npy", "'q\".npy"):
        np.save(tmp_path / name, np.arange(400.0))
        assert labels(tmp_path, name) == [name]
    assert len(data_files(str(tmp_path), ".")) == 5
