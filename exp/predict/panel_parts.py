"""Forecasts of a panel on disk: finished parts that a later run goes on from, and the one table that they become."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_provider.parquet import pyarrow_for
from utils.files import replace_when_done, write_json

PARTS, IDENTITY = "parts", "identity.json"
INSTEAD = "name a csv file in `out`"
FORM = 1  # version of the files in there
DIGITS, QUOTE, SPECIAL = "%.10g", '"', re.compile(r'[",\r\n]|^\s|\s$')


class Parts:
    """The folder of finished parts: each is a table and a record; that of its record ends it.

    identity: everything that the parts depend on; those of another identity are removed. kind: csv or parquet.
    """

    def __init__(self, folder: Path, kind: str, identity: Mapping[str, Any], resume: bool):
        self.folder, self.kind = folder / PARTS, kind
        self.identity = json.loads(json.dumps({"form": FORM, "kind": kind, "used": identity}))
        if not resume or not self.begun:
            self.clear()

    @property
    def gathered(self) -> bool:
        """Whether the rows of series were found apart, so that the table was read as a whole."""
        return any(record["gathered"] for record in self.finished.values())

    @property
    def finished(self) -> dict[int, dict[str, Any]]:
        """Number of a part -> its record, in order. Workers, which finish parts in any order, may leave gaps."""
        paths = sorted(path for path in self.folder.glob("*.json") if path.stem.isdigit())
        records = {int(path.stem): self._read(path) for path in paths}
        return {number: record for number, record in records.items() if record is not None}

    @property
    def begun(self) -> bool:
        """Whether the folder is there, and is that of this run."""
        return self._read(self.folder / IDENTITY) == self.identity

    def begin(self) -> None:
        if not self.begun:
            write_json(self.folder / IDENTITY, self.identity)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, number: int, frame: pd.DataFrame, record: Mapping[str, Any]) -> None:
        self.begin()
        with replace_when_done(self._path(number, self.kind)) as beside:
            if self.kind == "parquet":
                pyarrow = pyarrow_for(beside, INSTEAD)
                pyarrow.parquet.write_table(pyarrow.Table.from_pandas(frame, preserve_index=False), beside)
            else:
                beside.write_text(csv_text(frame), encoding="utf-8")
        write_json(self._path(number, "json"), dict(record))

    def join(self, out: Path, count: int, names: Sequence[str]) -> None:
        """All parts, one after another, as one file."""
        paths = [self._path(number, self.kind) for number in range(count)]
        with replace_when_done(out) as beside:
            if self.kind == "parquet":
                _join_parquet(paths, beside)
                return
            with open(beside, "wb") as whole:
                whole.write((",".join(map(_cell, names)) + "\n").encode())
                for path in paths:
                    with open(path, "rb") as part:
                        shutil.copyfileobj(part, whole, 2**20)

    def _path(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:06d}.{ending}"

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


def csv_text(frame: pd.DataFrame) -> str:
    """The rows of a frame of text and of numbers, without a header."""
    columns = [frame.iloc[:, i] for i in range(frame.shape[1])]
    cells = [column.tolist() if column.dtype.kind == "f" else _cells(column) for column in columns]
    line = ",".join(DIGITS if column.dtype.kind == "f" else "%s" for column in columns) + "\n"
    return "".join(map(line.__mod__, zip(*cells)))


def _cells(column: pd.Series) -> list[str]:
    """Each distinct cell is looked at once."""
    places, distinct = pd.factorize(column)
    return np.array([_cell(str(cell)) for cell in distinct], dtype=object)[places].tolist()


def _cell(text: str) -> str:
    return f'"{text.replace(QUOTE, QUOTE + QUOTE)}"' if SPECIAL.search(text) else text


def _join_parquet(paths: Sequence[Path], out: Path) -> None:
    parquet = pyarrow_for(out, INSTEAD).parquet
    schema = parquet.read_schema(paths[0])
    with parquet.ParquetWriter(out, schema) as writer:
        for path in paths:
            writer.write_table(parquet.read_table(path).cast(schema))
