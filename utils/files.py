"""Atomic writes, and paths that are confined to a folder."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


@contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` if the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with open(beside, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replace_when_done(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict[str, Any]) -> None:
    # NaN and Infinity are not JSON: other programs could not read the file
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def append_text(path: str | Path, text: str) -> None:
    """Appends in one write call, so that lines of concurrent runs do not mix."""
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(text)


def digest(*paths: str | Path) -> str:
    """sha256 of the concatenated contents of files, in hexadecimal."""
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as handle:
            while block := handle.read(2**20):
                sha.update(block)
    return sha.hexdigest()


def refuse_unwritable(folder: Path, change: str) -> None:
    """Raises UserError unless `folder` is writable or can be created; change: the settings to name as a remedy."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{folder} cannot be created: {existing} is a file; move it away, or change {change}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: no permission for {existing}; grant it, or change {change}")


def inside(folder: str | Path, name: str, origin: str) -> Path:
    """folder / name. Raises UserError if `name`, which came from `origin`, would leave the folder."""
    root = Path(folder).resolve()
    path = (root / name).resolve()
    if ".." in Path(name).parts or (path != root and root not in path.parents):
        raise UserError(f"{origin} {name!r} leaves the folder {folder}: give a name inside it")
    return Path(folder) / path.relative_to(root)
