"""Sweeps decoding parameters over one target and one draft: a row a cell, in a csv that is whole at every moment.

    bash scripts/sweeps/stochastic_draft_param_sweep.sh --sigma 0.25,0.5 --bias 1,2 --k 1,3

Every list may be given; a cell is every combination that differs in something that has a meaning for its rule. Killed
and started again with the same settings, the sweep does the missing cells only. Further flags are those of run.py
that concern decoding, such as --root_path, --data_path, --batch_size, --seed, --rolling, --spec_repropose, --quiet.
"""
import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from utils.errors import UserError, exit_code

# flags of run.py that a sweep passes on; all others are set by the sweep, or concern training and reports
PASSED_ON = {
    "root_path", "data_path", "data", "seq_len", "test_seq_len", "input_token_len", "batch_size", "seed", "quiet",
    "compile", "rolling", "covariate", "flash_attention", "spec_draft_model",
    "spec_repropose", "spec_temp", "spec_sigma_mode", "spec_covariance", "spec_sigma_adapt_c", "spec_accept_mse_tol",
    # for checkpoints without args.json
    "d_model", "n_heads", "d_ff", "e_layers", "activation", "use_norm", "norm_mode", "norm_window", "draft_stochastic",
    "draft_patches", "draft_scale_d_model", "draft_scale_n_heads", "draft_scale_d_ff", "draft_scale_e_layers",
}
NAMED_ANYWAY = {"root_path", "data_path", "seq_len", "test_seq_len", "input_token_len", "batch_size", "seed", "quiet"}
DEFAULTS = {"rule": ["simplified"], "emit": ["mean"], "sigma": [0.1, 0.25, 0.5, 1.0], "bias": [1.0, 2.0, 5.0, 10.0],
            "tol": [0.1, 0.2, 0.3, 0.5], "k": [1, 2, 3, 4, 5]}


def comma_separated(kind: Callable) -> Callable:
    """An argparse type: '1,2,2' -> [1, 2]"""
    def parse(text):
        return list(dict.fromkeys(kind(part.strip()) for part in text.split(",")))
    return parse


def one_of(names: Iterable[str]) -> Callable:
    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(sorted(names))}")
        return text
    return parse


