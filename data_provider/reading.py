"""Series: csv, txt, npz, npy, DataFrame -> a float array [T, C] with names; errors name file, row and column."""
import csv
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from utils.errors import UserError, shorten

DATE_NAMES = ("date", "time", "timestamp", "ds", "datetime")
LONG = ["unique_id", "ds", "y"]
FRAME = "the DataFrame"


@dataclass
class Series:
    """values [T, C] float64 in data units; names of the C variables; dates: time stamps, periods, text or None."""

    values: np.ndarray
    names: list[str]
    dates: pd.Series | None


def read_series(path: str | Path) -> Series:
    """Reads one file by its extension. Raises UserError that names file, row and column of unusable content."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"data file {path} does not exist: correct `root_path`/`data_path` or DATASET_ROOT, or run: "
                        "python -m data_provider.download")
    readers = {".csv": _read_csv, ".txt": _read_txt, ".npz": _read_npz, ".npy": _read_npy}
    kind = path.suffix.lower()
    if kind not in readers:
        raise UserError(f"{path}: unknown file type {path.suffix!r}: use one of {', '.join(sorted(readers))}")
    try:
        series = readers[kind](path)
    except UserError:
        raise
    except Exception as error:  # every parser fails in its own ways
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        wanted = " Expected cells separated by commas, in UTF-8" if kind == ".csv" else ""
        raise UserError(f"{path}: cannot be read as {kind[1:]} ({first_line}): is the file damaged?{wanted}") from error
    _refuse_gaps(path, series)
    return series


def _read_csv(path: Path) -> Series:
    header = _header(path)
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        raise UserError(f"{path}: the header {shorten(header[0])} is a single cell: separate cells by commas, and use "
                        "a decimal point")
    with warnings.catch_warnings():
        # with surplus cells pandas would take the first for row labels and shift the others under wrong names
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(path, encoding_errors="replace", low_memory=False, skipinitialspace=True,
                                index_col=False)
        except pd.errors.ParserWarning:
            raise UserError(f"{path}: rows have more cells than the header has names ({len(header)}): name every "
                            "column, separate cells by commas, and use a decimal point") from None
    series = _of_columns(frame, str(path), lambda row: f"{path}, line {_line_of(path, row)}")
    _refuse_missing_header(path, header, header[-len(series.names):])
    return series


def _of_columns(frame: pd.DataFrame, where: str, cell: Callable[[int], str]) -> Series:
    """One column per variable, after a column of dates if there is one. cell: row from 0 -> its name in errors."""
    if frame.empty:
        raise UserError(f"{where}: no rows below the header: at least one window of data is needed")
    dates, first = None, frame.iloc[:, 0]
    if str(frame.columns[0]).lower() in DATE_NAMES or _looks_like_dates(first):
        dates, frame = first if _holds_times(first) else first.astype(str), frame.iloc[:, 1:]
    if frame.shape[1] == 0:
        raise UserError(f"{where}: unknown column layout: a date column and no numeric column; "
                        "expected 'date' followed by one numeric column per variable")
    columns = [_numeric_column(name, frame[name], cell) for name in frame.columns]
    return Series(np.stack(columns, axis=1), [str(name) for name in frame.columns], dates)


def from_frame(frame: pd.DataFrame) -> Series:
    """A DataFrame: long (unique_id, ds, y) or wide (one numeric column per variable; times in a column or as index).

    Raises UserError for unusable content, as `read_series` does. Variables and rows keep their order.
    """
    if set(LONG) <= set(frame.columns):
        frame = _wide_of_long(frame[LONG])
    if isinstance(frame.index, (pd.DatetimeIndex, pd.PeriodIndex)):
        frame = frame.rename_axis(index="ds").reset_index()
    if not frame.columns.is_unique:
        raise UserError(f"{FRAME}: two columns are named {shorten(frame.columns[frame.columns.duplicated()][0])}: "
                        "rename one")
    times = [name for name in frame.columns
             if str(name).lower() in DATE_NAMES or pd.api.types.is_datetime64_any_dtype(frame[name])]
    if len(times) > 1:
        raise UserError(f"{FRAME}: {shorten(times[0])} and {shorten(times[1])} are both time columns: keep one")
    frame = frame[times + [name for name in frame.columns if name not in times]]
    series = _of_columns(frame, FRAME, lambda row: f"{FRAME}, data row {row + 1}")
    _refuse_gaps(FRAME, series)
    return series


def _wide_of_long(frame: pd.DataFrame) -> pd.DataFrame:
    nameless = frame[["unique_id", "ds"]].isna().any(axis=1)
    if nameless.any():
        raise UserError(f"{FRAME}, data row {int(nameless.argmax()) + 1}: unique_id or ds is missing: fill it or drop "
                        "the row")
    twice = frame.duplicated(["unique_id", "ds"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise UserError(f"{FRAME}: {shorten(row.unique_id)} has two values at {row.ds}: keep one")
    wide = frame.pivot(index="ds", columns="unique_id", values="y")
    rows = frame.groupby("unique_id", sort=False).size()
    short = rows[rows < len(wide)]
    if len(short):
        raise UserError(f"{FRAME}: {shorten(short.index[0])} has {short.iloc[0]} of {len(wide)} times: all series must "
                        "cover the same times; forecast series with other times in a separate call")
    return wide.loc[frame["ds"].unique(), rows.index].rename_axis(columns=None).reset_index()


def _header(path: Path) -> list[str]:
    """The cells of the first line that is not blank, unchanged: pandas renames duplicate names."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as lines:
        return next((row for row in csv.reader(lines, skipinitialspace=True) if any(row)), [""])


