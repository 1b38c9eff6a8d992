"""Rotary position embedding on the first half of every head's dimensions."""
import torch


def rotary_tables(positions: torch.Tensor, head_dim: int, base: float = 10000.0):
    """Cosines and sines for `apply_rotary`.

    positions: [..., T] integer token positions (c*N + t in Timer-XL).
    Returns two [..., T, head_dim // 2] tables. Only the first half of a head is rotated, in interleaved pairs
    (2i, 2i+1), pair i by the angle position * base^(-2i / (head_dim/2)).
    Raises ValueError if the first half of a head cannot be split into pairs.
    """
    if head_dim % 4:
        raise ValueError(f"rotary embedding needs a head width divisible by 4, got {head_dim}")
    width = head_dim // 2
    frequency = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angle = positions.float()[..., None] * frequency
    angle = angle.repeat_interleave(2, dim=-1)
    return angle.cos(), angle.sin()


def apply_rotary(x: torch.Tensor, tables) -> torch.Tensor:
    """Rotates x [..., T, head_dim]; the second half of each head passes unchanged."""
    cos, sin = tables
    width = cos.shape[-1]
    rotated, rest = x[..., :width], x[..., width:]
    even, odd = rotated[..., 0::2], rotated[..., 1::2]
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat((rotated * cos + turned * sin, rest), dim=-1)
