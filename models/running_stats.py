"""The statistics of every patch of a series that grows, as a cache needs them: those of a patch never change again.

A cache asks for the statistics of the patches at some times, after it has said which patches there are:

    stats.write(first, patches)      patches [B, k, P, C] of all rows at times first, first + 1, ...
    stats.write_after(times, patches)    at times [B], [B] + 1, ... of each row
    stats.at(times)                  -> PatchStats of the patches at a range of times, or at [R, m] of each row
    stats.select(rows)
"""
from __future__ import annotations

import torch

from layers.normalisation import PastStats, PatchStats, SampleStats, moments_of_past, patch_moments
from utils.buffers import read_at, write_after


class FrozenStats:
    """Those of the context, for all patches."""

    def __init__(self, stats: PatchStats):
        self.stats = stats

    def write(self, first: int, patches: torch.Tensor) -> None:
        pass

    def write_after(self, times: torch.Tensor, patches: torch.Tensor) -> None:
        pass

    def at(self, times: torch.Tensor | range) -> PatchStats:
        return self.stats

    def select(self, rows: torch.Tensor) -> None:
        self.stats = self.stats.select(rows)


class KeptStats:
    """Two numbers of every patch and variable, `kept` [2, B, N + room, C], from which its statistics follow."""

    def __init__(self, context: torch.Tensor, room: int):
        B, N, _, C = context.shape
        of_context = self.of_context(context)
        self.kept = of_context.new_zeros(2, B, N + room, C)
        self.kept[:, :, :N] = of_context

    def of_context(self, context: torch.Tensor) -> torch.Tensor:
        """Context [B, N, P, C] -> [2, B, N or 1, C]"""
        return self.of_later(context)

    def of_later(self, patches: torch.Tensor) -> torch.Tensor:
        """Patches [B, k, P, C] -> [2, B, k, C]"""
        raise NotImplementedError

    def at(self, times: torch.Tensor | range) -> PatchStats:
        raise NotImplementedError

    def write(self, first: int, patches: torch.Tensor) -> None:
        self.kept[:, :, first:first + patches.shape[1]] = self.of_later(patches)

    def write_after(self, times: torch.Tensor, patches: torch.Tensor) -> None:
        for buffer, values in zip(self.kept, self.of_later(patches)):
            write_after(buffer, times, values)

    def select(self, rows: torch.Tensor) -> None:
        self.kept = self.kept[:, rows]

    def read(self, times: torch.Tensor) -> torch.Tensor:
        """At times [R, m], negative ones as 0: [2, B, m, C]."""
        return torch.stack([read_at(buffer, times.clamp(min=0)) for buffer in self.kept])


class TrailingStats(KeptStats):
    """Of the trailing window of every patch (`norm_mode` causal), from the moments of single patches."""

    def __init__(self, context: torch.Tensor, room: int, window: int):
        super().__init__(context, room)
        self.window = window

    def of_later(self, patches: torch.Tensor) -> torch.Tensor:
        return patch_moments(patches)

    def at(self, times: torch.Tensor | range) -> PatchStats:
        window = self.window
        if isinstance(times, range):
            if times.start >= window:
                return PatchStats.causal(self.kept[:, :, times.start - window:times.stop], None, window)
            times = torch.arange(times.start, times.stop, device=self.kept.device)[None]
        before = times[:, :1] - torch.arange(window, 0, -1, device=times.device)
        needed = torch.cat([before, times], dim=1)  # [R, window + m]
        return PatchStats.causal(self.read(needed), needed >= 0, window)


class AllPastStats(KeptStats):
    """Of everything from the beginning to the end of every patch, from the moments of single patches.

    missing: steps at the beginning of the context that are not there.
    """

    def __init__(self, context: torch.Tensor, room: int, missing: int):
        self.steps, self.missing, self.dtype = context.shape[2], missing, context.dtype
        super().__init__(context, room)
        if missing:
            self.kept[:, :, :1] = self.of_later(context[:, :1, missing:])

    def of_later(self, patches: torch.Tensor) -> torch.Tensor:
        return patch_moments(patches.double())

    def at(self, times: torch.Tensor | range) -> PastStats:
        if isinstance(times, range):
            mean, stdev = (part[:, times.start:] for part in
                           moments_of_past(self.kept[:, :, :times.stop], self.steps, self.missing))
            times = torch.arange(times.start, times.stop, device=self.kept.device)[None]
        else:
            times = times.clamp(min=0)
            mean, stdev = (read_at(part, times) for part in moments_of_past(self.kept, self.steps, self.missing))
        missing = None
        if self.missing:
            absent = torch.arange(self.steps, device=times.device) < self.missing
            missing = ((times == 0)[..., None] & absent)[..., None]  # [R, m, steps, 1]
        return PastStats(mean[:, :, None].to(self.dtype), stdev[:, :, None].to(self.dtype), None, missing)


class OwnStats(KeptStats):
    """Those of the context for its patches, and for every later patch those of its own values."""

    def of_context(self, context: torch.Tensor) -> torch.Tensor:
        stats = SampleStats.of(context)
        return torch.stack([stats.mean, stats.stdev])[:, :, :, 0]

    def of_later(self, patches: torch.Tensor) -> torch.Tensor:
        stats = SampleStats.of(patches, each=True)
        return torch.stack([stats.mean, stats.stdev])[:, :, :, 0]

    def at(self, times: torch.Tensor | range) -> SampleStats:
        kept = self.kept[:, :, times.start:times.stop] if isinstance(times, range) else self.read(times)
        return SampleStats(*kept[:, :, :, None])
