"""Counter-based random numbers: each is a function of a seed and an index, computed without its predecessors.

splitmix64 (Steele, Lea & Flood 2014) in int64 tensors, whose products wrap. Draw i of a row depends neither on the
block it is drawn in nor on the other rows.
"""
from __future__ import annotations

import torch

GAMMA = 0x9E3779B97F4A7C15 - 2**64  # as signed integers: torch computes in int64
MIX_1, MIX_2 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's >> repeats the sign bit."""
    return (x >> bits) & (2**(64 - bits) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64: int64 -> int64, one to one."""
    x = (x ^ _shifted(x, 30)) * MIX_1
    x = (x ^ _shifted(x, 27)) * MIX_2
    return x ^ _shifted(x, 31)


def seeds_of(noise: torch.Tensor) -> torch.Tensor:
    """Seeds [...] from the bits of float noise [..., P, C], which must not be used for anything else."""
    bits = noise.float().contiguous().view(torch.int32).flatten(-2).long()
    place = torch.arange(bits.shape[-1], device=bits.device)
    return mix(mix(bits + place * GAMMA).sum(dim=-1))


def uniforms(seeds: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Numbers first .. first + count - 1 of the stream of each seed [r]: [r, count] float64 in (0, 1)."""
    counter = torch.arange(first + 1, first + count + 1, device=seeds.device)
    bits = _shifted(mix(seeds[:, None] + counter * GAMMA), 12)  # 52 bits: with 0.5 added, never 0 or 1
    return (bits.double() + 0.5) * 2.0**-52


def redraws(seeds: torch.Tensor, first: int, count: int,
            shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws first .. first + count - 1 of each seed [r]: normal [r, count, P, C] and uniform [r, count], float64."""
    size = shape[0] * shape[1] + 1
    values = uniforms(seeds, first * size, count * size).unflatten(1, (count, size))
    return torch.special.ndtri(values[..., 1:]).unflatten(-1, shape), values[..., 0]
