"""The rows of one split of one file, standardised: in memory, or left on disk and read window by window."""
from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler

from data_provider.frames import numbered
from data_provider.reading import read_series, refuse_missing
from data_provider.series import Place, refuse_gaps
from data_provider.splits import Cut
from data_provider.times import season_of
from utils.errors import UserError, shorten
from utils.files import digest

BLOCK = 2**22  # values that are read at once: 32 MiB in double precision
ON_DISK = ".npy"  # the only kind of file of which any row can be read by itself


def standardised(where: str | Path, scaler: StandardScaler, known: np.ndarray, wanted: np.ndarray) -> torch.Tensor:
    """Standardises rows `wanted` [T, C] by mean and deviation of the rows `known`, which the scaler keeps; float32."""
    try:
        with np.errstate(all="ignore"):
            scaled = torch.from_numpy(scaler.fit(known).transform(wanted)).float()
        usable = bool(torch.isfinite(scaled).all())
    except ValueError:  # scikit-learn met a sum that is not finite
        usable = False
    if not usable:
        raise _too_large(where)
    return scaled


def _too_large(where: str | Path) -> UserError:
    return UserError(f"{where}: values too large, or too far from those that set the scale, to be standardised: "
                     "correct or rescale them")


class InMemory:
    """Any file, read as a whole. values [T, C]: the rows of the split, standardised by the training part.

    naive_errors [C]: mean absolute error of the seasonal-naive forecast on the training part, of windows with a horizon
    only; 0 for a variable that repeats itself.
    """

    def __init__(self, path: str | Path, cut: Cut):
        series = read_series(path)
        self.path, self.names, self.notes = Path(path), series.names, series.notes
        rows = cut.rows(path, len(series.values))
        known = series.values[:rows.train]
        self.scaler = StandardScaler()
        self.values = standardised(path, self.scaler, known, series.values[rows.first:rows.end])
        self.windows, self.season = cut.windows(rows), 0
        if cut.has_horizon:
            self.season = cut.season or season_of(series.dates, str(path))
            sums = naive_error_sum(known, self.season)
            self.naive_errors = sums / self.scaler.scale_ / max(rows.train - self.season, 1)
        self._spans = self.values.unfold(0, cut.span, 1)  # [all windows, C, span], a view

    def whole(self, start: torch.Tensor) -> torch.Tensor:
        """start [B] -> windows of all variables [B, span, C]."""
        return self._spans[start].transpose(1, 2)

    def single(self, start: torch.Tensor, variable: torch.Tensor) -> torch.Tensor:
        """start, variable [B] -> windows of one variable each [B, span]."""
        return self._spans[start, variable]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.values.contiguous().numpy().tobytes()).hexdigest()


class OnDisk:
    """A npy file [T] or [T, C] that stays on disk: only the windows of a batch are in memory. Otherwise as `InMemory`.

    The file is mapped anew for every batch, so that the pages of earlier ones do not add up, and no handle stays open.
    A file that changes during the run is refused: its scale would be that of other values.
    """

    def __init__(self, path: str | Path, cut: Cut):
        self.path, self.notes = Path(path), list[str]()
        refuse_missing(self.path)
        self.changed = self.path.stat().st_mtime_ns
        shape = _mapped(self.path).shape
        self.names = numbered(shape[1])
        rows = cut.rows(path, shape[0])
        self.span, self.first, self.windows, self.season = cut.span, rows.first, cut.windows(rows), 0
        self.mean, self.scale = _statistics(self.path, self.changed, rows.train)
        if cut.has_horizon:
            self.season = cut.season or season_of(None, str(path))
            sums = _naive_error_sums(self.path, self.changed, rows.train, self.season)
            self.naive_errors = sums / self.scale / max(rows.train - self.season, 1)

    def single(self, start: torch.Tensor, variable: torch.Tensor) -> torch.Tensor:
        if self.path.stat().st_mtime_ns != self.changed:
            raise UserError(f"{self.path} has changed since this run began: start again (`resume` continues a training "
                            "if the content is the same)")
        rows = self.first + start[:, None].numpy() + np.arange(self.span)
        columns = variable.numpy()[:, None]
        values = _mapped(self.path)[rows, columns].astype(np.float64)
        return torch.from_numpy((values - self.mean[columns]) / self.scale[columns]).float()

    def fingerprint(self) -> str:
        return f"{digest(self.path)} from row {self.first}"


def _mapped(path: Path) -> np.ndarray:
    """The file as an array [T, C] of which only what is indexed is read; see `frames.of_array` for its layouts.

    Raises UserError if it has none of them.
    """
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:  # names the file itself, and what the system says of it
        raise
    except Exception as error:  # a damaged header fails in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as npy ({reason}): is the file damaged?") from error
    if values.ndim not in (1, 2, 3) or values.dtype.kind not in "iuf" or not values.size:
        raise UserError(f"{path}: {shorten(str(values.dtype))} {list(values.shape)} is not a table of numbers [T] or "
                        "[T, C]: save one series per file, or one per column")
    return values[:, None] if values.ndim == 1 else values if values.ndim == 2 else values[:, :, 0]


def _blocks(path: Path, first: int, end: int, overlap: int = 0):
    """Rows [first, end) in float64, in blocks of about BLOCK values that begin with the last `overlap` rows before."""
    length = max(1, BLOCK // _mapped(path).shape[1])
    for start in range(first, end, length):
        begin = max(first, start - overlap)
        yield begin, _mapped(path)[begin:min(start + length, end)].astype(np.float64)


@lru_cache(maxsize=2**16)
def _statistics(path: Path, _changed: int, train: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale [C] of the first `train` rows. Raises UserError for a value in the file that cannot be used."""
    scaler, rows = StandardScaler(), _mapped(path).shape[0]
    low, high = np.inf, -np.inf
    with np.errstate(all="ignore"):
        for begin, block in _blocks(path, 0, rows):
            if not np.isfinite(block).all():
                refuse_gaps(Place(str(path), begin), block, numbered(block.shape[1]))
            try:
                if begin < train:
                    scaler.partial_fit(block[:train - begin])
            except ValueError:
                raise _too_large(path) from None
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
        ends = (np.stack([low, high]) - scaler.mean_) / scaler.scale_
        if not np.isfinite(ends.astype(np.float32)).all():
            raise _too_large(path)
    return scaler.mean_, scaler.scale_


@lru_cache(maxsize=2**16)
def _naive_error_sums(path: Path, _changed: int, train: int, season: int) -> np.ndarray:
    return sum((naive_error_sum(block, season) for _, block in _blocks(path, 0, train, season)),
               start=np.zeros(_mapped(path).shape[1]))


def naive_error_sum(values: np.ndarray, season: int) -> np.ndarray:
    """Sum of |value - value a season before| over rows [T, C]: [C]; 0 for fewer rows than a season."""
    return np.abs(values[season:] - values[:-season]).sum(axis=0)


def table_of(path: str | Path, cut: Cut) -> InMemory | OnDisk:
    return OnDisk(path, cut) if Path(path).suffix.lower() == ON_DISK else InMemory(path, cut)
