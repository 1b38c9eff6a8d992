"""Drafts made for parareal: how fast it gets close to the target with each, on validation windows.

    bash scripts/distillation/parareal_drafts.sh

Trains the targets (settings `etth1` and `pool`) and every draft that is missing, and writes
docs/results/parareal_drafts.csv and the table made of it in docs/STOCHASTIC_DRAFT_SUCCESS.md. Started again, it
measures what is missing; to measure a draft again, delete its rows.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.program import exit_code
from scripts.results.drafts import SEED, Variant, put, scaled, trained

if TYPE_CHECKING:
    from exp.evaluate.methods import Method
    from exp.settings import Settings
    from models.timer_xl import TimerBackbone

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "results" / "parareal_drafts.csv"
HORIZONS, PASSES, TOLERANCE, SIGMA = (720, 1440), (1, 2, 3, 4), 0.1, 0.25  # of the law: standardised
WINDOWS = 200  # forecasts measured about
COLUMNS = ["data", "draft", "flags", "parameters", "horizon", "draft_rms", *(f"rms_{passes}" for passes in PASSES),
           "tolerance_passes", "tolerance_rms", "coupling_passes", "coupling_accepted_pct", "windows", "target_sha256"]
TITLES = {
    "preset": "the preset's: seven patches a pass",
    "serial": "one patch a pass",
    "answer": "that one, its answers learned (`--draft_answer 10`): the settings `{data}_parareal`",
    "hinge": "that one, kept within a tolerance too (`--draft_hinge 0.1`)",
    "half": "that of the settings `{data}_parareal`, twice as wide",  # half of two layers is one, as is a quarter
    "half_hinge": "that one, kept within a tolerance too",
}


def variants(data: str) -> list[tuple[str, Variant]]:
    """(name of the settings, draft) of every draft of one target."""
    own = f"{data}_parareal"
    made = [Variant("serial", "", "--draft_answer 0"), Variant("answer", "")]
    if data == "etth1":  # the pool's draft has this size already
        hinge = f"--draft_hinge {TOLERANCE:g}"
        made += [Variant("hinge", "", hinge), Variant("half", "", scaled(0.5, 0.5)),
                 Variant("half_hinge", "", f"{scaled(0.5, 0.5)} {hinge}")]
    return [(data, Variant("preset", "")), *((own, variant) for variant in made)]


DATA = ("etth1", "pool")


def work(argv: Sequence[str] | None) -> None:
    from exp.flags import Parser
    parser = Parser(prog="parareal_drafts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False)
    parser.add_argument("--only", metavar="A,B,...", default=",".join(DATA), help="targets (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="measure nothing, only write the table again")
    own = parser.parse_args(argv)
    from exp.ownership import locked_file
    from scripts.results.table import read_rows
    from utils.errors import UserError
    names = [name.strip() for name in own.only.split(",")]
    if not set(names) <= set(DATA):
        raise UserError(f"--only {own.only}: give some of {','.join(DATA)}")
    with locked_file(TABLE, "wait for it, or stop it"):
        for data in [] if own.table else names:
            for settings, variant in variants(data):
                if not any((row["data"], row["draft"]) == (data, variant.name) for row in read_rows(TABLE, COLUMNS)):
                    put(TABLE, COLUMNS, measured(data, settings, variant), keys())
        write_table()
    print(f"table: {TABLE.relative_to(ROOT)}")


def keys() -> list[tuple[str, str]]:
    """(data, draft) of every row, in the order of the table."""
    return [(data, variant.name) for data in DATA for _, variant in variants(data)]


def measured(data: str, settings_file: str, variant: Variant) -> list[dict[str, Any]]:
    """Trains what is missing, and measures: one row per horizon."""
    from exp.exp_basic import load_model
    from scripts.results.plans import plan_of_seed, settings_of
    from utils.files import digest
    plan = plan_of_seed(settings_file, SEED)
    checkpoint = trained(plan, variant)
    stored = json.loads((checkpoint.parent / "args.json").read_text(encoding="utf-8"))
    rows = []
    for horizon in HORIZONS:
        flags = ["--use_speculative" if flag == "--compare" else flag for flag in plan.compare]
        settings = settings_of([*flags, "--test_pred_len", str(horizon), "--test_flag", "V"])
        print(f"== {data}, {variant.name}, horizon {horizon}", flush=True)
        experiment = with_windows(settings, WINDOWS)
        target, draft = (load_model(settings, path, model, experiment.device) for path, model in (
            (plan.target_file, settings.model.name), (checkpoint, settings.run.draft_model)))
        rows.append({"data": data, "draft": variant.name, "flags": variant.flags, "horizon": horizon,
                     "parameters": stored["parameters"], "target_sha256": digest(plan.target_file)[:12]}
                    | row_of(experiment, target, draft))
    return rows


def with_windows(settings: Settings, windows: int):
    """An experiment on about so many windows, as many of every series."""
    from exp.exp_basic import Exp_Basic
    dataset = Exp_Basic(settings).tested_split()
    count = max(1, min(windows // dataset.n_series, int(dataset.counts.min())))
    return Exp_Basic(settings.with_("data", test_windows=count))


def row_of(experiment, target: TimerBackbone, draft: TimerBackbone) -> dict[str, Any]:
    """How close the draft alone comes to the target, parareal after each number of passes, and both rules."""
    from exp.evaluate.evaluation import evaluate
    from exp.evaluate.methods import AloneMethod, PararealMethod, make_speculative
    from utils.acceptance import Parareal, Tolerance
    from utils.lossless import Coupling
    from utils.target_law import TargetLaw
    settings = experiment.settings
    horizon, seed = settings.data.horizon, settings.run.seed
    spec = replace(settings.spec, repropose="corrected")
    methods: dict[str, Method] = {"target": AloneMethod(target, horizon),
                                  "draft": AloneMethod(draft, horizon, is_draft=True)}
    methods |= {f"rms_{passes}": PararealMethod(target, draft, horizon, Parareal(passes, 0.0), seed)
                for passes in PASSES}
    methods |= {rule.name: make_speculative(target, draft, spec, horizon, seed, rule)
                for rule in (Tolerance(TOLERANCE), Coupling(TargetLaw.fixed(SIGMA)))}
    found = evaluate(methods, experiment.test_part()[1], experiment.device, settings.model.config.covariate,
                     settings.run.quiet, reference="target")
    tolerance, coupling = (found[rule.name].result(settings.data.batch_size) for rule in (Tolerance, Coupling))
    return {f"rms_{passes}": found[f"rms_{passes}"].rms_from_reference() for passes in PASSES} | {
        "draft_rms": found["draft"].rms_from_reference(), "tolerance_passes": tolerance["target_passes"],
        "tolerance_rms": found[Tolerance.name].rms_from_reference(), "coupling_passes": coupling["target_passes"],
        "coupling_accepted_pct": coupling["acceptance_pct"], "windows": coupling["windows"]}


def write_table() -> None:
    """Writes the table of docs/STOCHASTIC_DRAFT_SUCCESS.md again."""
    from scripts.results.documents import PARAREAL_DRAFTS, SUCCESS, write_block
    from scripts.results.table import read_rows
    write_block(ROOT, SUCCESS, PARAREAL_DRAFTS, lines_of(read_rows(TABLE, COLUMNS)))


def lines_of(rows: Sequence[Mapping[str, str]]) -> list[str]:
    from scripts.results.cells import markdown
    if not rows:
        return ["Not measured yet: `bash scripts/distillation/parareal_drafts.sh` fills this section."]
    columns = ["target", "draft", "parameters", "horizon", "draft alone",
               *(f"{passes} pass{'es' if passes > 1 else ''}" for passes in PASSES), "closer per pass",
               f"passes of `tolerance` {TOLERANCE:g}", "passes of `coupling`"]
    return markdown(columns, [_cells(row) for row in rows])


def _cells(row: Mapping[str, str]) -> list[str]:
    rms = [float(row[f"rms_{passes}"]) for passes in PASSES]
    rate = f"{(rms[0] / rms[-1]) ** (1 / (len(rms) - 1)):.1f}x" if rms[-1] else "exact"
    return [row["data"], TITLES[row["draft"]].format(data=row["data"]), f"{int(row['parameters']) / 1000:.0f} k",
            row["horizon"], f"{float(row['draft_rms']):.2g}", *(f"{value:.2g}" for value in rms), rate,
            f"{float(row['tolerance_passes']):.2f}", f"{float(row['coupling_passes']):.2f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done; 2 bad input, or something failed (one line on stderr says what); 130 or 143 interrupted."""
    return exit_code(lambda: work(argv), "WINDOWS in scripts/results/parareal_drafts.py",
                     "the rows so far are kept; the same command continues")


if __name__ == "__main__":
    sys.exit(main())
