"""Peak memory of decoding by horizon: target alone with a cache, and speculative with every proposal accepted.

    python -m scripts.benchmark.decode_memory [--cells config:context:horizon:batch,...] [--out FILE.csv]

Each figure is the memory that a separate process needed beyond the loaded models: growth of its peak resident set
(Linux, CPU).
"""
import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from exp.flags import Parser
from exp.program import exit_code
from exp.report.results import format_table, write_csv
from scripts.benchmark.decode_speed import PATCH, Forced, build, parse_cells
from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_speculative, patches_in

DEFAULT = ",".join(f"preset:2880:{horizon}:64" for horizon in (336, 720, 1440, 2880))
MODES = ("cached", "speculative_forced")
COLUMNS = ["config", "context", "horizon", "batch", "mode", "peak_mib"]


def peak_mib() -> float:
    """Peak resident set of this process; getrusage would start from the peak of its parent."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def measure(name: str, context_len: int, horizon: int, batch: int, mode: str) -> float:
    """MiB that one decode needs at its peak, in this process."""
    variables, _, target, draft = build(name, context_len, horizon, "cpu")
    context = torch.randn(batch, context_len, variables)
    noise = Noise.draw(context, patches_in(horizon, PATCH), PATCH, torch.Generator().manual_seed(0))
    before = peak_mib()
    if mode == "cached":
        decode_alone(target, context, horizon)
    else:
        decode_speculative(target, draft, context, horizon, Forced(1.0), None, noise)
    return peak_mib() - before


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=DEFAULT, help="default: %(default)s")
    parser.add_argument("--out", default="benchmark/decode_memory.csv")
    parser.add_argument("--mode", choices=MODES, default=None, help="measure the one cell given, in this process")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return exit_code(lambda: run(parser.parse_args(argv)), "the sizes in --cells",
                     "the table holds the cells measured so far")


def run(args) -> None:
    cells = parse_cells(args.cells)
    if args.mode:
        print(measure(*cells[0], args.mode))
        return
    rows = []
    for text, cell in zip(tqdm(args.cells.split(","), unit="cell", disable=args.quiet), cells):
        for mode in MODES:
            alone = [sys.executable, "-m", "scripts.benchmark.decode_memory", "--cells", text, "--mode", mode]
            mib = float(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)
            rows.append(dict(zip(COLUMNS, (*cell, mode, round(mib, 1)))))
        write_csv(Path(args.out), rows, COLUMNS)  # an interrupted run keeps the cells measured so far
    print(format_table(rows, {key: key for key in COLUMNS}))
    print(f"table: {args.out}")


if __name__ == "__main__":
    sys.exit(main())
