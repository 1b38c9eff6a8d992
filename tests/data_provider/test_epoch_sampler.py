"""The order in which a training sees its windows, epoch by epoch and process by process."""
import pytest
import torch

from data_provider import samplers
from data_provider.samplers import EpochSampler


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


@pytest.mark.parametrize("size, world", [(96, 2), (103, 2), (103, 4), (8, 3), (41, 4), (2, 4)])
def test_joint_batches_of_processes_are_those_of_one_process(size, world):
    """So that a run of several takes the steps of a run on one device; 41 windows leave 1 to the last batch."""
    one = EpochSampler(size, 5 * world, seed=1)
    shares = [EpochSampler(size, 5, 1, rank, world) for rank in range(world)]
    assert {share.batches_per_epoch for share in shares} == {one.batches_per_epoch}
    for epoch in range(2):
        for batch, (whole, *parts) in enumerate(zip(order(one, epoch), *(order(share, epoch) for share in shares),
                                                    strict=True)):
            weights = [share.weight(batch) for share in shares]
            assert one.weight(batch) == 1 and sum(weights) == pytest.approx(world)
            # every window counts alike in the mean over processes; those of weight 0 are there to take the step along
            counted = [(item, weight / len(part) / world) for part, weight in zip(parts, weights) if weight
                       for item in part]
            assert sorted(item for item, _ in counted) == sorted(whole) and all(parts)
            assert [share for _, share in counted] == pytest.approx([1 / len(whole)] * len(whole))


def test_more_windows_than_can_be_permuted_are_drawn_together(monkeypatch):
    monkeypatch.setattr(samplers, "MOST_PERMUTED", 50)
    one = order(EpochSampler(103, 16, seed=1), 0)
    two = [order(EpochSampler(103, 8, 1, rank, 2), 0) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == [sorted(batch) for batch in one]
    assert EpochSampler(103, 8, 1, 1, 2).weight(len(one) - 1) == 1  # all batches are whole