def build_parser() -> argparse.ArgumentParser:
    from exp.flags import Parser, count, non_negative, positive
    from utils.acceptance import RULES
    kinds = {"rule": one_of(RULES), "emit": one_of(("mean", "sample")), "sigma": positive, "bias": positive,
             "tol": non_negative, "k": count}
    parser = Parser(prog="param_sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    for name, kind in kinds.items():
        default = ",".join(f"{value:g}" if name in ("sigma", "bias", "tol") else str(value) for value in DEFAULTS[name])
        parser.add_argument(f"--{name}", type=comma_separated(kind), metavar="A,B,...", help=f"default: {default}")
    add = parser.add_argument
    add("--target", required=True, help="checkpoint.pth of the target")
    add("--draft", required=True, help="checkpoint.pth of the draft")
    add("--horizon", type=count, default=336, help="steps of a forecast (default: %(default)s)")
    add("--windows", type=count, default=None,
        help="how many test windows, evenly spread (default: 512, or all where there are fewer)")
    add("--out", type=Path, default=Path("test_results/sweep.csv"), help="the table (default: %(default)s)")
    add("--workers", type=count, default=1, help="cells measured at a time; more than 1 needs Ray (default: 1)")
    add("--ray_address", default=None, help="of a Ray cluster, or 'auto' (default: this machine)")
    add("--threads", type=count, default=None, help="of each worker (default: the cores of this machine divided among "
        "the workers; on a cluster 1)")
    return parser


def shared_flags(own, rest: list[str]) -> list[str]:
    """The command line of run.py that all cells share, with absolute paths; refuses what a sweep has no use for."""
    from data_provider.data_factory import data_file
    from exp.options import given, parse_args
    for name in sorted(given(rest) - PASSED_ON):
        raise UserError(f"--{name} is not a flag of a sweep: leave it out (--help lists them)")
    target, draft = (Path(path).resolve() for path in (own.target, own.draft))
    for flag, path in (("--target", own.target), ("--draft", own.draft)):
        if not Path(path).is_file():
            raise UserError(f"{flag} {path} does not exist: make it with bash scripts/quickstart.sh, or give another "
                            "checkpoint.pth")
    # a flag may have a meaning for the rules swept only, so one of them is named; the rule of a cell comes after it
    flags = ["--batch_size", "64", *rest, "--is_training", "0", "--use_speculative", "--spec_accept_rule", own.rule[0],
             "--spec_draft_ckpt", str(draft), "--test_pred_len", str(own.horizon), "--checkpoints",
             str(target.parent.parent), "--test_dir", target.parent.name, "--test_file_name", target.name]
    file = data_file(parse_args(flags))
    return [*flags, "--root_path", str(file.parent.resolve()), "--data_path", file.name]


def settings_of(bench, own, rest: list[str]) -> dict:
    """What the table says of itself: all that its rows depend on, and where the files were."""
    from exp.options import given
    more = sorted(given(rest) - NAMED_ANYWAY)
    places = {"target": own.target, "draft": own.draft, "data": bench.args.data_path}
    further = " ".join(f"--{name} {getattr(bench.args, name)}" for name in more)
    machine = {"device": f"Ray cluster {own.ray_address}"} if own.ray_address else {}
    return places | bench.settings() | machine | {"workers": own.workers, "further_flags": further or "none"}


def sweep(own, rest: list[str]) -> None:
    import torch
    from tqdm import tqdm

    from exp.sweep import Bench, make_cells, run_serially
    from exp.sweep_ray import run_on_ray
    from utils.files import refuse_unwritable
    from utils.speculative_decoder import patches_in
    from utils.sweep_table import SweepTable
    if own.out.suffix != ".csv":
        raise UserError(f"--out {own.out} is not the name of a csv file: end it with .csv")
    refuse_unwritable(own.out.parent, "--out")
    named = {name for name in DEFAULTS if getattr(own, name) is not None}
    for name in DEFAULTS.keys() - named:
        setattr(own, name, DEFAULTS[name])
    flags = shared_flags(own, rest)
    cells = make_cells(flags, {name: getattr(own, name) for name in DEFAULTS}, named)
    with_ray = own.workers > 1 or own.ray_address
    threads = own.threads or (1 if own.ray_address else max(1, torch.get_num_threads() // own.workers))
    torch.set_num_threads(threads)
    bench = Bench(flags, own.windows)
    patches = patches_in(own.horizon, bench.args.input_token_len)
    if max(own.k) >= patches:
        print(f"note: a forecast of {own.horizon} steps has {patches} patches, the last of them the target's own: K "
              f"above {patches - 1} is the same as {patches - 1}")
    table = SweepTable(own.out, settings_of(bench, own, rest))
    missing = [cell for cell in cells if asdict(cell) not in table]
    print(f"{len(cells)} rows, {len(cells) - len(missing)} of them in {own.out} already", flush=True)
    if with_ray and missing:
        done = run_on_ray(flags, own.windows, bench.files(), missing, own.workers, threads, own.ray_address)
    else:
        done = run_serially(bench, missing)
    with tqdm(total=len(cells), initial=len(cells) - len(missing), desc="sweep", unit="cell",
              disable=bench.args.quiet) as bar:
        for cell, measured in done:
            table.add(asdict(cell), measured)
            bar.set_postfix(mse=f"{measured['mse']:.4f}", refresh=False)
            bar.update()
    print(f"table: {own.out}")


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    return exit_code(lambda: sweep(*build_parser().parse_known_args(argv)), "--batch_size, --horizon or --workers",
                     "the rows so far are kept; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
