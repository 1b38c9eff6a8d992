"""Sweeps decoding parameters over one target and one draft: one row per cell, in a csv that is written atomically.

    bash scripts/sweeps/stochastic_draft_param_sweep.sh
    bash scripts/sweeps/stochastic_draft_param_sweep.sh --grid published --bias 1,2 --k 1,all

Cells are all distinct combinations of the values that apply to their rule. --grid gap, the default: every rule, with
tolerances and sigmas around the gaps between draft and target on validation windows. --grid published: the rule
simplified with fixed sigmas and biases. --sigma, --tol and the like replace single columns of either. A sweep that is
killed and started again with the same settings measures the missing cells only. It also takes the flags of run.py that
concern decoding, such as --root_path, --data_path, --batch_size, --seed, --rolling, --spec_repropose, --quiet.
"""
import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code

if TYPE_CHECKING:  # importing torch takes seconds, during which Ctrl-C must work too
    from exp.flags import Parser
    from exp.settings import Settings

# flags of run.py that a sweep passes on, besides those of an architecture (for checkpoints without args.json); all
# others are set by the sweep, or concern training and reports
PASSED_ON = {
    "root_path", "data_path", "data", "seq_len", "test_seq_len", "test_flag", "batch_size", "seed", "quiet", "compile",
    "bf16", "model", "rolling", "norm_roll",
    "spec_draft_model", "spec_repropose", "spec_temp", "spec_sigma_mode", "spec_covariance", "spec_width",
    "spec_sigma_adapt_c", "spec_accept_mse_tol",
}
# flag of run.py -> the sweep's own for the same thing
OWN_NAMES = {"spec_accept_rule": "rule", "spec_emit": "emit", "spec_sigma": "sigma", "spec_accept_bias": "bias",
             "spec_tol": "tol", "spec_k": "k", "test_pred_len": "horizon", "test_windows": "windows",
             "spec_draft_ckpt": "draft", "test_dir": "target", "test_file_name": "target", "checkpoints": "target"}
NAMED_ANYWAY = {"root_path", "data_path", "seq_len", "test_seq_len", "input_token_len", "batch_size", "seed", "quiet"}


def comma_separated(kind: Callable) -> Callable:
    """An argparse type: '1,2,2' -> [1, 2]"""
    def parse(text):
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))
    return parse


@contextmanager
def own_names() -> Iterator[None]:
    """Errors of the program below name the sweep's flags, where it has its own."""
    from exp.flags import in_flags
    from utils.errors import UserError
    try:
        yield
    except UserError as error:
        said = re.sub(r"--(\w+)", lambda flag: f"--{OWN_NAMES.get(flag[1], flag[1])}", in_flags(str(error)))
        raise UserError(said) from error


def build_parser() -> "Parser":
    from exp.flags import Parser, reader
    from exp.limits import COUNT, NON_NEGATIVE, POSITIVE
    from exp.sweep.grid import ALL, GRIDS
    from utils.acceptance import WAYS
    from utils.limits import OneOf, OrWord
    from utils.lossless import EMISSIONS
    limits = {"rule": OneOf(WAYS), "emit": OneOf(EMISSIONS), "sigma": POSITIVE, "bias": POSITIVE,
              "tol": NON_NEGATIVE, "k": OrWord(COUNT, ALL)}
    parser = Parser(prog="param_sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--grid", choices=list(GRIDS), default="gap", help="the values of the columns that are not "
                        "given: around the gap between draft and target, or as published (default: %(default)s)")
    for name, limit in limits.items():
        parser.add_argument(f"--{name}", type=comma_separated(reader(limit)), metavar="A,B,...",
                            help="; ".join(f"{grid}: {_default(grid, name)}" for grid in GRIDS))
    add, count = parser.add_argument, reader(COUNT)
    add("--target", required=True, help="checkpoint of the target, or its folder")
    add("--draft", required=True, help="checkpoint of the draft, or its folder")
    add("--horizon", type=count, default=336, help="steps of a forecast (default: %(default)s)")
    add("--windows", type=count, default=None,
        help="number of test windows per series, evenly spaced (default: 512, or all if there are fewer)")
    add("--out", type=Path, default=Path("test_results/sweep.csv"), help="the table (default: %(default)s)")
    add("--workers", type=count, default=1, help="cells measured in parallel; more than 1 needs Ray (default: 1)")
    add("--ray_address", default=None, help="address of a Ray cluster, or 'auto' (default: this machine)")
    add("--threads", type=count, default=None, help="threads per worker (default: the cores of this machine divided "
        "among the workers; on a cluster 1)")
    return parser


