"""Reads and writes of the static buffers [B, T, ...] of decode states, whose rows differ in length."""
import torch


def with_room(context: torch.Tensor, room: int) -> torch.Tensor:
    """A copy of context [B, N, P, C] with place for `room` patches after it: appending writes, rolling back only moves
    the number of patches that count."""
    B, N, P, C = context.shape
    buffer = context.new_zeros(B, N + room, P, C)
    buffer[:, :N] = context
    return buffer


def cut(patches: torch.Tensor, token_len: int) -> torch.Tensor:
    """Patches [B, k, P, C] as their tokens [B, k * P / T, T, C]."""
    return patches.flatten(1, 2).unflatten(1, (-1, token_len))


def write_after(buffer: torch.Tensor, times: torch.Tensor, values: torch.Tensor) -> None:
    """buffer[b, times[b] + j] = values[b, j] for values [B, k, ...]"""
    rows = torch.arange(len(times), device=times.device)[:, None]
    buffer[rows, times[:, None] + torch.arange(values.shape[1], device=times.device)] = values


def read_at(buffer: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """buffer [B, T, ...] at times [R, m], R = 1 or B -> [B, m, ...]"""
    if times.shape[0] == 1:
        return buffer.index_select(1, times[0])
    return buffer[torch.arange(len(times), device=times.device)[:, None], times]


def repeated(count: int, samples: int, device: torch.device) -> torch.Tensor:
    """Row numbers 0, 0, ..., 1, 1, ...: each of `count` rows `samples` times."""
    return torch.arange(count, device=device).repeat_interleave(samples)


def each_row(length: torch.Tensor | int, like: torch.Tensor) -> torch.Tensor:
    """A length of each row [B], as it is or from one for all; like [B]: the lengths so far."""
    return torch.full_like(like, length) if isinstance(length, int) else length
