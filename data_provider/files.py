"""The files that a data path names: one, several, those of a folder, or those that match a pattern."""
from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_provider.reading import READERS
from utils.errors import UserError

SEPARATOR = ","


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
    if SEPARATOR not in data_path or (root(root_path) / data_path).exists():
        return [data_path]
    return [part.strip() for part in data_path.split(SEPARATOR) if part.strip()]


def data_files(root_path: str | None, data_path: str) -> list[DataFile]:
    """All files of a data path, each once, in the order in which they are named; those of a folder or pattern sorted.

    A path that leads nowhere is returned as it is: whoever reads it says so. Raises UserError for a pattern or folder
    without files.
    """
    files: dict[str, DataFile] = {}
    for part in parts_of(root_path, data_path):
        for file in _files_of(root(root_path), part):
            place = os.path.realpath(file.path)
            files[place] = file if file.named else files.get(place, file)
    return list(files.values())


def _files_of(folder: Path, part: str) -> Sequence[DataFile]:
    path = folder / part
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_data(file))
        what = f"folder {path} holds no"
    elif not path.exists() and is_pattern(part):
        found = sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if _is_data(file))
        what = f"{path} matches no"
    else:
        return [DataFile(path, label=part)]
    if not found:
        raise UserError(f"`data_path`: {what} data file ({', '.join(sorted(READERS))}): correct `data_path`, "
                        "`root_path` or DATASET_ROOT")
    return [DataFile(file, named=False, label=os.path.relpath(file, folder)) for file in found]


def is_pattern(part: str) -> bool:
    return re.search(r"[*?]|\[[^]]+\]", part) is not None


def _is_data(file: Path) -> bool:
    return file.suffix.lower() in READERS and file.is_file()


def names_in(data_path: str) -> list[str]:
    """The names of files, or the patterns, in a data path, without their folders."""
    return [Path(part.strip()).name for part in data_path.split(SEPARATOR) if part.strip()]


def label_of(data_path: str) -> str:
    """A short name of the data, for folders: the file's without its ending; those of two or three, else how many more.

    A pattern is named after its folder: ETT-small/ETTh1.csv,weather/*.csv is ETTh1+weather.
    """
    parts = [Path(part.strip()) for part in data_path.split(SEPARATOR) if part.strip()]
    stems = [part.parent.name if is_pattern(part.name) else part.stem for part in parts]
    if len(stems) <= 3:
        return "+".join(stem or "all" for stem in stems)
    return f"{stems[0]}+{len(stems) - 1}"
