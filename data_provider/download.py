"""Fetches ETTh1 if it is missing: `python -m data_provider.download [--folder DIR]`.

The last line printed is the path of the file to use. Without a network it writes the embedded synthetic data set, with
a note on stderr.
"""
import argparse
import hashlib
import http.client
import logging
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from data_provider.synthetic import write_synthetic
from utils.files import digest, replace_when_done

SOURCE = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/ETTh1.csv"
SHA256 = "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"
SYNTHETIC = "ETTh_synthetic.csv"
CHUNK = 2**16
log = logging.getLogger(__name__)


def download(path: Path, source: str = SOURCE, sha256: str = SHA256, timeout: float = 20) -> str | None:
    """Fetches `source` to `path`. Returns None, or the reason for failure. A file with a wrong checksum is not kept."""
    try:
        with urllib.request.urlopen(source, timeout=timeout) as answer:
            content = _read(answer, path.name)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        return f"{source}: {error}"
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        return f"{source}: checksum {found} instead of {sha256}"
    with replace_when_done(path) as beside:
        beside.write_bytes(content)
    return None


def _read(answer, name: str) -> bytes:
    """Reads a whole response, with a progress bar on a terminal."""
    size = int(answer.headers.get("Content-Length", 0))
    with tqdm.wrapattr(answer, "read", total=size or None, desc=name, disable=None) as reader:
        return b"".join(iter(lambda: reader.read(CHUNK), b""))


def obtain_etth1(folder: Path) -> Path:
    """The ETTh1 file in folder/ETT-small: the existing one, else the public file, else the synthetic stand-in."""
    path = folder / "ETT-small" / "ETTh1.csv"
    if path.is_file():
        if digest(path) != SHA256:
            log.warning("note: %s is not the public ETTh1 (its checksum differs); it is used as is", path)
        return path
    problem = download(path)
    if problem is None:
        return path
    stand_in = path.with_name(SYNTHETIC)
    log.warning("note: ETTh1 could not be fetched (%s).\nnote: using the embedded SYNTHETIC data set %s instead: the "
                "program runs the same, but the figures say nothing about ETTh1.", problem, stand_in)
    return stand_in if stand_in.is_file() else write_synthetic(stand_in)


def main() -> int:
    """Exit code: 0 done, 2 the folder cannot be used (one line on stderr), 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("DATASET_ROOT", "./dataset")))
    try:
        sys.stdout.write(f"{obtain_etth1(parser.parse_args().folder)}\n")
    except OSError as error:
        log.error("error: %s: %s: choose another --folder or DATASET_ROOT", error.filename or "ETTh1",
                  error.strerror or error)
        return 2
    except KeyboardInterrupt:
        log.error("interrupted: the partial download was discarded")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
