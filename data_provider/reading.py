"""Files: csv, txt, npz, npy, parquet -> a float array [T, C] with names; errors name file, row and column."""
import csv
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from data_provider.columns import of_columns
from data_provider.frames import of_array, unnamed
from data_provider.parquet import pyarrow_for
from data_provider.series import CsvPlace, Place, Series
from utils.errors import UserError, shorten


def refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"data file {path} does not exist: correct `root_path`/`data_path` or DATASET_ROOT, or run: "
                        "python -m data_provider.download")


def read_series(path: str | Path) -> Series:
    """Reads one file by its extension. Raises UserError that names file, row and column of unusable content, OSError
    for a file that may not be read."""
    path = Path(path)
    refuse_missing(path)
    kind = path.suffix.lower()
    if kind == ".gz":
        raise UserError(f"{path}: a compressed file is read as a long table only, by `do_predict`, with the columns "
                        "unique_id, ds and y: unpack it with gunzip")
    if kind not in READERS:
        raise UserError(f"{path}: unknown file type {path.suffix!r}: use one of {', '.join(sorted(READERS))}")
    try:
        return READERS[kind](path)
    except (UserError, PermissionError):
        raise
    except Exception as error:  # every parser fails in its own ways
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        wanted = " Expected cells separated by commas, in UTF-8" if kind == ".csv" else ""
        raise UserError(f"{path}: cannot be read as {kind[1:]} ({first_line}): is the file damaged?{wanted}") from error


def _read_csv(path: Path) -> Series:
    header = _header(path)
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        raise UserError(f"{path}: the header {shorten(header[0])} is a single cell: separate cells by commas, and use "
                        "a decimal point")
    _refuse_numbers(path, header, header)
    twice = pd.Series([cell for cell in header if cell]).duplicated()
    if twice.any():  # before reading: to rename 100,000 of them takes pandas minutes
        again = [cell for cell in header if cell][int(twice.argmax())]
        raise UserError(f"{path}: two columns are named {shorten(again)}: rename one in the first line")
    with warnings.catch_warnings():
        # with surplus cells pandas would take the first for row labels and shift the others under wrong names
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(path, encoding_errors="replace", low_memory=False, skipinitialspace=True,
                                index_col=False)
        except pd.errors.ParserWarning:
            raise UserError(f"{path}: rows have more cells than the header has names ({len(header)}): name every "
                            "column, separate cells by commas, and use a decimal point") from None
    series = of_columns(frame, CsvPlace(path), [])
    variables = set(series.names)
    _refuse_numbers(path, header, [cell for cell, name in zip(header, frame.columns) if name in variables])
    return series


def _header(path: Path) -> list[str]:
    """The cells of the first line that is not blank, unchanged: pandas renames duplicate names."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as lines:
        return next((row for row in csv.reader(lines, skipinitialspace=True) if any(row)), [""])


def _refuse_numbers(path: Path, header: list[str], names: list[str]) -> None:
    """Refuses a first row of numbers: it is data, and reading it as names would silently lose a row.

    0, 1, 2, ... (for all columns, or for those after the date) are allowed: pandas writes them as default names.
    """
    counted = any(cells == [str(i) for i in range(len(cells))] for cells in (header, names))
    if not counted and names and all(map(_is_number, names)):
        raise UserError(f"{path}: the first line holds numbers ({shorten(names[0])}, ...), not column names: "
                        "add a header line such as date,HUFL,OT")


def _read_txt(path: Path) -> Series:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        cells = line.split(",") if "," in line else line.split()
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError:
            bad = next(i for i, cell in enumerate(cells, start=1) if not _is_number(cell))
            cell = shorten(cells[bad - 1])
            raise UserError(f"{path}, data row {len(rows) + 1} (line {number}), column {bad}: {cell} is not a number: "
                            "a txt file holds numbers only, one row per line") from None
        if len(rows[-1]) != len(rows[0]):
            raise UserError(f"{path}, data row {len(rows)} (line {number}): {len(rows[-1])} cells, but the first line "
                            f"has {len(rows[0])}: all lines must have the same number")
    if not rows:
        raise UserError(f"{path}: the file is empty")
    return unnamed(np.asarray(rows), Place(str(path)))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_npz(path: Path) -> Series:
    with np.load(path, allow_pickle=False) as archive:
        if "data" not in archive.files:
            raise UserError(f"{path}: no array 'data' in it (found: {', '.join(archive.files) or 'none'}): save the "
                            "series under that name")
        return of_array(archive["data"], Place(str(path)), most_axes=3)


def _read_npy(path: Path) -> Series:
    return of_array(np.load(path, allow_pickle=False), Place(str(path)), most_axes=3)


def _read_parquet(path: Path) -> Series:
    pyarrow_for(path, "save the series as csv or npy")
    frame = pd.read_parquet(path, engine="pyarrow")
    plain = isinstance(frame.index, pd.RangeIndex) and frame.index.name is None
    frame = frame if plain else frame.reset_index()  # times, or series and times
    return of_columns(frame.set_axis([str(name) for name in frame.columns], axis=1), Place(str(path)), [])


READERS = {".csv": _read_csv, ".txt": _read_txt, ".npz": _read_npz, ".npy": _read_npy,
           ".parquet": _read_parquet}
