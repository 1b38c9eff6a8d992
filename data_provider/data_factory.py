"""Data sets and loaders from flags."""
import os
import signal
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Sampler

from data_provider.data_loader import MultivariateDatasetBenchmark, UnivariateDatasetBenchmark
from utils.errors import UserError

DATASETS = {
    "MultivariateDatasetBenchmark": MultivariateDatasetBenchmark,
    "UnivariateDatasetBenchmark": UnivariateDatasetBenchmark,
}


def data_file(args) -> Path:
    """--root_path / --data_path; without --root_path the folder $DATASET_ROOT, else ./dataset."""
    return Path(args.root_path or os.environ.get("DATASET_ROOT", "./dataset")) / args.data_path


class EpochSampler(Sampler):
    """A permutation that depends on (seed, epoch) alone, can start in the middle, and can be shared among processes.

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

    def __iter__(self):
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
    """`__getitems__` has built the batch already."""
    return batch


def leave_interrupts_to_the_parent(_worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: a worker that died of it would print a traceback of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def spread_windows(dataset, count: int | None) -> list[int]:
    """The items of `count` windows of each series, evenly spread from the first to the last; None: all of them."""
    if count is None:
        return list(range(len(dataset)))
    if count > dataset.windows:
        raise UserError(f"--test_windows {count}: the test part has {dataset.windows} windows (of each series): give "
                        "fewer, or leave it out")
    windows = torch.linspace(0, dataset.windows - 1, count).long()
    return (torch.arange(dataset.series)[:, None] * dataset.windows + windows).flatten().tolist()


def data_provider(args, split: str, rank: int = 0, world_size: int = 1, context: int | None = None,
                  wrapper=None):
    """(data set, loader) of one split. Training batches are shuffled by an `EpochSampler`, others stay in order.

    context: steps before the forecast, where they are not those of the flags for this split. wrapper: maps the data
    set to the one that is loaded. --test_windows limits what the loader of the test split walks over, not
    the data set.
    """
    test = split == "test"
    dataset = DATASETS[args.data](
        data_file(args), split, context or (args.test_seq_len if test else args.seq_len), args.input_token_len,
        horizon=args.test_pred_len, subset_ratio=args.subset_rand_ratio)
    dataset = wrapper(dataset) if wrapper else dataset
    # a generator of its own: opening a loader draws a seed, from the global one it would shift every later dropout
    # mask, and a resumed run opens one loader more than an uninterrupted one
    common = dict(num_workers=args.num_workers, collate_fn=batch_as_is, generator=torch.Generator(),
                  worker_init_fn=leave_interrupts_to_the_parent)
    size = args.batch_size
    if split == "test" and args.test_windows is not None:
        common["sampler"] = spread_windows(dataset, args.test_windows)
    if split == "train":
        sampler = EpochSampler(len(dataset), size, args.seed, rank, world_size)
        return dataset, DataLoader(dataset, batch_sampler=sampler, **common)
    return dataset, DataLoader(dataset, batch_size=size, **common)
