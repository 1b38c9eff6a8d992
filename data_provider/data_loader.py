"""Windows over the series of files, with OpenLTM's splits and pairs; a whole batch is gathered at once.

Both data sets number their items series by series, each in the order of time: `counts` [n_series] windows of every
series. A series has `variables` variables, which are forecast together. files: those that have a window; labels: (file,
name) of every variable of every series; seasons [n_series] and naive_errors [n_series * variables], of a split with a
horizon, scale its errors.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data_provider.files import DataFile
from data_provider.series import listed
from data_provider.splits import Cut, TooShort
from data_provider.tables import InMemory, OnDisk, table_of
from utils.errors import UserError

TRAIN_SHARE = 0.9  # of UTSD


class SeriesWindows(Dataset):
    """What both have in common."""

    cut: Cut
    counts: torch.Tensor
    files: list[DataFile]
    names: list[str]
    labels: list[tuple[str, str]]
    notes: list[str]
    seasons: torch.Tensor
    naive_errors: torch.Tensor

    @property
    def n_series(self) -> int:
        """Number of series that items are cut from, in sequence; all variables of a file together count as one."""
        return len(self.counts)

    @property
    def variables(self) -> int:
        """Number of variables per item."""
        return len(self.labels) // self.n_series

    @property
    def first_items(self) -> torch.Tensor:
        """The first item of every series [n_series]."""
        return self.counts.cumsum(0) - self.counts

    def series_of(self, items: torch.Tensor) -> torch.Tensor:
        """The series that items [B] are cut from."""
        return torch.searchsorted(self.counts.cumsum(0), items, right=True)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, index: int):
        x, y = self.__getitems__([index])
        return x[0], y[0]

    def __getitems__(self, indices: list[int]):
        """x [B, context, C], y [B, context or horizon, C]"""
        raise NotImplementedError


class MultivariateDatasetBenchmark(SeriesWindows):
    """All variables of a window together.

    An item is (x [context, C], y): in `train` and `val` y [context, C] pairs every token with its next patch
    (patch t of y is patch t + 1 of the series); in `test` y [horizon, C] are the steps after the context. rolled: `val`
    has the latter too, for choosing settings.
    Values are standardised with the mean and standard deviation of the training part.
    Raises UserError if the file or the split cannot yield a single window.
    """

    def __init__(self, files: str | Path | Sequence[DataFile], cut: Cut):
        self.cut, self.files = cut, _listed(files)
        if len(self.files) > 1:
            raise UserError(f"`data_path` names {len(self.files)} files, which have different variables: forecast each "
                            "series by itself (`kind` UnivariateDatasetBenchmark), or name one file")
        self.table = InMemory(self.files[0].path, cut)
        self.names, self.notes, self.values = self.table.names, self.table.notes, self.table.values
        self.labels = [(self.files[0].label, name) for name in self.names]
        self.counts = torch.tensor([self.table.windows])
        if cut.has_horizon:
            self.seasons = torch.tensor([self.table.season])
            self.naive_errors = torch.from_numpy(self.table.naive_errors)

    def __getitems__(self, indices: list[int]):
        return self.cut.pair(self.table.whole(self.cut.place(torch.as_tensor(indices))))

    def fingerprint(self) -> str:
        return self.table.fingerprint()


class UnivariateDatasetBenchmark(SeriesWindows):
    """Each variable of each file separately: items (x [context, 1], y [..., 1]), file by file, variable by variable.

    Every series has the splits of its own file and its own scale; lengths and steps may differ. npy files stay on disk,
    so that a pool of them may be larger than memory. A file that was found by a pattern and is too short for a window
    is left out, with a note; one that was named raises UserError.
    """

    def __init__(self, files: str | Path | Sequence[DataFile], cut: Cut):
        self.cut, self.files, self.notes = cut, [], []
        self.tables: list[InMemory | OnDisk] = []
        self._read(_listed(files))
        self.labels = [(file.label, name) for file, table in zip(self.files, self.tables) for name in table.names]
        self.names = [name for _, name in self.labels]
        widths = torch.tensor([len(table.names) for table in self.tables])
        self.counts = torch.tensor([table.windows for table in self.tables]).repeat_interleave(widths)
        self._first_series = widths.cumsum(0) - widths
        self._table_of = torch.arange(len(self.tables)).repeat_interleave(widths)
        if cut.has_horizon:
            self.seasons = torch.tensor([table.season for table in self.tables]).repeat_interleave(widths)
            self.naive_errors = torch.cat([torch.from_numpy(table.naive_errors) for table in self.tables])

    def _read(self, files: Sequence[DataFile]) -> None:
        """Reads those that are long enough."""
        left_out: list[tuple[str, TooShort]] = []
        for file in files:
            try:
                table = table_of(file.path, self.cut)
            except TooShort as error:
                if file.named:
                    raise
                left_out.append((file.label, error))
                continue
            self.files.append(file)
            self.tables.append(table)
            self.notes += [note if len(files) == 1 else f"{file.label}: {note}" for note in table.notes]
        if not self.tables:
            raise left_out[0][1]
        if left_out:
            self.notes.append(f"{len(left_out)} of {len(files)} files are too short for a window of the "
                              f"{self.cut.split} split and left out: {listed([name for name, _ in left_out])}")

    def __getitems__(self, indices: list[int]):
        items = torch.as_tensor(indices)
        series = self.series_of(items)
        start, number = self.cut.place(items - self.first_items[series]), self._table_of[series]
        spans = torch.empty(len(items), self.cut.span)
        for part in number.unique().tolist():
            mine = number == part
            spans[mine] = self.tables[part].single(start[mine], series[mine] - self._first_series[part])
        return self.cut.pair(spans[..., None])

    def fingerprint(self) -> str:
        parts = [table.fingerprint() for table in self.tables]
        return parts[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest()


class UTSD(UnivariateDatasetBenchmark):
    """OpenLTM's data set of that name: 90 % of the rows of each file for training, 5 % each for validation and test."""

    def __init__(self, files: str | Path | Sequence[DataFile], cut: Cut):
        super().__init__(files, replace(cut, train_share=TRAIN_SHARE))


def _listed(files: str | Path | Sequence[DataFile]) -> list[DataFile]:
    return [DataFile(Path(files))] if isinstance(files, (str, Path)) else list(files)
