"""Windows over a series, with OpenLTM's splits and pairs. Items are sliced from tensor views, a whole batch at once."""
import math
from pathlib import Path

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch.utils.data import Dataset

from data_provider.reading import read_series
from utils.errors import UserError

SPLITS = ("train", "val", "test")
MONTH_HOURS = 30 * 24


def split_borders(file_name: str, rows: int) -> tuple[list[int], list[int]]:
    """First and one-past-last row of train, val and test, before a context is prepended to val and test.

    ETT files: 12/4/4 months of 30 days, at one (ETTh) or four (ETTm) rows per hour. Others: 70/10/20 %.
    """
    if file_name.startswith(("ETTh", "ETTm")):
        month = MONTH_HOURS * (4 if file_name.startswith("ETTm") else 1)
        return [0, 12 * month, 16 * month], [12 * month, 16 * month, 20 * month]
    train, test = int(rows * 0.7), int(rows * 0.2)
    return [0, train, rows - test], [train, rows - test, rows]


def standardised(where: str | Path, scaler: StandardScaler, known: np.ndarray, wanted: np.ndarray) -> torch.Tensor:
    """Standardises rows `wanted` [T, C] by mean and deviation of the rows `known`, which the scaler keeps; float32."""
    try:
        with np.errstate(all="ignore"):
            scaled = torch.from_numpy(scaler.fit(known).transform(wanted)).float()
        usable = bool(torch.isfinite(scaled).all())
    except ValueError:  # scikit-learn met a sum that is not finite
        usable = False
    if not usable:
        raise UserError(f"{where}: values too large, or too far from those that set the scale, to be "
                        "standardised: correct or rescale them")
    return scaled


class MultivariateDatasetBenchmark(Dataset):
    """All variables of a window together.

    An item is (x [context, C], y): in `train` and `val` y [context, C] pairs every token with its next patch
    (patch t of y is patch t + 1 of the series); in `test` y [horizon, C] are the steps after the context. rolled: `val`
    has the latter too, for choosing settings.
    Values are standardised with the mean and standard deviation of the training part.
    Raises UserError if the file or the split cannot yield a single window.
    """

    def __init__(self, path: str | Path, split: str, context: int, patch_len: int, horizon: int = 0,
                 subset_ratio: float = 1.0, rolled: bool = False):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        self.split, self.context, self.patch_len, self.horizon = split, context, patch_len, horizon
        self.rolled = rolled or split == "test"
        series = read_series(path)
        self.names, self.notes, rows = series.names, series.notes, len(series.values)
        starts, ends = split_borders(Path(path).name, rows)
        index = SPLITS.index(split)
        ahead = horizon if self.rolled else patch_len
        # val and test borrow their first context from the rows before them
        first = starts[index] - (context if index else 0)
        needed = ends[index] if rows < ends[index] else 0
        if needed or first < 0 or ends[index] - first < context + ahead:
            raise UserError(self._too_short(path, rows, ends, ahead))
        self.scaler = StandardScaler()
        self.values = standardised(path, self.scaler, series.values[:ends[0]], series.values[first:ends[index]])
        self._spans = self.values.unfold(0, context + ahead, 1)  # [all windows, C, context + ahead], a view
        # few-shot training keeps windows evenly spread over the whole training part
        self.ratio = subset_ratio if split == "train" else 1.0
        self.windows = math.ceil(len(self._spans) * self.ratio)

    def _too_short(self, path, rows, ends, ahead) -> str:
        if rows < ends[-1]:
            return (f"{path}: {rows} rows, but the ETT borders (12/4/4 months) need {ends[-1]}: "
                    "rename the file for a 70/10/20 split, or give the complete file")
        # the smallest file whose train, val and test parts each hold one window: search upwards from just below it
        enough = max(self.context + ahead, int((self.context + self.patch_len) / 0.7) - 1, 10 * (self._least_val - 3),
                     5 * self.horizon - 1)
        while not self._fits(*split_borders("", enough)):
            enough += 1
        return (f"{path}: {rows} rows are too few for the {self.split} split with a context of {self.context} and "
                f"{ahead} steps ahead: about {enough} rows are needed; shorten `context` or `horizon`")

    def _fits(self, starts, ends) -> bool:
        lengths = [end - start for start, end in zip(starts, ends)]
        return lengths[0] >= self.context + self.patch_len and lengths[1] >= self._least_val \
            and lengths[2] >= max(self.horizon, 1)

    @property
    def _least_val(self) -> int:
        """Number of rows of the validation part that yield one window."""
        return self.horizon if self.rolled and self.split == "val" else self.patch_len

    @property
    def n_series(self) -> int:
        """Number of series that items are cut from, in sequence; all variables together count as one."""
        return 1

    @property
    def variables(self) -> int:
        """Number of variables per item."""
        return len(self.names) // self.n_series

    def __len__(self) -> int:
        return self.windows * self.n_series

    def __getitem__(self, index: int):
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]):
        """A whole batch in one gather: x [B, context, C], y [B, context or horizon, C]."""
        return self._pair(self._spans[self._place(torch.as_tensor(indices))].transpose(1, 2))

    def _place(self, window: torch.Tensor) -> torch.Tensor:
        """Start of window number `window` in the series."""
        return (window.double() / self.ratio + 1e-9).long()

    def _pair(self, span: torch.Tensor):
        x = span[:, :self.context]
        return x, span[:, self.context:] if self.rolled else span[:, self.patch_len:]


class UnivariateDatasetBenchmark(MultivariateDatasetBenchmark):
    """Each variable of each window separately: items (x [context, 1], y [..., 1]), variable by variable."""

    @property
    def n_series(self) -> int:
        return len(self.names)

    def __getitems__(self, indices: list[int]):
        index = torch.as_tensor(indices)
        window, variable = index % self.windows, index // self.windows
        return self._pair(self._spans[self._place(window), variable][..., None])
