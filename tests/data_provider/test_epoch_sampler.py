"""The order in which a training sees its windows, epoch by epoch and process by process."""
import pytest
import torch

from data_provider.data_factory import EpochSampler


def order(sampler, epoch, batch=0):
    sampler.start_at(epoch, batch)
    return list(sampler)


def test_an_epoch_is_a_permutation():
    flat = sum(order(EpochSampler(103, 10, seed=1), 0), [])
    assert sorted(flat) == list(range(103)) and flat != list(range(103))


def test_epochs_and_seeds_differ_and_repeat_themselves():
    sampler = EpochSampler(103, 10, seed=1)
    first = order(sampler, 0)
    assert order(sampler, 1) != first
    assert order(sampler, 0) == first
    assert order(EpochSampler(103, 10, seed=2), 0) != first


def test_the_order_does_not_depend_on_the_global_random_state():
    sampler = EpochSampler(103, 10, seed=1)
    torch.manual_seed(0)
    first = order(sampler, 3)
    torch.manual_seed(99)
    assert order(sampler, 3) == first


def test_a_start_in_the_middle_continues_the_same_order():
    sampler = EpochSampler(103, 10, seed=1)
    whole = order(sampler, 2)
    assert order(sampler, 2, batch=4) == whole[4:]
    assert len(sampler) == len(whole) - 4 == 7
    assert sampler.batches_per_epoch == 11


@pytest.mark.parametrize("size, world", [(103, 2), (103, 4), (8, 3)])
def test_processes_get_equal_disjoint_shares(size, world):
    shares = [order(EpochSampler(size, 5, seed=1, rank=rank, world_size=world), 0) for rank in range(world)]
    assert len({tuple(map(len, share)) for share in shares}) == 1
    flat = [i for share in shares for batch in share for i in batch]
    assert len(flat) == len(set(flat)) == size // world * world
    assert len(shares[0]) == EpochSampler(size, 5, 1, 0, world).batches_per_epoch


def test_joint_batches_of_processes_are_those_of_one_process():
    # so that a distributed run is comparable with a run on one device
    one = order(EpochSampler(96, 16, seed=1), 0)
    two = [order(EpochSampler(96, 8, seed=1, rank=rank, world_size=2), 0) for rank in range(2)]
    for whole, a, b in zip(one, *two):
        assert sorted(whole) == sorted(a + b)
