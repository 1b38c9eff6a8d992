"""What closeness to the target costs: every rule at many settings, for means and for sampled paths, on several pairs.

    bash scripts/benchmark/frontier.sh --out docs/results/frontier.csv

Trains the pairs that are missing (those of scripts/results.sh), measures each at every horizon, and draws passes and
milliseconds against the RMS deviation from the target alone. Started again, it goes on where it stopped. Windows are
spread over the test part; the machine should be idle, as times are measured.
"""
import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code

if TYPE_CHECKING:
    from exp.evaluate.methods import Method
    from exp.exp_basic import Exp_Basic

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "frontier.csv"
COLUMNS = ["data", "horizon", "kind", "rule", "setting", "mse", "mae", "rms_from_target", "target_passes",
           "draft_passes", "ms_batch_1", "windows"]
PAIRS = {"pool": "pool", "pool_parareal": "pool_parareal", "etth1": "etth1", "etth1_parareal": "etth1_parareal",
         "etth2": "etth2_causal", "ettm1": "ettm1_causal", "weather": "weather"}  # name -> its settings file
HORIZONS = (336, 720, 1440)
WINDOWS, REPEATS = 400, 15  # forecasts measured about, and timed
TOLERANCES, PASSES = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3), (1, 2, 3, 4, 5)
SIGMA = 0.25  # of the law of sampled paths, standardised
Key = tuple[str, str, str]  # kind, rule, setting


def work(argv: Sequence[str] | None) -> None:
    from exp.flags import Parser
    parser = Parser(prog="frontier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=TABLE,
                        help="the table, with the picture beside it (default: docs/results/frontier.csv)")
    parser.add_argument("--only", default=",".join(PAIRS), metavar="A,B,...", help="pairs (default: %(default)s)")
    parser.add_argument("--horizons", default=",".join(map(str, HORIZONS)), help="default: %(default)s")
    own = parser.parse_args(argv)
    from exp.ownership import locked_file
    from exp.report.results import write_csv
    from scripts.benchmark.pairs import names_of
    from scripts.results.table import read_rows
    from utils.errors import UserError
    if not all(part.strip().isdecimal() and int(part) for part in own.horizons.split(",")):
        raise UserError(f"--horizons {own.horizons}: give numbers of steps, separated by commas")
    names = names_of(own.out, own.only, PAIRS)
    with locked_file(own.out, "wait for it, or give another --out"):
        rows: list[dict[str, Any]] = [dict(row) for row in read_rows(own.out, COLUMNS)]
        for name in names:
            for horizon in map(int, own.horizons.split(",")):
                if not any((row["data"], int(row["horizon"])) == (name, horizon) for row in rows):
                    rows += measure(name, PAIRS[name], horizon)
                    rows.sort(key=lambda row: (list(PAIRS).index(row["data"]), int(row["horizon"])))
                    write_csv(own.out, rows, COLUMNS)
        draw(own.out.with_suffix(".png"), rows)
        if own.out.resolve() == TABLE:
            write_tables(rows)
    print(f"table: {own.out}\npicture: {own.out.with_suffix('.png')}")


