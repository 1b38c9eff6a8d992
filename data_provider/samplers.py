"""Which windows make up the batches of an epoch: a function of (seed, epoch) alone.

A sampler can start in the middle of an epoch and be split among processes, so that a resumed run sees exactly the
batches that an uninterrupted one would have seen.
"""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

MOST_PERMUTED = 2**24  # windows: 128 MiB of numbers; nobody makes a whole pass over more


class BatchSampler(Sampler):
    """Batches of an epoch over `size` windows, or of one process's share of them."""

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
        """The batches from `first_batch` on."""
        yield from self.batches()

    @abstractmethod
    def batches(self) -> Iterator[list[int]]:
        ...

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch

    def generator(self, batch: int) -> torch.Generator:
        """The random numbers of one batch of this process, where batches are drawn one by one."""
        words = np.random.SeedSequence((self.seed, self.epoch, batch, self.rank)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(words[0] >> 1))


class EpochSampler(BatchSampler):
    """Every window once per epoch, in random order; of more than MOST_PERMUTED, a random choice of as many."""

    def batches(self) -> Iterator[list[int]]:
        if self.size > MOST_PERMUTED:
            yield from self._drawn()
            return
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        if self.world_size > 1:
            # equal shares: a process with one batch more than the others would wait for them forever
            order = order[:self.size // self.world_size * self.world_size][self.rank::self.world_size]
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield order[batch * self.batch_size:(batch + 1) * self.batch_size].tolist()

    def _drawn(self) -> Iterator[list[int]]:
        for batch in range(self.first_batch, self.batches_per_epoch):
            yield torch.randint(self.size, (self.batch_size,), generator=self.generator(batch)).tolist()


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
            series = order[torch.arange(self.batch_size) % len(order)]
            share = torch.rand(self.batch_size, generator=generator, dtype=torch.float64)
            yield (self.first_items[series] + (share * self.counts[series]).long()).tolist()
