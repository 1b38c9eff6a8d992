"""The files that a data path names: one, several, those of a folder, or those that match a pattern."""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_provider.reading import READERS
from utils.errors import UserError

SEPARATOR = ","
LONGEST = 60  # bytes of a short name that is made of several: it becomes part of a folder's name


@dataclass(frozen=True)
class DataFile:
    """named: by its own name, not found in a folder or by a pattern. label: its name in tables, below the root."""

    path: Path
    named: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.path.name)


def root(root_path: str | None) -> Path:
    """root_path; it defaults to $DATASET_ROOT, else ./dataset."""
    return Path(root_path or os.environ.get("DATASET_ROOT", "./dataset"))


def parts_of(root_path: str | None, data_path: str) -> list[str]:
    """The paths and patterns in a data path, in which commas separate them, unless that is the name of a file."""
    # os.path: to it a name that is too long for a file does not exist, to pathlib it is an error
    if SEPARATOR not in data_path or os.path.exists(root(root_path) / data_path):
        return [data_path]
    return [part.strip() for part in data_path.split(SEPARATOR) if part.strip()]


def data_files(root_path: str | None, data_path: str) -> list[DataFile]:
    """All files of a data path, each once, in the order in which they are named; those of a folder or pattern sorted.

    A folder stands for all files in it and in its subfolders, also behind symbolic links; hidden ones are left out.
    A path that leads nowhere is returned as it is: whoever reads it says so. Raises UserError for a pattern or folder
    without files, OSError for a folder that cannot be read.
    """
    files: dict[str, DataFile] = {}
    for part in parts_of(root_path, data_path):
        for file in _files_of(root(root_path), part):
            place = os.path.realpath(file.path)
            files[place] = file if file.named else files.get(place, file)
    return list(files.values())


def _files_of(folder: Path, part: str) -> list[DataFile]:
    path = folder / part
    if os.path.isdir(path):
        found, what = set(_below(folder, part)), f"folder {path} holds no"
    elif not os.path.exists(path) and is_pattern(part):
        matching = glob.glob(part, root_dir=folder, recursive=True)
        found, what = {name for match in matching for name in _matched(folder, match)}, f"{path} matches no"
    else:
        return [DataFile(path, label=part)]
    if not found:
        raise UserError(f"`data_path`: {what} data file ({', '.join(sorted(READERS))}): correct `data_path`, "
                        "`root_path` or DATASET_ROOT")
    # a file that is found in several ways has the shortest of its names
    one_each = {os.path.realpath(folder / name): name for name in sorted(found, key=_depth, reverse=True)}
    return [DataFile(folder / name, named=False, label=name) for name in sorted(one_each.values(), key=_parts)]


def _parts(name: str) -> tuple[str, ...]:
    return Path(name).parts


def _depth(name: str) -> tuple[int, tuple[str, ...]]:
    return len(_parts(name)), _parts(name)


def _matched(folder: Path, match: str) -> Iterator[str]:
    """What matches a pattern: a data file, or those of a folder."""
    if os.path.isdir(folder / match):
        yield from _below(folder, match)
    elif _is_data(match):
        yield match


def _below(folder: Path, part: str) -> Iterator[str]:
    """The data files in folder/part, each as a path below `folder`."""
    top, seen = folder / part, set()
    for place, folders, files in os.walk(top, onerror=_raise, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in files:
            if _is_data(name) and not _is_hidden(name):
                yield os.path.normpath(os.path.join(part, os.path.relpath(place, top), name))


def _raise(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    """True also of ._x.npy, in which macOS keeps what other systems cannot store of x.npy."""
    return name.startswith(".")


def _is_data(name: str) -> bool:
    return Path(name).suffix.lower() in READERS


def is_pattern(part: str) -> bool:
    return re.search(r"[*?]|\[[^]]+\]", part) is not None


def names_in(data_path: str) -> list[str]:
    """The names of files, or the patterns, in a data path, without their folders."""
    return [Path(part.strip()).name for part in data_path.split(SEPARATOR) if part.strip()]


def label_of(data_path: str) -> str:
    """A short name of the data, for folders: the file's without its ending; those of two or three, else how many more.

    A pattern is named after its folder: ETT-small/ETTh1.csv,weather/*.csv is ETTh1+weather.
    """
    names = [_short(Path(part.strip())) for part in data_path.split(SEPARATOR) if part.strip()]
    joined = "+".join(names)
    if len(names) == 1 or (len(names) <= 3 and len(joined.encode()) <= LONGEST):
        return joined
    return f"{names[0].encode()[:LONGEST].decode(errors='ignore')}+{len(names) - 1}"


def _short(part: Path) -> str:
    """The name of a file without its ending, of a folder, or of the folder that holds what a pattern matches."""
    name = next((name for name in reversed(part.parts) if not is_pattern(name) and name.strip("./")), "all")
    return Path(name).stem if _is_data(name) else name
