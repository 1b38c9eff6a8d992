"""What a notebook holds -> Series: DataFrames (of pandas or with `to_pandas`), a Series, dicts of columns, arrays."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from data_provider.calendar_columns import part_of
from data_provider.columns import DATE_NAMES, holds_times, looks_like_dates, of_columns
from data_provider.series import Place, Series, refuse_gaps
from utils.errors import UserError, shorten

FRAME = "the DataFrame"
ACCEPTED = "give a DataFrame, a Series, a dict of columns, or an array [T] or [T, C]"
LEVELS = {"unique_id", "ds"}


def from_frame(df: object) -> Series:
    """A DataFrame: long (unique_id, ds, y) or wide (one numeric column per variable; times in a column or as index).

    Series, dicts of columns and arrays [T] or [T, C] are wide. Variables and rows keep their order. Raises UserError
    for unusable content, as `read_series` does.
    """
    if isinstance(df, np.ndarray):
        # rows contiguous, as a frame's: sums over them depend on that to the last bit
        return of_array(np.ascontiguousarray(_unmasked(df)) if df.ndim else df, Place("`df`"), most_axes=2)
    frame, notes = _with_index(_as_pandas(df))
    return of_columns(frame, Place(FRAME), notes)


def table_in(df: object) -> pd.DataFrame | None:
    """A frame with a column of ids or names, as `from_frame` would read it; None for an array."""
    return None if isinstance(df, np.ndarray) else _with_index(_as_pandas(df))[0]


def _unmasked(array: np.ndarray) -> np.ndarray:
    """Cells under a mask are missing."""
    masked = isinstance(array, np.ma.MaskedArray) and array.dtype.kind in "iuf"
    return np.ma.filled(array.astype(np.float64), np.nan) if masked else array


def of_array(array: np.ndarray, place: Place, most_axes: int) -> Series:
    """[T], [T, C], or PEMS' [T, C, features], of which the first feature is the series."""
    if array.dtype.kind not in "iuf" or not 1 <= array.ndim <= most_axes:
        raise UserError(f"{place.name}: unknown layout, shape {array.shape} of {shorten(str(array.dtype))}: expected "
                        "real numbers [T, C]")
    if array.size == 0:
        raise UserError(f"{place.name}: the array of shape {array.shape} is empty: at least one window of data is "
                        "needed")
    if array.ndim == 3:
        array = array[:, :, 0]
    return unnamed(array.reshape(len(array), -1).astype(np.float64), place)


def unnamed(values: np.ndarray, place: Place) -> Series:
    """values [T, C]; variables are numbered."""
    names = numbered(values.shape[1])
    refuse_gaps(place, values, names)
    return Series(values, names, None)


def numbered(variables: int) -> list[str]:
    """Names of variables that have none."""
    return [f"var{number}" for number in range(variables)]


def _as_pandas(df) -> pd.DataFrame:
    """A frame whose columns have names, text that differs."""
    try:
        if not isinstance(df, (pd.DataFrame, pd.Series)) and (hasattr(df, "to_pandas") or hasattr(df, "to_dict")):
            df = _foreign(df)
        if isinstance(df, Mapping):
            df = pd.DataFrame(dict(df))
    except Exception as error:  # whatever another library raises
        reason = shorten(" ".join(str(error).split()), 120)
        raise UserError(f"`df` is of type {type(df).__name__} and cannot be made into a DataFrame ({reason}): "
                        f"{ACCEPTED}") from error
    if isinstance(df, pd.Series):
        df = df.to_frame("y" if df.name is None or isinstance(df.index, pd.MultiIndex) else str(df.name))
    if not isinstance(df, pd.DataFrame):
        raise UserError(f"`df` is {'None' if df is None else 'of type ' + type(df).__name__}: {ACCEPTED}")
    if isinstance(df.columns, pd.MultiIndex):
        raise UserError(f"`df` has columns of {df.columns.nlevels} levels: give each column one name, such as "
                        "df.columns.map('_'.join)")
    nameless = df.columns.isna()
    if nameless.any():
        raise UserError(f"`df`: column {int(nameless.argmax()) + 1} has no name: name it, or drop it")
    return df.set_axis(pd.Index([str(name) for name in df.columns], dtype=object), axis=1)


def _foreign(df):
    """A frame of polars, Arrow or another library; to_pandas of some needs a package that is not here."""
    try:
        return df.to_pandas()
    except (ImportError, AttributeError):
        try:
            return df.to_dict(as_series=False)
        except TypeError:
            return df.to_dict()


def _with_index(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Makes columns of an index of times or series; says so in a note if another one is left out."""
    index = frame.index
    if isinstance(index, pd.MultiIndex):
        if set(index.names) != LEVELS:
            raise UserError(f"`df` has an index of the levels {shorten(list(index.names))}: only unique_id and ds can "
                            "be read: name them so, or make columns of them with df.reset_index()")
        twice = LEVELS & set(frame.columns)
        if twice:
            raise UserError(f"`df` has {shorten(min(twice))} both as index and as column: drop one")
        return frame.reset_index(), []
    if not _is_content(index):
        default = pd.api.types.is_integer_dtype(index.dtype)
        named = "" if index.name is None else f" {shorten(index.name)}"
        return frame.reset_index(drop=True), [] if default else [f"left out: the index{named}, which holds no times"]
    name = "ds" if index.name is None else str(index.name)
    if name not in frame.columns:
        return frame.rename_axis(index=name).reset_index(), []
    if not frame[name].reset_index(drop=True).equals(index.to_series(index=range(len(index)))):
        raise UserError(f"`df` has {shorten(name)} both as index and as column, which differ: drop one "
                        "(df.reset_index(drop=True) drops the index)")
    return frame.reset_index(drop=True), []


def _is_content(index: pd.Index) -> bool:
    """Whether an index holds times, parts of the calendar or the names of series."""
    name = "" if index.name is None else str(index.name)
    return holds_times(index.dtype) or name == "unique_id" or name.lower() in DATE_NAMES or part_of(name) is not None \
        or (not pd.api.types.is_numeric_dtype(index.dtype) and looks_like_dates(index.to_series()))
