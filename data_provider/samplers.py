"""Which windows make up the batches of an epoch: a function of (seed, epoch) alone.

A sampler can start in the middle of an epoch and be split among processes, so that a resumed run sees exactly the
batches that an uninterrupted one would have seen.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
import torch
from torch.utils.data import Sampler

MOST_PERMUTED = 2**24  # windows: 128 MiB of numbers; nobody makes a whole pass over more


class BatchSampler(Sampler):
    """Batches of an epoch over `size` windows; of several processes, the share of one in every batch.

    A batch of `world_size` processes with `batch_size` windows each is that of one process with as many in all, so that
    both take the same steps. The last of an epoch, which is smaller, is shared as evenly as it goes: see `weight`.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_batch = 0

    def start_at(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.first_batch = epoch, batch

    @property
    def joint_size(self) -> int:
        """Windows of all processes in one batch."""
        return self.batch_size * self.world_size

    @property
    def batches_per_epoch(self) -> int:
        return -(-self.size // self.joint_size)

    def windows_in(self, batch: int) -> int:
        """Windows of all processes in one batch of an epoch."""
        return self.joint_size

    def weight(self, batch: int) -> float:
        """The factor on this process's mean loss that makes the mean over processes that over all windows of a batch.

        1 but for the last batch of an epoch, in which one process may have a window more than another. One that has
        none is given a window that others have, with weight 0: it must take the step with them.
        """
        windows = self.windows_in(batch)
        return len(range(self.rank, windows, self.world_size)) * self.world_size / windows

    def share(self, windows: list[int]) -> list[int]:
        """This process's part of the windows of a batch."""
        return windows[self.rank::self.world_size] or windows[:1]

    def __iter__(self) -> Iterator[list[int]]:
        """The batches from `first_batch` on."""
        yield from self.batches()

    @abstractmethod
    def batches(self) -> Iterator[list[int]]:
        ...

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch

    def generator(self, batch: int) -> torch.Generator:
        """The random numbers of one batch of all processes, where batches are drawn one by one."""
        words = np.random.SeedSequence((self.seed, self.epoch, batch, 0)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0] >> 1))


class EpochSampler(BatchSampler):
    """Every window once per epoch, in random order; of more than MOST_PERMUTED, a random choice of as many."""

    def batches(self) -> Iterator[list[int]]:
        if self.size > MOST_PERMUTED:
            yield from self._drawn()
            return
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield self.share(order[batch * self.joint_size:(batch + 1) * self.joint_size].tolist())

    def windows_in(self, batch: int) -> int:
        return self.joint_size if self.size > MOST_PERMUTED else min(self.joint_size,
                                                                     self.size - batch * self.joint_size)

    def _drawn(self) -> Iterator[list[int]]:
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield self.share(torch.randint(self.size, (self.joint_size,), generator=self.generator(batch)).tolist())


class OrderedBatches(Sampler):
    """Windows in order, in batches of given sizes; of several processes, every world_size-th batch for each.

    items: the windows; they have sum(sizes) of them.
    """

    def __init__(self, items: Sequence[int], sizes: Sequence[int], rank: int = 0, world_size: int = 1):
        self.items, self.sizes, self.rank, self.world_size = items, sizes, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        ends = list(accumulate(self.sizes))
        for number in range(self.rank, len(ends), self.world_size):
            yield list(self.items[ends[number] - self.sizes[number]:ends[number]])

    def __len__(self) -> int:
        return len(range(self.rank, len(self.sizes), self.world_size))


def batch_sizes(windows: int, batch_size: int, most: int | None = None) -> list[int]:
    """Sizes of the batches of so many windows, each in parts of at most `most`."""
    most = batch_size if most is None else most
    return [min(most, end - part) for first in range(0, windows, batch_size)
            for end in (min(first + batch_size, windows),) for part in range(first, end, most)]


class SeriesSampler(BatchSampler):
    """Every series equally often, whatever its length; its windows at random, with replacement.

    An epoch has as many batches as one over all windows. A batch holds windows of every series, as many of each as of
    the next or one more, if it is large enough; otherwise of a random choice of series. counts [n_series]: windows.
    """

    def __init__(self, counts: torch.Tensor, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        super().__init__(int(counts.sum()), batch_size, seed, rank, world_size)
        self.counts, self.first_items = counts, counts.cumsum(0) - counts

    def batches(self) -> Iterator[list[int]]:
        for batch in range(self.first_batch, self.batches_per_epoch):
            generator = self.generator(batch)
            order = torch.randperm(len(self.counts), generator=generator)
            series = order[torch.arange(self.joint_size) % len(order)]
            place = torch.rand(self.joint_size, generator=generator, dtype=torch.float64)
            yield self.share((self.first_items[series] + (place * self.counts[series]).long()).tolist())
