"""Data sets by name, and the loaders of their splits."""
from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from data_provider.data_loader import UTSD, MultivariateDatasetBenchmark, SeriesWindows, UnivariateDatasetBenchmark
from data_provider.samplers import EpochSampler, OrderedBatches, SeriesSampler
from utils.errors import UserError

DATASETS = {
    "MultivariateDatasetBenchmark": MultivariateDatasetBenchmark,
    "UnivariateDatasetBenchmark": UnivariateDatasetBenchmark,
    "Utsd": UTSD,
    "Utsd_Npy": UTSD,
}
WHOLE_FOLDERS = {"Utsd": "**/*.csv", "Utsd_Npy": "**/*.npy"}  # kinds that read these files unless told otherwise
BALANCES = ("series", "windows")


def batch_as_is(batch):
    """Identity: `__getitems__` already returns a batch."""
    return batch


def leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ignores Ctrl-C and SIGTERM, which reach a whole group of processes: a worker would print a traceback of its own,
    or take the batch with it that its parent waits for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def evenly_spaced(count: int, size: int) -> torch.Tensor:
    """`count` whole numbers from 0 to size - 1."""
    # single precision cannot tell larger whole numbers apart, and would end beyond the last of them
    dtype = torch.float32 if size <= 2**24 else torch.float64
    return torch.linspace(0, size - 1, count, dtype=dtype).long()


def spread_windows(dataset: SeriesWindows, count: int | None, name: str = "test_windows") -> Sequence[int]:
    """Items of `count` windows per series, evenly spaced from the first to the last; None: all items.

    A shorter series among longer ones has all of its windows. Raises UserError if no series has as many; name: the
    setting that asks for them.
    """
    if count is None:
        return range(len(dataset))
    most = int(dataset.counts.max())
    if count > most:
        raise UserError(f"`{name}` {count}: the {dataset.cut.split} part has {most} windows (per series): give at "
                        "most that many, or leave it out")
    first, spread = 0, []
    for windows in dataset.counts.tolist():
        spread.append(first + evenly_spaced(min(count, windows), windows))
        first += windows
    return torch.cat(spread).tolist()


class Loader(DataLoader):
    """A DataLoader whose workers' errors come out as they raised them, in one line, and end it at once."""

    def __iter__(self):
        try:
            yield from super().__iter__()
        except Exception as error:
            told = str(error.args[0]) if error.args else ""
            if "Original Traceback" not in told:
                raise
            # torch leaves a cycle of this error and the frames behind it, which hold the iterator: collected in a cycle
            # it cannot tell its workers to end, and the program would wait for them forever
            error.with_traceback(None)
            if isinstance(error, (UserError, OSError)):
                raise UserError(told.strip().splitlines()[-1].partition(": ")[2]) from None
            raise error from None


def train_loader(dataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1, num_workers: int = 0,
                 counts: torch.Tensor | None = None) -> DataLoader:
    """Batches shuffled by an `EpochSampler`; counts [n_series], the windows of every series: by a `SeriesSampler`."""
    sampler = EpochSampler(len(dataset), batch_size, seed, rank, world_size) if counts is None \
        else SeriesSampler(counts, batch_size, seed, rank, world_size)
    return Loader(dataset, batch_sampler=sampler, **_common(num_workers))


def ordered_loader(dataset, batch_size: int, items: Sequence[int] | None = None, num_workers: int = 0) -> DataLoader:
    """Batches in order, of all items or of those given."""
    return Loader(dataset, batch_size=batch_size, sampler=items, **_common(num_workers))


def shared_loader(dataset, items: Sequence[int], sizes: Sequence[int], rank: int = 0, world_size: int = 1,
                  num_workers: int = 0) -> DataLoader:
    """The windows in order, in batches of these sizes; of several processes, the batches of one."""
    return Loader(dataset, batch_sampler=OrderedBatches(items, sizes, rank, world_size), **_common(num_workers))


def _common(num_workers: int) -> dict[str, Any]:
    # a separate generator: opening a loader draws a seed; from the global generator that would shift every later
    # dropout mask, and a resumed run opens one more loader than an uninterrupted one
    return dict(num_workers=num_workers, collate_fn=batch_as_is, generator=torch.Generator(),
                worker_init_fn=leave_interrupts_to_the_parent)