def _refuse_missing_header(path: Path, header: list[str], names: list[str]) -> None:
    """Refuses a first row of numbers: it is data, and reading it as names would silently lose a row.

    0, 1, 2, ... (for all columns, or for those after the date) are allowed: pandas writes them as default names.
    """
    counted = any(cells == [str(i) for i in range(len(cells))] for cells in (header, names))
    if not counted and all(map(_is_number, names)):
        raise UserError(f"{path}: the first line holds numbers ({shorten(names[0])}, ...), not column names: "
                        "add a header line such as date,HUFL,OT")


def _holds_times(column: pd.Series) -> bool:
    """Whether the cells are time stamps or periods already: made text, they would lose zone or length."""
    return pd.api.types.is_datetime64_any_dtype(column) or isinstance(column.dtype, pd.PeriodDtype)


def _looks_like_dates(column: pd.Series) -> bool:
    if _holds_times(column):
        return True
    if pd.api.types.is_numeric_dtype(column):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = column.head(50)
        return bool(len(head)) and pd.to_datetime(head, errors="coerce").notna().mean() > 0.9


def _numeric_column(name: str, column: pd.Series, cell: Callable[[int], str]) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    text = np.flatnonzero(np.isnan(numbers) & column.notna().to_numpy())
    if len(text):
        raise UserError(f"{cell(text[0])}, column {shorten(name)}: {shorten(str(column.iloc[text[0]]))} is not a number"
                        f" ({len(text)} such cells in this column): correct the cell or drop the column")
    return numbers


def _line_of(path: Path, row: int) -> int:
    """Line number of data row `row` (from 0), counting the header and the blank lines that pandas skips."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        filled = [number for number, line in enumerate(lines, start=1) if line.strip()]
    return filled[row + 1]


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
            raise UserError(f"{path}, line {number}, column {bad}: {shorten(cells[bad - 1])} is not a number: "
                            "a txt file holds numbers only, one row per line") from None
        if len(rows[-1]) != len(rows[0]):
            raise UserError(f"{path}, line {number}: {len(rows[-1])} cells, but the first line has {len(rows[0])}: "
                            "all lines must have the same number")
    if not rows:
        raise UserError(f"{path}: the file is empty")
    return _unnamed(np.asarray(rows))


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
        return _from_array(path, archive["data"])


def _read_npy(path: Path) -> Series:
    return _from_array(path, np.load(path, allow_pickle=False))


def _from_array(path: Path, array: np.ndarray) -> Series:
    """[T], [T, C], or PEMS' [T, C, features], of which the first feature is the series."""
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2, 3):
        raise UserError(f"{path}: unknown layout, shape {array.shape} of {array.dtype}: expected real numbers [T, C]")
    if array.size == 0:
        raise UserError(f"{path}: the array of shape {array.shape} is empty: at least one window of data is needed")
    if array.ndim == 3:
        array = array[:, :, 0]
    return _unnamed(array.reshape(len(array), -1).astype(np.float64))


def _unnamed(values: np.ndarray) -> Series:
    return Series(values, [f"var{i}" for i in range(values.shape[1])], None)


def _refuse_gaps(path: Path | str, series: Series) -> None:
    missing = ~np.isfinite(series.values)
    if not missing.any():
        return
    column = int(missing.any(axis=0).argmax())
    gaps = missing[:, column]
    start = int(gaps.argmax())
    length = int((~gaps[start:]).argmax()) or len(gaps) - start
    name = series.names[column]
    where = f"{path}, data row {start + 1}, column {shorten(name)}"
    raise UserError(f"{where}: missing or infinite value (a run of {length}; {int(missing.sum())} such cells in the "
                    "file): fill the gap or cut it out, nothing is filled in here")
