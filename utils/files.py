"""Atomic writes, and paths that are confined to a folder."""
from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError

ANY_TEXT = "backslashreplace"  # the name of a file may hold bytes that are no letters


@contextmanager
def named(path: Path, beside: Path | None = None) -> Iterator[None]:
    """Lets an OSError that names no file, as that of a failed write, or just `beside`, name `path`.

    Also the one behind a RuntimeError: torch.save complains of positions where its file could not be written. A closed
    pipe is no file of ours.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        failed: BaseException | None = error
        while failed is not None and not isinstance(failed, OSError):
            failed = failed.__context__
        if failed is None or isinstance(failed, BrokenPipeError) \
                or failed.filename not in (None, beside, str(beside)):
            raise
        raise OSError(failed.errno, failed.strerror or str(failed), str(path)) from error


@contextmanager
def replace_when_done(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` if the block ends without an error.

    Raises OSError that names `path` where it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with named(path, beside):
        try:
            yield beside
            with open(beside, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with replace_when_done(path) as beside:
        beside.write_text(text, encoding="utf-8", errors=ANY_TEXT)


def write_json(path: Path, content: dict[str, Any]) -> None:
    # NaN and Infinity are not JSON: other programs could not read the file
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def append_text(path: str | Path, text: str) -> None:
    """Appends in one write call, so that lines of concurrent runs do not mix. Raises OSError that names `path`."""
    with named(Path(path)), open(path, "a", encoding="utf-8", errors=ANY_TEXT) as handle:
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
    existing = next(path for path in (folder, *folder.absolute().parents) if _is_there(path, folder, change))
    if existing.is_symlink() and not existing.exists():
        raise UserError(f"{folder} cannot be created: {existing} is a symbolic link that leads nowhere; correct it, or "
                        f"change {change}")
    if not existing.is_dir():
        raise UserError(f"{folder} cannot be created: {existing} is a file; move it away, or change {change}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written: no permission for {existing}; grant it, or change {change}")


def _is_there(path: Path, folder: Path, change: str) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # a name that is too long, a link that leads back to itself
        raise UserError(f"{folder} cannot be created: {error.strerror}; change {change}") from None
    return True


def inside(folder: str | Path, name: str, origin: str) -> Path:
    """folder / name. Raises UserError if `name`, which came from `origin`, would leave the folder."""
    try:
        root = Path(folder).resolve()
        path = (root / name).resolve()
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise
        # a RuntimeError before Python 3.13
        raise UserError(f"{Path(folder) / name}: a symbolic link leads back to itself: correct it") from None
    if ".." in Path(name).parts or (path != root and root not in path.parents):
        raise UserError(f"{origin} {name!r} leaves the folder {folder}: give a name inside it")
    return Path(folder) / path.relative_to(root)
