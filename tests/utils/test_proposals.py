"""The noise of a batch: every row has its own, whatever batch it is drawn in, and it has its law."""
import pytest
import torch
from scipy import stats

from utils.proposals import Noise

PARTS = ("proposal", "target", "uniform")


def drawn(rows, patches=5, patch_len=8, variables=3, seed=0, generator=None):
    generator = generator or torch.Generator().manual_seed(seed)
    return Noise.draw(torch.zeros(rows, 1, variables), patches, patch_len, generator)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (3, 8, 3), (8, 96, 7)])
@pytest.mark.parametrize("split", [(1, 1, 1, 1, 1, 1, 1), (4, 3), (2, 5)])
def test_rows_drawn_at_once_have_the_noise_of_rows_drawn_in_parts(shape, split):
    whole, generator = drawn(7, *shape), torch.Generator().manual_seed(0)
    parts = [drawn(rows, *shape, generator=generator) for rows in split]
    for name in PARTS:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name


def test_noise_has_its_shape_and_comes_from_its_generator():
    noise, again, other = drawn(4), drawn(4), drawn(4, seed=1)
    assert noise.proposal.shape == noise.target.shape == (4, 5, 8, 3) and noise.uniform.shape == (4, 5)
    for name in PARTS:
        assert torch.equal(getattr(again, name), getattr(noise, name))
        assert not (getattr(other, name) == getattr(noise, name)).any()
    torch.manual_seed(5)
    first = Noise.draw(torch.zeros(2, 1, 3), 5, 8)  # torch's own generator
    torch.manual_seed(5)
    assert torch.equal(Noise.draw(torch.zeros(2, 1, 3), 5, 8).target, first.target)


def test_noise_has_its_law_and_its_parts_are_independent():
    """p-values below 1e-6 are false alarms: nine of them are computed."""
    noise = drawn(2000, 4, 8, 3)
    proposal, target = noise.proposal.flatten().double(), noise.target.flatten().double()
    assert stats.kstest(proposal, "norm").pvalue > 1e-6 and stats.kstest(target, "norm").pvalue > 1e-6
    assert stats.kstest(noise.uniform.flatten(), "uniform").pvalue > 1e-6
    assert float(noise.uniform.min()) >= 0 and float(noise.uniform.max()) < 1

    def correlation(a, b):
        return float((a * b).mean() * len(a)**0.5 / (a.std() * b.std()))
    squares = [part.square() - part.square().mean() for part in (proposal, target)]
    pairs = [(proposal, target), squares, (proposal[:-1], proposal[1:]), (target[:-1], target[1:]),
             [part[:-1] * part[1:] for part in (proposal, target)],
             (noise.uniform.flatten().double() - 0.5, noise.proposal[:, :, 0, 0].flatten().double())]
    for a, b in pairs:
        assert 2 * stats.norm.sf(abs(correlation(a, b))) > 1e-6


def test_noise_is_finite_where_a_uniform_number_is_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.zeros(shape))
    edge = drawn(2)
    assert all(torch.isfinite(getattr(edge, name)).all() for name in PARTS)
    monkeypatch.setattr(torch, "rand", lambda *shape, generator=None: torch.full(shape, 1 - 2.0**-24))
    assert torch.isfinite(drawn(2).proposal).all()
