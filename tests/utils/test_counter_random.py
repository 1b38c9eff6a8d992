"""Counter-based random numbers: the published generator, draws that are the same in any block, their law."""
import math

import torch
from scipy import stats

from utils.counter_random import GAMMA, mix, redraws, seeds_of, uniforms


def test_it_is_splitmix64():
    # the first outputs that implementations of splitmix64 give for this seed
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                 16408922859458223821]
    got = mix(1234567 + torch.arange(1, 6) * GAMMA).tolist()
    assert [value % 2**64 for value in got] == published
    expected = [((value >> 12) + 0.5) / 2**52 for value in published]
    assert uniforms(torch.tensor([1234567]), 0, 5)[0].tolist() == expected


def test_a_draw_is_the_same_in_any_block_and_beside_any_row():
    seeds = torch.tensor([5, -7, 2**62])
    z, uniform = redraws(seeds, 0, 6, (4, 2))
    later, later_uniform = redraws(seeds[[2, 1]], 4, 2, (4, 2))
    assert torch.equal(later, z[[2, 1], 4:]) and torch.equal(later_uniform, uniform[[2, 1], 4:])


def test_draws_have_their_law_and_do_not_repeat():
    """p-values below 1e-6 are false alarms: three of them are computed."""
    z, uniform = redraws(torch.arange(100), 0, 100, (5, 2))  # seeds that are near each other
    assert stats.kstest(z.flatten(), "norm").pvalue > 1e-6
    assert stats.kstest(uniform.flatten(), "uniform").pvalue > 1e-6
    assert len(set(z.flatten().tolist())) == z.numel()
    a, b = z[..., 0, 0].flatten(), z[..., 0, 1].flatten()
    assert stats.norm.sf(abs(float((a * b).sum())) / math.sqrt(len(a))) > 1e-6


def test_a_seed_depends_on_every_element_and_its_place():
    noise = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    seeds = {int(seeds_of(noise)[0, 0])}
    for p in range(4):
        for c in range(3):
            changed = noise.clone()
            changed[0, 0, p, c] += 1e-6
            assert torch.equal(seeds_of(changed)[1], seeds_of(noise)[1])
            seeds.add(int(seeds_of(changed)[0, 0]))
    seeds.add(int(seeds_of(noise.flip(2))[0, 0]))
    assert len(seeds) == 14
