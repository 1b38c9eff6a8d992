"""OpenLTM's splits of a file by rows, and the windows that a split yields."""
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from utils.errors import UserError

SPLITS = ("train", "val", "test")
MONTH_HOURS = 30 * 24


class TooShort(UserError):
    """A file that is too short for a single window of a split."""


def split_borders(file_name: str, rows: int, share: float | None = None) -> tuple[list[int], list[int]]:
    """First and one-past-last row of train, val and test, before a context is prepended to val and test.

    ETT files: 12/4/4 months of 30 days, at one (ETTh) or four (ETTm) rows per hour. Others: 70/10/20 %. With a share,
    that of the training part, all files alike, and half of the rest each for val and test, rounded as OpenLTM does.
    """
    if share is not None:
        train, test = int(rows * share), int(rows * (1 - share) / 2)
        return [0, train, rows - test], [train, rows - test, rows]
    if file_name.startswith(("ETTh", "ETTm")):
        month = MONTH_HOURS * (4 if file_name.startswith("ETTm") else 1)
        return [0, 12 * month, 16 * month], [12 * month, 16 * month, 20 * month]
    train, test = int(rows * 0.7), int(rows * 0.2)
    return [0, train, rows - test], [train, rows - test, rows]


@dataclass(frozen=True)
class Rows:
    """Row numbers, from 0: the training part, which sets the scale, is [0, train); the split, with the context that it
    borrows from the rows before it, [first, end)."""

    train: int
    first: int
    end: int


@dataclass(frozen=True)
class Cut:
    """How a file is cut into windows of `context` steps and those after them.

    A pair of `train` and `val` is (x, y), y one patch later than x; of `test` y is the horizon after x. rolled: `val`
    has the latter too, for choosing settings. subset_ratio: the fraction of the training windows to use, evenly spaced.
    season: steps of the seasonal-naive forecast by which errors are scaled; None: found from the file's times.
    train_share: see `split_borders`.
    """

    split: str
    context: int
    patch_len: int
    horizon: int = 0
    subset_ratio: float = 1.0
    rolled: bool = False
    season: int | None = None
    train_share: float | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")

    @property
    def ahead(self) -> int:
        """Steps of a window after its context."""
        return self.horizon if self.has_horizon else self.patch_len

    @property
    def has_horizon(self) -> bool:
        return self.rolled or self.split == "test"

    @property
    def span(self) -> int:
        """Steps of a whole window."""
        return self.context + self.ahead

    @property
    def ratio(self) -> float:
        return self.subset_ratio if self.split == "train" else 1.0

    def rows(self, path: str | Path, rows: int) -> Rows:
        """The rows of the split of a file. Raises TooShort if they yield no window."""
        starts, ends = split_borders(Path(path).name, rows, self.train_share)
        index = SPLITS.index(self.split)
        first = starts[index] - (self.context if index else 0)
        if rows < ends[index] or first < 0 or ends[index] - first < self.span:
            raise TooShort(self._too_short(path, rows, ends))
        return Rows(ends[0], first, ends[index])

    def windows(self, rows: Rows) -> int:
        """Number of windows in the split, of which `subset_ratio` leaves a part."""
        every = rows.end - rows.first - self.span + 1
        count = math.ceil(every * self.ratio)
        # 100 * 0.07 is a little more than 7: that would make 8, the last of which begins beyond the last window
        return count if int(self.place(torch.tensor(count - 1))) < every else count - 1

    def place(self, window: torch.Tensor) -> torch.Tensor:
        """First row, within the split, of window number `window`."""
        return (window.double() / self.ratio + 1e-9).long()

    def pair(self, span: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows [B, span, C] -> (x [B, context, C], y [B, context or horizon, C])."""
        return span[:, :self.context], span[:, self.context if self.has_horizon else self.patch_len:]

    def _too_short(self, path: str | Path, rows: int, ends: list[int]) -> str:
        if rows < ends[-1]:  # by months
            return (f"{path}: {rows} rows, but the ETT borders (12/4/4 months) need {ends[-1]}: "
                    "rename the file for a 70/10/20 split, or give the complete file")
        # the smallest file whose train, val and test parts each hold one window: search upwards from just below it
        share = self.train_share
        train, val, test = (0.7, 0.1, 0.2) if share is None else (share, (1 - share) / 2, (1 - share) / 2)
        enough = max(self.span, int((self.context + self.patch_len) / train) - 1, int((self._least_val - 3) / val),
                     int(self.horizon / test) - 1)
        while not self._fits(*split_borders("", enough, self.train_share)):
            enough += 1
        return (f"{path}: {rows} rows are too few for the {self.split} split with a context of {self.context} and "
                f"{self.ahead} steps ahead: about {enough} rows are needed; shorten `context` or `horizon`")

    def _fits(self, starts: list[int], ends: list[int]) -> bool:
        lengths = [end - start for start, end in zip(starts, ends)]
        return lengths[0] >= self.context + self.patch_len and lengths[1] >= self._least_val \
            and lengths[2] >= max(self.horizon, 1)

    @property
    def _least_val(self) -> int:
        """Number of rows of the validation part that yield one window."""
        return self.horizon if self.rolled and self.split == "val" else self.patch_len
