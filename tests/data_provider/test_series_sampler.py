"""Batches that draw every series equally often."""
import pytest
import torch

from data_provider import samplers
from data_provider.samplers import EpochSampler, SeriesSampler

COUNTS = torch.tensor([1000, 10, 300])


def batches(sampler, epoch=0, first=0):
    sampler.start_at(epoch, first)
    return list(sampler)


def series_of(items):
    return torch.searchsorted(COUNTS.cumsum(0), torch.tensor(items), right=True)


def test_every_series_has_its_share_of_every_batch():
    found = batches(SeriesSampler(COUNTS, 32, seed=1))
    assert len(found) == SeriesSampler(COUNTS, 32, seed=1).batches_per_epoch == -(-1310 // 32)
    shares = torch.stack([torch.bincount(series_of(batch), minlength=3) for batch in found])
    assert ((shares == 10) | (shares == 11)).all() and (shares.sum(dim=1) == 32).all()
    assert (shares == 11).any(dim=0).all()  # the rest goes to one after another


def test_a_batch_smaller_than_the_series_has_some_of_them_once():
    found = [series_of(batch).tolist() for batch in batches(SeriesSampler(COUNTS, 2, seed=1))]
    assert all(len(set(batch)) == 2 for batch in found) and {one for batch in found for one in batch} == {0, 1, 2}


def test_windows_are_drawn_evenly_within_a_series():
    items = torch.tensor([item for epoch in range(40) for batch in batches(SeriesSampler(COUNTS, 300, seed=3), epoch)
                          for item in batch])
    second = items[(items >= 1000) & (items < 1010)] - 1000
    shares = torch.bincount(second, minlength=10) / len(second)
    assert len(second) == pytest.approx(40 * 5 * 100, abs=40 * 5)
    assert (shares - 0.1).abs().max() < 0.01  # 4.7 standard deviations of 20,000 draws: one false alarm in 100,000


def test_batches_depend_on_seed_and_epoch_alone_and_can_start_in_the_middle():
    sampler = SeriesSampler(COUNTS, 32, seed=1)
    first = batches(sampler)
    assert batches(sampler) == first != batches(sampler, 1) and batches(SeriesSampler(COUNTS, 32, seed=2)) != first
    assert batches(sampler, 0, 30) == first[30:]


def test_joint_batches_of_processes_are_those_of_one_process():
    shares = [SeriesSampler(COUNTS, 16, 1, rank, 2) for rank in range(2)]
    whole = batches(SeriesSampler(COUNTS, 32, seed=1))
    assert [sorted(a + b) for a, b in zip(*map(batches, shares), strict=True)] == [sorted(batch) for batch in whole]
    assert {share.weight(batch) for share in shares for batch in range(len(whole))} == {1}


def test_more_windows_than_can_be_permuted_are_drawn(monkeypatch):
    monkeypatch.setattr(samplers, "MOST_PERMUTED", 50)
    found = batches(EpochSampler(100, 10, seed=1))
    assert len(found) == 10 and all(len(batch) == 10 for batch in found)
    flat = sum(found, [])
    assert set(flat) <= set(range(100)) and 50 < len(set(flat)) < 90  # 63 expected, with replacement
    assert batches(EpochSampler(100, 10, seed=1), 0, 4) == found[4:]
