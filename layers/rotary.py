"""Rotary position embedding: on the first half of every head's dimensions (Timer-XL), or on all of them (Timer)."""
import torch

BASE = 10000.0


def rotary_table(positions: torch.Tensor, head_dim: int, whole: bool = False) -> torch.Tensor:
    """Rotations for `apply_rotary` (whole: for `apply_rotary_to_halves`): complex [..., T, head_dim // 2], one for each
    pair of dimensions.

    positions: [..., T] integer token positions (c*N + t in Timer-XL).
    whole: every pair is rotated, pair i by the angle position * base^(-2i / head_dim).
    Otherwise only the first half of a head is rotated, in interleaved pairs (2i, 2i+1), pair i by the angle
    position * base^(-2i / (head_dim/2)); the pairs of the second half are turned by nothing.
    Raises ValueError if the first half of a head cannot be split into pairs.
    """
    if head_dim % 4:
        raise ValueError(f"rotary embedding needs a head width divisible by 4, got {head_dim}")
    width = head_dim if whole else head_dim // 2
    frequency = BASE ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angle = positions.float()[..., None] * frequency
    turns = torch.polar(torch.ones_like(angle), angle)
    return turns if whole else turns.repeat(*[1] * (angle.dim() - 1), 2).where(
        torch.arange(width, device=positions.device) < width // 2, 1)


def apply_rotary(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotates x [..., T, head_dim]; the second half of each head passes unchanged.

    A pair of dimensions is a complex number, so that one kernel does it all: a tenth of the time of four products.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def apply_rotary_to_halves(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotates all of x [..., T, head_dim]: pair i is dimension i and dimension i + head_dim // 2."""
    turned = torch.complex(*x.float().chunk(2, dim=-1)) * table
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)