def _default(grid: str, name: str) -> str:
    from exp.sweep.grid import GRIDS, MEASURED
    column = GRIDS[grid][name]
    if grid == "gap" and name in MEASURED:
        return "measured"
    if isinstance(column, dict):
        return "that of the rule (simplified: both)"
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in column)


def shared_settings(own, given: dict[str, Any], rule: str) -> "Settings":
    """Settings shared by all cells, with absolute paths; given: flags of run.py; rule: one of the swept ones."""
    from data_provider.files import root
    from exp.options import settled
    from models.checkpoint import nearest
    from models.registry import checkpoint_in
    from utils.errors import UserError
    for flag, path in (("--target", own.target), ("--draft", own.draft)):
        if not checkpoint_in(path).is_file():
            raise UserError(f"{flag} {path} does not exist: train it (bash scripts/quickstart.sh SETTINGS trains both, "
                            f"for etth1 by default), or give another checkpoint{nearest(Path(path))}")
    target, draft = (checkpoint_in(path).resolve() for path in (own.target, own.draft))
    folder = os.path.realpath(root(given.get("root_path")))
    # some flags apply to the swept rules only, so one of these is set; the rule of each cell replaces it
    return settled({"batch_size": 64} | given | {
        "is_training": 0, "use_speculative": True, "spec_accept_rule": rule, "spec_draft_ckpt": str(draft),
        "test_pred_len": own.horizon, "checkpoints": str(target.parent.parent), "test_dir": target.parent.name,
        "test_file_name": target.name, "root_path": folder})


def refuse_foreign(given: dict[str, Any]) -> None:
    """Raises UserError for flags of run.py that a sweep has no use for, or a flag of its own."""
    from exp.section import fields_of
    from models.config import ModelConfig
    from utils.errors import UserError
    for name in sorted(set(given) - PASSED_ON - (set(fields_of(ModelConfig)) - {"dropout"})):
        own = OWN_NAMES.get(name)
        raise UserError(f"--{name} is not a flag of a sweep: " + (f"write --{own}" if own else "leave it out")
                        + " (--help lists them)")


def settings_of(bench, own, given: dict[str, Any]) -> dict[str, Any]:
    """Settings stored in the table: everything that its rows depend on, and the paths of the files."""
    from exp.flags import flat
    from exp.sweep.table import REPROPOSED
    from utils.lossless import Lossless
    from utils.proposer import source_of
    used = flat(bench.settings)
    places = {"target": own.target, "draft": own.draft, "data": used["data_path"]}
    further = " ".join(f"--{name} {given[name]}" for name in sorted(set(given) - NAMED_ANYWAY))
    machine = {"device": f"Ray cluster {own.ray_address}"} if own.ray_address else {}
    return places | bench.describe() | machine | {
        "workers": own.workers, REPROPOSED: source_of(Lossless, bench.settings.spec.repropose),
        "further_flags": further or "none"}


def sweep(argv: list[str] | None) -> None:
    from exp.flags import given_flags
    parser = build_parser()
    own, rest = parser.parse_known_args(argv)
    with own_names():
        given = given_flags(rest, parser)
    refuse_foreign(given)
    with own_names():
        measure_cells(own, given)


