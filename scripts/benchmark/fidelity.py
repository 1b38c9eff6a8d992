"""Cost of fidelity to the target: passes per forecast and RMS deviation from the target alone, by tolerance.

    python -m scripts.benchmark.fidelity --test_dir TARGET --spec_draft_ckpt DRAFT/checkpoint.pth --test_pred_len 720 \\
        --tolerances 0.02,0.05,0.1 --out fidelity.csv

All other flags are those of run.py. Every test window is forecast, or --test_windows of them, evenly spaced; deviations
are in data units (standardised).
"""
import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exp.evaluate.evaluation import evaluate
from exp.evaluate.methods import AloneMethod, Method, SpeculativeMethod
from exp.exp_basic import Exp_Basic
from exp.flags import Parser, given_flags
from exp.options import settled
from exp.program import exit_code
from exp.report.results import format_table, write_csv
from exp.settings import Settings
from utils.acceptance import Tolerance
from utils.errors import UserError
from utils.proposer import REPROPOSALS

COLUMNS = ["repropose", "tolerance", "mse", "rms_from_target", "acceptance_pct", "target_passes", "draft_passes"]


def measure(methods: Mapping[str, tuple[dict, Method]], experiment: Exp_Basic) -> list[dict[str, Any]]:
    """Rows of the table; methods: name -> (first columns of its row, method), the first being the reference."""
    settings, (_, loader) = experiment.settings, experiment.test_part()
    results = evaluate({name: method for name, (_, method) in methods.items()}, loader, experiment.device,
                       settings.model.config.covariate, settings.run.quiet, reference=next(iter(methods)),
                       what="fidelity")
    return [start | results[name].result(settings.data.batch_size)
            | {"rms_from_target": results[name].rms_from_reference()} for name, (start, _) in methods.items()]


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings from the flags of run.py; refuses flags that have no effect here."""
    idle = sorted(name for name in set(given) - {"spec_draft_ckpt", "spec_draft_model"}
                  if name.startswith(("spec_", "amp", "num_samples", "compare", "do_predict"))
                  or (name == "is_training" and given[name]))
    if idle:
        raise UserError(f"--{idle[0]} has no effect here, where rule and proposals are fixed: leave it out")
    return settled({**given, "is_training": 0, "use_speculative": True})


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerances", default="0.02,0.03,0.05,0.07,0.1,0.15,0.2,0.3", help="default: %(default)s")
    parser.add_argument("--repropose", default="draft,target,corrected", help="default: %(default)s")
    parser.add_argument("--out", default="benchmark/fidelity.csv")
    return exit_code(lambda: run(parser, argv), "--batch_size", "no table was written")


def run(parser: Parser, argv: list[str] | None) -> None:
    own, flags = parser.parse_known_args(argv)
    try:
        tolerances = [float(value) for value in own.tolerances.split(",")]
    except ValueError:
        raise UserError(f"--tolerances {own.tolerances}: give numbers separated by commas, such as 0.05,0.1") from None
    reproposals = own.repropose.split(",")
    if not all(tol >= 0 for tol in tolerances) or not set(reproposals) <= set(REPROPOSALS):
        raise UserError(f"--tolerances {own.tolerances} --repropose {own.repropose}: tolerances are at least 0, "
                        f"proposals come from {', '.join(REPROPOSALS)}")
    settings = settings_of(given_flags(flags, parser))
    experiment = Exp_Basic(settings)
    target, draft = experiment.load_tested(experiment.tested_checkpoint()), experiment.load_draft()
    horizon, seed = settings.data.horizon, settings.run.seed
    methods: dict[str, tuple[dict, Method]] = {
        f"{name} alone": ({"repropose": f"{name} alone", "tolerance": ""}, AloneMethod(model, horizon, name == "draft"))
        for name, model in (("target", target), ("draft", draft))}
    for repropose in reproposals:
        for tol in tolerances:
            methods[f"{repropose} {tol}"] = {"repropose": repropose, "tolerance": tol}, SpeculativeMethod(
                target, draft, horizon, Tolerance(tol), None, seed, repropose=repropose)
    rows = measure(methods, experiment)
    write_csv(Path(own.out), [{key: row.get(key) for key in COLUMNS} for row in rows], COLUMNS)
    print(format_table(rows, {key: key for key in COLUMNS}))
    print(f"table: {own.out}")


if __name__ == "__main__":
    sys.exit(main())
