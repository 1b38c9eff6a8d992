"""Data sets by name, and the loaders of their splits."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from data_provider.data_loader import MultivariateDatasetBenchmark, UnivariateDatasetBenchmark
from utils.errors import UserError

DATASETS = {
    "MultivariateDatasetBenchmark": MultivariateDatasetBenchmark,
    "UnivariateDatasetBenchmark": UnivariateDatasetBenchmark,
}


def data_file(root_path: str | None, data_path: str) -> Path:
    """root_path / data_path; root_path defaults to $DATASET_ROOT, else ./dataset."""
    return Path(root_path or os.environ.get("DATASET_ROOT", "./dataset")) / data_path


class EpochSampler(Sampler):
    """A permutation that depends on (seed, epoch) alone, can start in the middle, and can be split among processes.

    A resumed run therefore sees exactly the batches that an uninterrupted one would have seen.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_batch = 0

    def start_at(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.first_batch = epoch, batch

    @property
    def batches_per_epoch(self) -> int:
        share = self.size // self.world_size if self.world_size > 1 else self.size
        return -(-share // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        if self.world_size > 1:
            # equal shares: a process with one batch more than the others would wait for them forever
            order = order[:self.size // self.world_size * self.world_size][self.rank::self.world_size]
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield order[batch * self.batch_size:(batch + 1) * self.batch_size].tolist()

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch


def batch_as_is(batch):
    """Identity: `__getitems__` already returns a batch."""
    return batch


def leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ignores Ctrl-C and SIGTERM, which reach a whole group of processes: a worker would print a traceback of its own,
    or take the batch with it that its parent waits for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def spread_windows(dataset, count: int | None) -> list[int]:
    """Items of `count` windows per series, evenly spaced from the first to the last; None: all items."""
    if count is None:
        return list(range(len(dataset)))
    if count > dataset.windows:
        raise UserError(f"`test_windows` {count}: the test part has {dataset.windows} windows (per series): give at "
                        "most that many, or leave it out")
    windows = torch.linspace(0, dataset.windows - 1, count).long()
    return (torch.arange(dataset.n_series)[:, None] * dataset.windows + windows).flatten().tolist()


def train_loader(dataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
                 num_workers: int = 0) -> DataLoader:
    """Batches shuffled by an `EpochSampler`."""
    sampler = EpochSampler(len(dataset), batch_size, seed, rank, world_size)
    return DataLoader(dataset, batch_sampler=sampler, **_common(num_workers))


def ordered_loader(dataset, batch_size: int, items: list[int] | None = None, num_workers: int = 0) -> DataLoader:
    """Batches in order, of all items or of those given."""
    return DataLoader(dataset, batch_size=batch_size, sampler=items, **_common(num_workers))


def _common(num_workers: int) -> dict[str, Any]:
    # a separate generator: opening a loader draws a seed; from the global generator that would shift every later
    # dropout mask, and a resumed run opens one more loader than an uninterrupted one
    return dict(num_workers=num_workers, collate_fn=batch_as_is, generator=torch.Generator(),
                worker_init_fn=leave_interrupts_to_the_parent)
