"""Who may write where: a folder belongs to one set of settings, and to one process at a time.

A folder of checkpoints is named by its run, and later stages find it by that name: another set of settings is refused.
A folder of results is named by the program: another set gets a folder of its own, which names the difference.
"""
from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from data_provider.files import DataFile
from exp.flags import DEFAULTS, FLAGS
from exp.processes import is_running
from models.checkpoint import CHECKPOINT, read_settings
from models.registry import checkpoint_in
from utils.errors import UserError, shorten
from utils.files import digest, write_json

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart there
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
OWNER = "settings.json"  # in a folder of results: what they were made with
SOURCES = "sources"  # files that a run read: name -> path and sha256
# compared by `SOURCES`, that is by content and place, not as text
PATHS = {"root_path", "data_path", "checkpoints", "distill_target_ckpt", "pretrain_model_path", "spec_draft_ckpt"}
# of the architecture and the sections data, spec and report: without effect on results
NOT_IN_RESULTS = {"num_workers", "subset_rand_ratio", "balance", "val_windows", "save_samples",
                  "trace_inference_breakdown", "visualize", "output_attention", "pictures", "spec_debug_accept",
                  "spec_debug_out", "spec_debug_n", "dropout", "flash_attention",
                  "out", "workers", "ray_address"}
BEFORE = DEFAULTS | {"processes": 1}  # of settings that an older version did not store
ALL_IN_RESULTS = ("config", "data", "spec", "report", "panel")  # sections
IN_RESULTS = {"seed", "amp", "amp_dtype", "bf16", "compile", "rolling", "norm_roll", "spec_draft"}
LONGEST = 80  # characters of a folder's name that tell a difference; longer ones become a digest
OTHER_NAME = "--des or --model_id (with a script: give another CHECKPOINTS=FOLDER, or copy its settings file)"
PATIENCE = 10.0  # seconds to wait for the workers of a process that was killed
log = logging.getLogger(__name__)


def sources(data: Sequence[DataFile], **checkpoints: str | Path | None) -> dict[str, dict[str, Any]]:
    """Path and digest (empty for a file that does not exist yet) of the files that a run depends on; of a pool also
    the number of its files."""
    files = {name: [checkpoint_in(path)] for name, path in checkpoints.items() if path is not None}
    files["data_path"] = [file.path for file in data]
    return {name: {"path": ", ".join(map(str, paths)),
                   "sha256": digest(*paths) if all(path.is_file() for path in paths) else ""}
            | ({"files": len(paths)} if len(paths) > 1 else {}) for name, paths in files.items()}


