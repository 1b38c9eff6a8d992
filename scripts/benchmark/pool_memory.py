"""Training on a pool of npy files: peak memory, the time until the first step, and the time to load a batch.

    python -m scripts.benchmark.pool_memory [--gigabytes 4] [--folder FOLDER] [--out FILE.csv]

Makes a pool of random walks in the layout of UTSD, folders of domains with files [T] or [T, C] in float32: three
quarters of it in 20 long files, the rest in files of half a megabyte. Then starts a training in a separate process for
every combination of --balance, --subset_rand_ratio and --num_workers, and ends it after a few steps. The model is tiny:
what is measured is the data. The pool is removed at the end. Linux, CPU.
"""
import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
from tqdm import tqdm

import run as program
from data_provider.data_factory import BALANCES
from exp.flags import Parser, reader
from exp.program import exit_code
from exp.report.results import format_table, write_csv
from exp.train.trainer import Trainer
from scripts.benchmark.decode_memory import peak_mib
from utils.limits import Number

LONG_FILES, SMALL_BYTES = 20, 500_000
WIDTHS = (None, 1, 7, 3)  # variables of one file after another; None: [T]
BATCH, STEPS = 256, 20
RATIOS, WORKERS = (1.0, 0.001), (0, 2)
COLUMNS = ["gigabytes", "files", "windows", "balance", "subset_rand_ratio", "num_workers", "peak_mib", "worker_mib",
           "first_step_s", "load_ms"]
FLAGS = (f"--data_path pool --seq_len 672 --input_token_len 96 --batch_size {BATCH} --d_model 16 --n_heads 2 --d_ff 32 "
         "--test_windows 1 --test_pred_len 96 --quiet")


def make_pool(folder: Path, gigabytes: float, quiet: bool = True) -> int:
    """Writes the files of a pool below `folder`; returns their number."""
    long = int(0.75e9 * gigabytes / LONG_FILES)
    sizes = [long] * LONG_FILES + [SMALL_BYTES] * max(1, int(0.25e9 * gigabytes / SMALL_BYTES))
    rng = np.random.default_rng(0)
    for number, size in enumerate(tqdm(sizes, desc="pool", unit="file", disable=quiet)):
        width = WIDTHS[number % len(WIDTHS)]
        steps = rng.standard_normal((size // 4 // (width or 1), width or 1), dtype=np.float32)
        place = folder / f"domain{number % 7}" / f"series{number}.npy"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, np.cumsum(steps, axis=0)[:, 0 if width is None else slice(None)])
    return len(sizes)


def measure(flags: list[str]) -> dict[str, float]:
    """Starts a training in this process and ends it after STEPS steps."""
    begun, started, ended, train_step = time.perf_counter(), list[float](), list[float](), Trainer._step

    def timed(trainer, x, y):
        started.append(time.perf_counter())
        loss = train_step(trainer, x, y)
        ended.append(time.perf_counter())
        if len(ended) == STEPS:
            found["windows"] = trainer.train_loader.batch_sampler.size
            raise KeyboardInterrupt
        return loss
    found: dict[str, float] = {}
    Trainer._step = timed  # type: ignore[method-assign]
    code = program.main(flags)
    if len(ended) < STEPS:
        raise SystemExit(code)
    loading = [start - end for start, end in zip(started[1:], ended)]
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # those that have ended, and were waited for
    return found | {"peak_mib": round(peak_mib(), 1), "worker_mib": round(worker, 1),
                    "first_step_s": round(started[0] - begun, 2), "load_ms": round(1000 * median(loading), 2)}


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=reader(Number(0.01, 1000)), default=4.0, help="size (default: %(default)s)")
    parser.add_argument("--folder", help="where to make the pool (default: the system's folder of temporary files)")
    parser.add_argument("--out", default="benchmark/pool_memory.csv")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help="measure one training with these flags of run.py, "
                        "in this process")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return exit_code(lambda: run(parser.parse_args(argv)), "--gigabytes",
                     "the table holds the trainings measured so far")


def run(args) -> None:
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    folder = Path(tempfile.mkdtemp(prefix="pool_memory_", dir=args.folder))
    try:
        files = make_pool(folder / "pool", args.gigabytes, args.quiet)
        rows = []
        for cell in tqdm(list(product(BALANCES, RATIOS, WORKERS)), unit="training", disable=args.quiet):
            rows.append({"gigabytes": args.gigabytes, "files": files} | measured(folder, *cell))
            write_csv(Path(args.out), rows, COLUMNS)  # an interrupted run keeps the cells measured so far
    finally:
        shutil.rmtree(folder)
    print(format_table(rows, {key: key for key in COLUMNS}))
    print(f"table: {args.out}")


def measured(folder: Path, balance: str, ratio: float, workers: int) -> dict:
    """A row of the table, from a process of its own."""
    cell = {"balance": balance, "subset_rand_ratio": ratio, "num_workers": workers}
    flags = [*FLAGS.split(), "--root_path", str(folder), "--checkpoints", str(folder / "checkpoints"),
             *(word for name, value in cell.items() for word in (f"--{name}", str(value)))]
    alone = [sys.executable, "-m", "scripts.benchmark.pool_memory", "--measure", *flags]
    said = subprocess.run(alone, stdout=subprocess.PIPE, text=True, check=True).stdout
    return cell | json.loads(said.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
