"""Patches that a cache with one length for all rows encodes: what FromCache costs in a batch (docs/YOUR_MODEL.md).

    python -m scripts.benchmark.lockstep

Proposals are accepted at random with a set probability. The counts leave the context out and do not depend on the
machine: patches encoded per row, and passes of the batch, averaged over 256 rows.
"""
import argparse
import sys

import torch

from exp.flags import Parser
from exp.program import exit_code
from exp.report.results import format_table
from scripts.benchmark.decode_speed import Forced
from utils.adapters import FromCache
from utils.speculative_decoder import decode_speculative

CONTEXT, PATCHES, ROWS = 14, 30, 256
BATCHES, PROPOSALS, ACCEPTANCES = (1, 8, 64), (4, None), (0.7, 0.9, 0.97)


class Counting:
    """A model that predicts nothing of interest and counts what it is given; patches of one step."""

    def __init__(self) -> None:
        self.patches = self.passes = 0

    def step(self, patches: torch.Tensor, cache: list[int]) -> torch.Tensor:
        self.patches += patches.shape[0] * patches.shape[1]
        self.passes += 1
        cache.extend([0] * patches.shape[1])
        return 0.9 * patches

    def decodable(self) -> FromCache:
        def crop(cache: list[int], length: int) -> None:
            del cache[length:]
        return FromCache(self.step, 1, list, crop, select=lambda cache, rows: None)


def measure(batch: int, proposals: int | None, acceptance: float) -> str:
    """'patches in passes' of the target."""
    torch.manual_seed(0)
    target = Counting()
    for _ in range(ROWS // batch):
        decode_speculative(target.decodable(), Counting().decodable(), torch.randn(batch, CONTEXT, 1), PATCHES,
                           Forced(acceptance), proposals)
    encoded = target.patches / ROWS - CONTEXT
    return f"{encoded:.0f} in {target.passes * batch / ROWS:.0f}"


def run() -> None:
    rows = [{"accepted": f"{100 * acceptance:.0f} %", "proposals": str(proposals or "all")}
            | {f"batch {batch}": measure(batch, proposals, acceptance) for batch in BATCHES}
            for proposals in PROPOSALS for acceptance in ACCEPTANCES]
    print(format_table(rows, {key: key for key in rows[0]}))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def work() -> None:
        parser.parse_args(argv)
        run()
    return exit_code(work, "nothing: it needs little", "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