def of_training(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the contents of args.json that the weights depend on."""
    return {name: value for name, value in flags.items()
            if name not in PATHS and not (name in FLAGS and FLAGS[name].declared("free", False))}


def of_results(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the flags that results depend on; the architecture, because a bare checkpoint takes it from flags."""
    return {name: flags[name] for name, flag in FLAGS.items() if name not in PATHS and (
        name in IN_RESULTS or (flag.section in ALL_IN_RESULTS and name not in NOT_IN_RESULTS))}


def differing(then: Mapping[str, Any], now: Mapping[str, Any], exactly: bool = False) -> dict[str, tuple[Any, Any]]:
    """The settings `now`, from one of the functions above, that were others `then`: name -> (then, now).

    A file counts as the same if its content is, wherever it lies; unless `exactly`, also if it lies in the same place:
    a longer series or a retrained target is a reason to run again.
    """
    pairs = {name: (then.get(name, BEFORE.get(name)), now[name]) for name in sorted(now) if name != SOURCES}
    found: dict[str, Any] = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    old, new = _files(then), _files(now)
    for name in sorted(old.keys() & new.keys()):
        same_place = os.path.realpath(old[name]["path"]) == os.path.realpath(new[name]["path"])
        if old[name]["sha256"] != new[name]["sha256"] and not (same_place and not exactly):
            found[name] = tuple(f"{_words(file)} ({file['sha256'][:8]})" for file in (old[name], new[name]))
    if "data_path" in new.keys() - old.keys() and isinstance(then.get("data_path"), str):  # of an older version
        names = tuple(Path(path).name for path in (then["data_path"], new["data_path"]["path"]))
        found |= {"data_path": names} if names[0] != names[1] else {}
    return found


def _words(file: Mapping[str, Any]) -> str:
    """What a run read under one name: the path of a file, or how many files of a pool."""
    return f"{file['files']} files" if "files" in file else file["path"]


def _files(flags: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """`SOURCES` of stored settings, which may be damaged: what is no file with a path and a digest is like no other."""
    files = flags.get(SOURCES)
    if not isinstance(files, dict):
        return {}
    return {name: file if _is_source(file) else {"path": "", "sha256": "damaged"} for name, file in files.items()}


def _is_source(file: Any) -> bool:
    return isinstance(file, dict) and all(isinstance(file.get(part), str) and "\0" not in file[part]
                                          for part in ("path", "sha256"))


def told(found: Mapping[str, tuple[Any, Any]]) -> str:
    """The differences in words, at most three of them."""
    words = [f"{'--' if name in FLAGS else ''}{name} {_plain(then)} (here {_plain(now)})"
             for name, (then, now) in list(found.items())[:3]]
    more = len(found) - len(words)
    return ", ".join(words) + (f" and {more} more" if more else "")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < LONGEST and value.isprintable() else shorten(value)


@contextmanager
def training_folder(folder: Path, settings: Mapping[str, Any], named: bool = True) -> Iterator[None]:
    """Holds a folder of checkpoints for a training with `settings`. Raises UserError if it is another run's.

    named: whether the run's name decides where the folder is.
    """
    name = f"name this one with {OTHER_NAME}, or " if named else ""
    with locked_folder(folder, "wait for it" + (f", or name this run with {OTHER_NAME}" if named else "")):
        stored = read_settings(folder / CHECKPOINT)
        if stored is None and (folder / CHECKPOINT).exists():
            raise UserError(f"{folder} holds a checkpoint without settings, not of a run of this program: name this "
                            f"run with {OTHER_NAME}, or move the folder away")
        found = differing(stored, of_training(settings)) if stored is not None else {}
        if found:
            raise UserError(f"{folder} holds another run, which had {told(found)}: {name}move the folder away")
        yield


@contextmanager
def results_folder(base: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Holds a folder for results made with `settings`: `base`, or one beside it if `base` has others."""
    while True:
        folder = _own(base, settings)
        with locked_folder(folder, "wait for it, or name these results with --des"):
            if _others(folder, settings):  # a run that held the folder when `_own` looked has ended since
                continue
            try:
                yield folder
            except KeyboardInterrupt:
                _note_owner(folder, settings)
                raise
            _note_owner(folder, settings)
            return


def _note_owner(folder: Path, settings: Mapping[str, Any]) -> None:
    if {part.name for part in folder.iterdir()} - {LOCK}:
        write_json(folder / OWNER, dict(settings))


def _own(base: Path, settings: Mapping[str, Any]) -> Path:
    """`base`, or the first folder beside it that has no other settings: its name, too, may have been taken before."""
    own = base
    while found := _others(own, settings):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(f"{name}_{now}" for name, (_, now) in found.items()))
        if len(name) > LONGEST:
            name = hashlib.sha256(name.encode()).hexdigest()[:12]
        theirs, own = own, own.with_name(f"{own.name}_{name}")
        log.info("note: %s has results with %s; these go to %s", theirs, told(found), own)
    return own


def _others(folder: Path, settings: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What `settings` differ in from those of the results in a folder."""
    owner = _owner(folder)
    return {} if owner is None else differing(owner, settings)


def _owner(folder: Path) -> dict[str, Any] | None:
    """Settings of the results in a folder; None if it has none, or none that can be read."""
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        return owner if all({"path", "sha256"} <= file.keys() for file in owner[SOURCES].values()) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def locked_folder(folder: Path, remedy: str) -> AbstractContextManager[None]:
    """Holds `folder`, made if need be, for this process; removes what killed writers left in it. See `_locked`."""
    return _locked(folder / LOCK, str(folder), ".*.tmp", remedy)


def locked_file(path: Path, remedy: str) -> AbstractContextManager[None]:
    """The same for a single file that is rewritten again and again."""
    return _locked(path.with_name(f".{path.name}{LOCK}"), str(path), f".{glob.escape(path.name)}.*.tmp", remedy)


@contextmanager
def _locked(lock: Path, what: str, litter: str, remedy: str) -> Iterator[None]:
    """The system frees the lock of a process that ends, in whatever way, so that no lock is ever stale.

    Raises UserError that names the process if another one holds it.
    """
    made = [part for part in (lock.parent, *lock.parent.parents) if not part.exists()]
    handle = _hold(lock, what, remedy)
    try:
        for left in lock.parent.glob(litter):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.unlink(missing_ok=True)
        handle.close()
        with suppress(OSError):  # what was made here stays unless it is empty: nothing was written
            for part in made:
                part.rmdir()


def _hold(lock: Path, what: str, remedy: str) -> IO[str]:
    """The open lock file, locked and with this process's name in it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = _opened(lock)
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            handle.close()
            if not _is_dead(holder) or time.monotonic() > deadline:
                raise UserError(f"{what} is in use by {holder}: {remedy}") from None
            time.sleep(0.1)  # its workers hold the lock until they notice that it is gone
            continue
        except OSError:  # a file system without locks
            pass
        if _is_at(lock, handle):
            with suppress(OSError):  # a full disk: the lock holds without a name in it
                handle.truncate(0)
                os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        handle.close()  # its holder removed it between our opening and locking it


def _opened(lock: Path, attempts: int = 10) -> IO[str]:
    """The lock file, in a folder that is made if need be. A run that wrote nothing may remove the folder meanwhile."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        return open(lock, "a+", encoding="utf-8")
    except FileNotFoundError:
        if attempts == 1:
            raise
        return _opened(lock, attempts - 1)


def _is_at(path: Path, handle: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_dead(holder: str) -> bool:
    """True if `holder` was a process of this machine that no longer runs."""
    match = re.fullmatch(r"process (\d+) on (.*)", holder)
    if match is None or match[2] != socket.gethostname():
        return False
    return not is_running(int(match[1]))
