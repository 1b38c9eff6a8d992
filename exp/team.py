"""The processes that share a run's work, and what they tell each other."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from utils.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """`size` processes, of which this one has number `rank`; alone unless torchrun has started several.

    group: they talk by it; None where this one is alone. What one sends is pickled, and must lie on the CPU: each
    process has a device of its own. All have to call the same methods in the same order.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def gather(self, part: T) -> list[T]:
        """The parts of all processes, in their order, in the main one; nothing in the others."""
        if self.size == 1:
            return [part]
        parts: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(part, parts, dst=0, group=self.group)
        return parts or []

    def everyone(self, part: T) -> list[T]:
        """The parts of all processes, in their order, in all of them."""
        if self.size == 1:
            return [part]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part, group=self.group)
        return parts

    def once(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, in all of them; the others wait for it. Its UserError ends all."""
        if self.size == 1:
            return work()
        sent: list[Any] = [None, None]
        if self.is_main:
            try:
                sent[0] = work()
            except UserError as error:
                sent[1] = str(error)
        dist.broadcast_object_list(sent, src=0, group=self.group)
        if sent[1] is not None:
            raise UserError(sent[1])
        return sent[0]

    def close(self) -> None:
        """Says goodbye: no process has to wait for this one any more."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Team()