def measure(name: str, settings_file: str, horizon: int) -> list[dict[str, Any]]:
    """The rows of one pair at one horizon; trains what is missing."""
    from exp.exp_basic import Exp_Basic
    from scripts.benchmark.pairs import trained_pair
    from scripts.results.table import text_of
    pair = trained_pair(name, settings_file, ["--test_pred_len", str(horizon)])
    dataset = pair.experiment.dataset("test", pair.settings.data.test_context)
    windows = max(1, min(WINDOWS // dataset.n_series, int(dataset.counts.min())))
    experiment = Exp_Basic(pair.settings.with_("data", test_windows=windows))
    print(f"== {name}, horizon {horizon}", flush=True)
    methods = methods_of(pair.target, pair.draft, pair.settings)
    return [{"data": name, "horizon": horizon} | {column: text_of(value) for column, value in row.items()}
            for row in rows_of(experiment, methods)]


def methods_of(target, draft, settings) -> "dict[Key, Method]":
    """(kind, rule, setting) -> method; the first of each kind is the reference of the others."""
    from exp.evaluate.methods import (
        AloneMethod,
        PararealMethod,
        SampledMethod,
        SampledPararealMethod,
        make_speculative,
    )
    from exp.report.results import DRAFT, TARGET
    from utils.acceptance import Parareal, Tolerance
    from utils.lossless import Coupling
    from utils.target_law import TargetLaw
    horizon, seed, law = settings.data.horizon, settings.run.seed, TargetLaw.fixed(SIGMA)
    methods: dict[Key, Method] = {("mean", TARGET, ""): AloneMethod(target, horizon),
                                  ("mean", DRAFT, ""): AloneMethod(draft, horizon, is_draft=True)}

    def parareal(passes: int | None, tol: float) -> PararealMethod:
        return PararealMethod(target, draft, horizon, Parareal(passes, tol), seed)
    for tol in TOLERANCES:
        for how in ("draft", "corrected"):
            spec = replace(settings.spec, repropose=how)
            methods["mean", f"tolerance, {how}", f"tol {tol:g}"] = make_speculative(target, draft, spec, horizon, seed,
                                                                                  Tolerance(tol))
        methods["mean", "parareal, tolerance", f"tol {tol:g}"] = parareal(None, tol)
    methods |= {("mean", "parareal, passes", f"passes {passes}"): parareal(passes, 0.0) for passes in PASSES}
    methods["path", TARGET, ""] = SampledMethod(target, horizon, law, seed, 1)
    for passes in PASSES:
        some = parareal(passes, 0.0)
        methods["path", "parareal, passes", f"passes {passes}"] = SampledPararealMethod(some, law, seed, 1)
    for how in ("draft", "corrected"):
        spec = replace(settings.spec, repropose=how)
        methods["path", f"coupling, {how}", ""] = make_speculative(target, draft, spec, horizon, seed, Coupling(law))
    return methods


def rows_of(experiment: "Exp_Basic", methods: "Mapping[Key, Method]") -> list[dict[str, Any]]:
    """Every method on every test window, then batch 1 timed side by side. Times of a path are those of one path."""
    from data_provider.data_factory import evenly_spaced
    from exp.evaluate.evaluation import evaluate
    from utils.timing import time_side_by_side
    settings, rows = experiment.settings, []
    dataset, loader = experiment.test_part()
    firsts = evenly_spaced(min(REPEATS, len(dataset)), len(dataset)).tolist()
    inputs = [dataset.__getitems__([first])[0].to(experiment.device) for first in firsts]
    for kind in ("mean", "path"):
        of_kind = {key: method for key, method in methods.items() if key[0] == kind}
        named = {" | ".join(key): method for key, method in of_kind.items()}
        found = evaluate(named, loader, experiment.device, settings.model.config.covariate, settings.run.quiet,
                         reference=next(iter(named)), what=kind)
        timed = time_side_by_side({name: method.decode for name, method in named.items()}, inputs, experiment.device)
        for (key, _), (name, out) in zip(of_kind.items(), found.items()):
            result = out.result(settings.data.batch_size)
            passes = {column: result.get(column) for column in ("target_passes", "draft_passes")}
            if kind == "path" and key == next(iter(of_kind)):
                passes["target_passes"] = float(-(-settings.data.horizon // settings.model.config.patch_len))
            exact = key[1].startswith("coupling")  # another path, of the same law: its distance says nothing
            rows.append({"kind": kind, "rule": key[1], "setting": key[2], "mse": result["mse"], "mae": result["mae"],
                         "rms_from_target": None if exact else out.rms_from_reference(),
                         "ms_batch_1": timed[name]["ms_median"], "windows": result["windows"]} | passes)
    return rows


def write_tables(rows: Sequence[Mapping[str, Any]]) -> None:
    """The tables of docs/STOCHASTIC_DRAFT_SUCCESS.md."""
    from scripts.results.documents import FRONTIER, LOSSLESS, SUCCESS, write_block
    write_block(ROOT, SUCCESS, FRONTIER, parareal_lines(rows))
    write_block(ROOT, SUCCESS, LOSSLESS, coupling_lines(rows))


def parareal_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The deviation after each number of passes, for means and for paths, and what another way needs for the same."""
    from scripts.results.cells import markdown
    columns = ["data", "horizon", "of", *(f"{passes} pass{'es' if passes > 1 else ''}" for passes in PASSES),
               "`tolerance` for that of 2 passes"]
    lines = []
    for (data, horizon, kind), some in _parts(rows):
        found = [float(row["rms_from_target"]) for row in some if row["rule"] == "parareal, passes"]
        other = [(float(row["target_passes"]), row["setting"]) for row in some
                 if row["rule"] == "tolerance, draft" and float(row["rms_from_target"]) <= found[1]]
        needed = "{:.2f} passes, {}".format(*min(other)) if other else "-"
        cells = [f"{value:.2g}" if value >= 1e-4 else "< 0.0001" for value in found]
        lines.append([data, horizon, f"{kind}s", *cells, needed])
    return markdown(columns, lines)


def coupling_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    from scripts.results.cells import markdown
    lines = []
    for (data, horizon, kind), some in _parts(rows):
        if kind == "path":
            passes = {row["rule"]: f"{float(row['target_passes']):.2f}" for row in some}
            lines.append([data, horizon, *(passes[name] for name in ("target alone", "coupling, draft",
                                                                     "coupling, corrected"))])
    return markdown(["data", "horizon", "the target alone", "`draft`", "`corrected`"], lines)


def _parts(rows: Sequence[Mapping[str, Any]]):
    """(data, horizon, kind) -> its rows, in order."""
    parts: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault((row["data"], str(row["horizon"]), row["kind"]), []).append(row)
    return parts.items()


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A column of panels per data set, at the longest horizon but one: passes and ms against the deviation."""
    from matplotlib.ticker import NullFormatter

    from exp.report.plots import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, save_figure, subplots
    from exp.report.results import DRAFT, TARGET
    styles = {"tolerance, draft": (SKY, "o"), "tolerance, corrected": (BLUE, "s"), "parareal, tolerance": (RED, "^"),
              "parareal, passes": (ORANGE, "D")}
    horizons = sorted({int(row["horizon"]) for row in rows})
    horizon = 720 if 720 in horizons else horizons[-1]
    names = list(dict.fromkeys(row["data"] for row in rows if int(row["horizon"]) == horizon))
    kinds = [("mean", "target_passes"), ("mean", "ms_batch_1"), ("path", "target_passes")]
    size = (3.4 * len(names), 8.4)
    figure, axes = subplots(len(kinds), len(names), figsize=size, squeeze=False, layout="constrained")
    for column, name in enumerate(names):
        own = [row for row in rows if row["data"] == name and int(row["horizon"]) == horizon]
        for axis, (kind, cost) in zip(axes[:, column], kinds):
            some = [row for row in own if row["kind"] == kind]
            for rule, (colour, marker) in styles.items():
                points = sorted((float(row["rms_from_target"]), float(row[cost])) for row in some
                                if row["rule"] == rule and float(row["rms_from_target"]) > 1e-6)
                if points:
                    axis.plot(*zip(*points), color=colour, marker=marker, ms=4, lw=1, label=rule)
            for rule, colour, label in ((TARGET, BLACK, "target alone: no deviation"), ("coupling, corrected", GREEN,
                                        "coupling, corrected: another path, same law"), ("coupling, draft", PURPLE,
                                        "coupling, draft: another path, same law")):
                for row in (row for row in some if row["rule"] == rule):
                    axis.axhline(float(row[cost]), color=colour, lw=1, ls="--" if rule == TARGET else ":", label=label)
            for row in (row for row in some if row["rule"] == DRAFT):
                y = 0.0 if cost == "target_passes" else float(row[cost])
                axis.plot(float(row["rms_from_target"]), y, color=BLACK, marker="*", ms=10, ls="", label="draft alone")
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.invert_xaxis()
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0, column].set_title(f"{name}, H = {horizon}")
        axes[-1, column].set_xlabel("RMS from the target (to the right: closer)")
    for axis, label in zip(axes[:, 0], ("means: target passes", "means: ms, batch 1", "paths: target passes")):
        axis.set_ylabel(label)
    handles = {label: handle for axis in axes[:, 0] for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=8)
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, or something failed (one line on stderr says what); 130 or 143 interrupted."""
    return exit_code(lambda: work(argv), "WINDOWS in scripts/benchmark/frontier.py",
                     "the pairs and horizons so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