def measure_cells(own, given: dict[str, Any]) -> None:
    """given: flags of run.py."""
    import torch

    from exp.flags import sections
    from exp.sweep.bench import Bench
    from exp.sweep.grid import COLUMNS, columns_of, make_cells, to_measure
    from utils.errors import UserError
    from utils.files import refuse_unwritable
    if own.out.suffix != ".csv":
        raise UserError(f"--out {own.out} is not the name of a csv file: end it with .csv")
    refuse_unwritable(own.out.parent, "--out")
    asked = {name: getattr(own, name) for name in COLUMNS if getattr(own, name) is not None}
    shared = sections(given).get("spec", {})
    columns = columns_of(own.grid, asked, shared)
    settings = shared_settings(own, given, columns["rule"][0])
    cells_of = partial(make_cells, settings.spec, set(shared), given=set(asked), patches=patches_of(own, settings))
    cells = cells_of(columns)
    unknown = to_measure(columns, cells)
    say_what_comes(own, columns, cells, settings)
    threads = own.threads or (1 if own.ray_address else max(1, torch.get_num_threads() // own.workers))
    torch.set_num_threads(threads)
    bench = Bench(settings, own.windows)
    noted = settings_of(bench, own, given)
    if unknown:
        gaps = bench.gaps()
        measured = gaps.columns(settings.spec.temp)
        noted["gap"] = gaps.describe(measured)
        print(f"gap: {noted['gap']}", flush=True)
        cells = cells_of(columns | {name: measured[name] for name in unknown})
    fill_table(own, bench, cells, noted, threads)


def patches_of(own, settings: "Settings") -> int:
    """Patches of a forecast. Raises UserError if there is only one."""
    from utils.errors import UserError
    from utils.speculative_decoder import patches_in
    patch = settings.model.config.patch_len
    if own.horizon <= patch:
        raise UserError(f"--horizon {own.horizon}: a forecast of one patch ({patch} steps) is the target's own, and "
                        f"nothing is proposed: give a horizon above {patch}")
    return patches_in(own.horizon, patch)


def say_what_comes(own, columns: dict[str, Any], cells: list, settings: "Settings") -> None:
    """Prints the number of cells, and what of the grid is left out."""
    from exp.sweep.grid import ALL, GRIDS, to_measure
    if len(columns["rule"]) < len(GRIDS[own.grid]["rule"]) and own.rule is None:
        print(f"note: only --rule {','.join(columns['rule'])}: flags that were given do not apply to the other rules")
    patches = patches_of(own, settings)
    if any(k != ALL and k >= patches for k in columns["k"]):
        print(f"note: a forecast of {own.horizon} steps has {patches} patches, the last of them the target's own: K "
              f"above {patches - 1} is the same as {patches - 1}, and not measured again")
    print(f"{'at most ' if to_measure(columns, cells) else ''}{len(cells) - 2} cells and two references", flush=True)


def fill_table(own, bench, cells: list, noted: dict[str, Any], threads: int) -> None:
    """Measures the cells that the table lacks. noted: its settings."""
    from tqdm import tqdm

    from exp.ownership import locked_file
    from exp.sweep.bench import run_serially
    from exp.sweep.on_ray import run_on_ray
    from exp.sweep.table import SweepTable
    with locked_file(own.out, "wait for it, or give another --out"):
        table = SweepTable(own.out, noted)
        missing = [cell for cell in cells if asdict(cell) not in table]
        print(f"{len(cells)} rows, {len(cells) - len(missing)} of them already in {own.out}", flush=True)
        if missing and (own.workers > 1 or own.ray_address):
            done = run_on_ray(bench.settings, own.windows, bench.files(), missing, own.workers, threads,
                              own.ray_address)
        else:
            done = run_serially(bench, missing)
        with tqdm(total=len(cells), initial=len(cells) - len(missing), desc="sweep", unit="cell",
                  disable=bench.settings.run.quiet) as bar:
            for cell, measured in done:
                table.add(asdict(cell), measured)
                bar.set_postfix(mse=f"{measured['mse']:.4f}", mae=f"{measured['mae']:.4f}", refresh=False)
                bar.update()
    print(f"table: {own.out}")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line on stderr), 130 or 143 interrupted (see exp.program)."""
    return exit_code(lambda: sweep(argv), "--batch_size, --horizon or --workers",
                     "the rows so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
