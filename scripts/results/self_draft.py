"""Longer heads of a target as its draft, beside the distilled one: passes, closeness and time, on validation windows.

    bash scripts/distillation/self_draft.sh
    bash scripts/distillation/self_draft.sh --times

Trains what is missing of the pair of the settings `etth1` and of its target's heads, and writes
docs/results/self_draft.csv and the table made of it in docs/STOCHASTIC_DRAFT_SUCCESS.md. Started again, it measures
what is missing; to measure a horizon again, delete its rows. --times measures the times of all rows again, in one run.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code

if TYPE_CHECKING:
    from exp.evaluate.methods import Method
    from exp.exp_basic import Exp_Basic
    from scripts.results.plans import Plan

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "self_draft.csv"
SETTINGS, SEED, HORIZONS = "etth1", 2021, (336, 720)
TOLERANCES, SIGMA = (0.1, 0.15, 0.3), 0.25  # sigma of the law: standardised
WINDOWS, REPEATS = 200, 40  # forecasts measured about, and timed
ALONE, DRAFTS = "none", ("draft", "heads")
TITLES = {ALONE: "none, the target alone", "draft": "the distilled draft", "heads": "its own longer heads"}
TIMES = ("ms_median", "ms_p10", "ms_p90")
MACHINE = ("device", "cores", "threads", "torch")
COLUMNS = ["horizon", "proposals", "rule", "target_passes", "draft_passes", "accepted_pct", "rms", "mse", *TIMES,
           *MACHINE, "parameters", "windows", "target_sha256"]


def work(argv: Sequence[str] | None) -> None:
    from exp.flags import Parser
    parser = Parser(prog="self_draft", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--times", action="store_true", help="measure the times again, and nothing else")
    parser.add_argument("--table", action="store_true", help="measure nothing, only write the table again")
    own = parser.parse_args(argv)
    from exp.ownership import locked_file
    from scripts.results.drafts import put
    from scripts.results.table import read_rows
    with locked_file(TABLE, "wait for it, or stop it"):
        for horizon in [] if own.table else HORIZONS:
            old = {(row["proposals"], row["rule"]): row for row in read_rows(TABLE, COLUMNS)
                   if row["horizon"] == str(horizon)}
            if own.times or not old:
                compared = Compared.at(horizon)
                rows = compared.timed(old) if own.times and old else compared.timed(compared.measured())
                put(TABLE, COLUMNS, rows, [(str(known),) for known in HORIZONS])
        write_table()
    print(f"table: {TABLE.relative_to(ROOT)}")


@dataclass
class Compared:
    """Ways to forecast `horizon` steps with one target. methods: (proposals, rule) -> method."""

    experiment: Exp_Basic
    methods: dict[tuple[str, str], Method]
    parameters: dict[str, int]
    horizon: int
    target_sha256: str

    @classmethod
    def at(cls, horizon: int) -> Compared:
        """Trains what is missing."""
        from exp.evaluate.methods import AloneMethod, make_speculative
        from exp.exp_basic import load_model
        from exp.own_heads import heads_beside, with_heads
        from scripts.results.parareal_drafts import with_windows
        from scripts.results.plans import plan_of_seed, settings_of
        from utils.acceptance import Tolerance
        from utils.files import digest
        from utils.lossless import Coupling
        from utils.target_law import TargetLaw
        plan = plan_of_seed(SETTINGS, SEED)
        train(plan)
        flags = ["--use_speculative" if flag == "--compare" else flag for flag in plan.compare]
        settings = settings_of([*flags, "--test_pred_len", str(horizon), "--test_flag", "V"])
        experiment = with_windows(settings, WINDOWS)
        target, draft = (load_model(settings, path, model, experiment.device) for path, model in (
            (plan.target_file, settings.model.name), (plan.draft_file, settings.run.draft_model)))
        pairs = {"draft": (target, draft), "heads": (with_heads(target, plan.target_file, settings.run), None)}
        rules: dict[str, Any] = {f"tolerance {tol:g}": Tolerance(tol) for tol in TOLERANCES}
        rules["coupling"] = Coupling(TargetLaw.fixed(SIGMA))
        spec, seed = replace(settings.spec, k=None, repropose=None), settings.run.seed
        methods: dict[tuple[str, str], Method] = {(ALONE, ""): AloneMethod(target, horizon)}
        methods |= {(name, rule): make_speculative(*pairs[name], spec, horizon, seed, rules[rule])
                    for rule in rules for name in DRAFTS}
        files = {"draft": plan.draft_file, "heads": heads_beside(plan.target_file)}
        sizes = {name: json.loads((path.parent / "args.json").read_text(encoding="utf-8"))["parameters"]
                 for name, path in files.items()}
        return cls(experiment, methods, sizes, horizon, digest(plan.target_file)[:12])

    def measured(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Rows without times. What `coupling` emits is a draw, whose error says nothing of a point forecast."""
        from exp.evaluate.evaluation import evaluate
        print(f"== horizon {self.horizon}", flush=True)
        run, (_, loader) = self.experiment.settings.run, self.experiment.test_part()
        named = {" ".join(key): method for key, method in self.methods.items()}
        found = evaluate(named, loader, self.experiment.device, quiet=run.quiet, reference=f"{ALONE} ")
        rows = {}
        for key in self.methods:
            out = found[" ".join(key)]
            result, drawn = out.result(self.experiment.settings.data.batch_size), key[1] == "coupling"
            rows[key] = {"horizon": str(self.horizon), "proposals": key[0], "rule": key[1],
                         "target_passes": result["target_passes"], "draft_passes": result.get("draft_passes"),
                         "accepted_pct": result.get("acceptance_pct"), "mse": None if drawn else result["mse"],
                         "rms": None if drawn else out.rms_from_reference(), "windows": result["windows"],
                         "parameters": self.parameters.get(key[0]), "target_sha256": self.target_sha256}
        return rows

    def timed(self, rows: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows with milliseconds of a forecast at batch 1, of all ways interleaved."""
        from data_provider.data_factory import evenly_spaced
        from utils.errors import UserError
        from utils.timing import hardware, time_side_by_side
        others = {row["target_sha256"] for row in rows.values()} - {self.target_sha256}
        if others or rows.keys() != self.methods.keys():
            raise UserError(f"{TABLE} is of another target, or of other rows: delete those of horizon {self.horizon}, "
                            "and measure them without --times")
        print(f"== horizon {self.horizon}: times", flush=True)
        dataset, device = self.experiment.tested_split(), self.experiment.device
        inputs = [dataset.__getitems__([window])[0].to(device) for window in
                  evenly_spaced(min(REPEATS, len(dataset)), len(dataset)).tolist()]
        times = time_side_by_side({key: method.decode for key, method in self.methods.items()}, inputs, device)
        machine = {name: value for name, value in hardware(device).items() if name in MACHINE}
        return [{**row, **{name: times[key][name] for name in TIMES}, **machine} for key, row in rows.items()]


def train(plan: Plan) -> None:
    """The pair of the plan, and its target's heads."""
    from scripts.results.measure import run_program
    from scripts.results.plans import missing
    for what, flags in (("target", plan.target), ("draft", plan.draft), ("heads", plan.heads)):
        left = missing(flags)
        if left is not None:
            print(f"== {what}: training", flush=True)
            run_program(left)


def write_table() -> None:
    """Writes the table of docs/STOCHASTIC_DRAFT_SUCCESS.md again."""
    from scripts.results.documents import SELF_DRAFT, SUCCESS, write_block
    from scripts.results.table import read_rows
    write_block(ROOT, SUCCESS, SELF_DRAFT, lines_of(read_rows(TABLE, COLUMNS)))


def lines_of(rows: Sequence[Mapping[str, str]]) -> list[str]:
    from scripts.results.cells import markdown
    if not rows:
        return ["Not measured yet: `bash scripts/distillation/self_draft.sh` fills this section."]
    columns = ["horizon", "rule", "proposals", "target passes", "draft passes", "accepted %",
               "RMS from the target alone", "MSE", "ms, batch 1"]
    first = rows[0]
    machine = f"{first['device']}, threads: {first['threads']}, torch {first['torch']}"
    return [f"Times, medians of {REPEATS} windows: {machine}.", "", *markdown(columns, [_cells(row) for row in rows])]


def _cells(row: Mapping[str, str]) -> list[str]:
    def cell(name: str, form: str) -> str:
        return format(float(row[name]), form) if row[name] else "-"
    return [row["horizon"], row["rule"] or "-", TITLES[row["proposals"]], cell("target_passes", ".2f"),
            cell("draft_passes", ".2f"), cell("accepted_pct", ".1f"), cell("rms", ".3f") if row["rule"] else "-",
            cell("mse", ".4f"), cell("ms_median", ".2f")]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, or something failed (one line on stderr says what); 130 or 143 interrupted."""
    return exit_code(lambda: work(argv), "WINDOWS in scripts/results/self_draft.py",
                     "the rows so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
