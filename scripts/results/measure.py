"""Measures every data set: trains the models that are missing, compares all methods, and writes the tables.

    bash scripts/results.sh
    bash scripts/results.sh --only etth1,pool --seeds 1

The rows are in docs/results/every_data_set.csv, which is rewritten after each comparison, together with the tables in
the documents. Started again, it continues interrupted trainings, and measures only what is missing, or what was
measured with other checkpoints, data or windows. To measure something again, delete its rows.
"""
import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exp.program import exit_code
from scripts.results.entries import BATCH, BY_NAME, ENTRIES, SEEDS, Entry, label

if TYPE_CHECKING:  # importing torch takes seconds, during which Ctrl-C must work too
    from exp.flags import Parser
    from scripts.results.plans import Plan
    from scripts.results.table import Table

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "every_data_set.csv"


def build_parser() -> "Parser":
    from exp.flags import Parser, reader
    from exp.limits import COUNT
    parser = Parser(prog="measure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--only", metavar="A,B,...", help="entries to measure: " + ", ".join(BY_NAME))
    parser.add_argument("--seeds", type=reader(COUNT), default=len(SEEDS),
                        help="at most so many seeds of each entry (default: 3 of etth1 and pool, 1 of the others)")
    parser.add_argument("--table", action="store_true", help="measure nothing, only write the tables again")
    return parser


def chosen(only: str | None) -> list[Entry]:
    """Entries by name, in the order of the table. Raises UserError for a name that there is not."""
    from utils.errors import UserError
    names = list(BY_NAME) if only is None else [name.strip() for name in only.split(",")]
    for name in names:
        if name not in BY_NAME:
            raise UserError(f"--only {name}: there is no such entry: give some of {','.join(BY_NAME)}")
    return [entry for entry in ENTRIES if entry.name in names]


def work(argv: Sequence[str] | None) -> None:
    own = build_parser().parse_args(argv)
    from exp.ownership import locked_file
    from scripts.results.documents import write_documents
    from scripts.results.table import Table
    from utils.errors import UserError
    entries = chosen(own.only)
    with locked_file(TABLE, "wait for it, or stop it"):
        table = Table(TABLE)
        write_documents(ROOT, table.rows)
        failed = [] if own.table else [problem for entry in entries for seed in SEEDS[:min(own.seeds, entry.seeds)]
                                       for problem in measure(table, entry, seed)]
    if failed:
        raise UserError(f"{len(failed)} failed, all other rows are in {TABLE.relative_to(ROOT)}: {'; '.join(failed)}")
    print(f"table: {TABLE.relative_to(ROOT)}")


def measure(table: "Table", entry: Entry, seed: int) -> list[str]:
    """Trains and compares what is missing of an entry; returns what failed, in words."""
    from scripts.results.plans import plan_of_seed
    from utils.errors import UserError
    what = f"{entry.name}, seed {seed}"
    try:
        plan = plan_of_seed(entry.settings, seed)
        train(plan, what)
    except UserError as error:
        return [_failed(what, error)]
    failed = []
    for files, horizon, flags in plan.comparisons(entry):
        where = f"{what}, {label(files)}, horizon {horizon}"
        try:
            compare(table, plan, {"entry": entry.name, "data": label(files), "seed": seed, "horizon": horizon}, flags,
                    where)
        except UserError as error:
            failed.append(_failed(where, error))
    return failed


def _failed(where: str, error: Exception) -> str:
    from exp.flags import in_flags
    print(f"failed: {where}: {in_flags(str(error))}", flush=True)
    return f"{where}: {in_flags(str(error))}"


def train(plan: "Plan", what: str) -> None:
    from scripts.results.plans import missing
    for model, flags in (("target", plan.target), ("draft", plan.draft)):
        left = missing(flags)
        if left is not None:
            print(f"== {what}: training the {model}", flush=True)
            run_program(left)


def compare(table: "Table", plan: "Plan", of: dict, flags: list[str], where: str) -> None:
    from scripts.results.documents import write_documents
    from scripts.results.plans import used_by
    from scripts.results.table import rows_of
    used = used_by(plan, flags)
    if table.has(of, used):
        return
    print(f"== {where}: comparing", flush=True)
    folder = Path(run_program(flags)["table"]).parent
    metrics = json.loads((ROOT / folder / "metrics.json").read_text(encoding="utf-8"))
    table.put(rows_of(of, used, metrics))
    write_documents(ROOT, table.rows)


def run_program(flags: Sequence[str]) -> dict[str, str]:
    """Runs run.py and passes on what it prints; returns its lines `name: value`.

    Raises UserError with its last line, which says why, if it fails. An interruption reaches it through this process
    alone, once; should this one be killed, it ends for want of a reader.
    """
    from utils.errors import UserError
    said: dict[str, str] = {}
    last = ""
    child = subprocess.Popen([sys.executable, "run.py", *flags], cwd=ROOT, text=True, errors="backslashreplace",
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
            name, colon, value = last.partition(": ")
            said |= {name: value} if colon else {}
        child.wait()
    finally:
        child.terminate()  # nothing where it has ended
        child.wait()
    if child.returncode == 2:
        raise UserError(last.removeprefix("error: "))
    if child.returncode:
        raise UserError(f"run.py ended with exit code {child.returncode}, after the line '{last}'")
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, or something failed (one line on stderr says what); 130 or 143 interrupted."""
    return exit_code(lambda: work(argv), f"BATCH ({BATCH}) in scripts/results/entries.py",
                     "the rows so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
