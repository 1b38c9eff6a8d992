"""What fidelity to the target costs: passes a forecast and RMS deviation from the target alone, by tolerance.

    python -m scripts.benchmark.fidelity --test_dir TARGET --spec_draft_ckpt DRAFT/checkpoint.pth --test_pred_len 720 \\
        --tolerances 0.02,0.05,0.1 --out fidelity.csv

All other flags are those of run.py. Every test window is forecast, or --test_windows of them, evenly spread; deviations
are in data units (standardised).
"""
import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from data_provider.data_factory import data_provider
from exp.evaluation import AloneMethod, SpeculativeMethod
from exp.exp_forecast import Exp_Forecast
from exp.options import parse_args
from utils.acceptance import Tolerance
from utils.errors import UserError, exit_code
from utils.metrics import SpeculationMetrics
from utils.results import format_table, write_csv

REPROPOSALS = ("draft", "target", "corrected")
COLUMNS = ["repropose", "tolerance", "mse", "rms_from_target", "acceptance_pct", "target_passes", "draft_passes"]


@torch.inference_mode()
def measure(methods: dict, alone: dict, batches: list, device, quiet: bool) -> list[dict]:
    """methods: (repropose, tolerance) -> SpeculativeMethod; alone: name -> AloneMethod, 'target' the reference."""
    squares, errors, elements = dict.fromkeys([*alone, *methods], 0.0), dict.fromkeys([*alone, *methods], 0.0), 0
    passes = {key: SpeculationMetrics() for key in methods}
    for x, y in tqdm(batches, desc="fidelity", unit="batch", disable=quiet):
        x, y = x.to(device), y.to(device)
        forecasts = {name: method.forecast(x) for name, method in alone.items()}
        for key, method in methods.items():
            decoded = method.decode(x)
            passes[key].update(decoded)
            forecasts[key] = decoded.forecast
        for key, forecast in forecasts.items():
            squares[key] += float((forecast - forecasts["target"]).double().square().sum())
            errors[key] += float((forecast - y).double().square().sum())
        elements += y.numel()
    rows = [{"repropose": f"{name} alone", "tolerance": "", f"{name}_passes": method.passes}
            for name, method in alone.items()]
    rows += [{"repropose": key[0], "tolerance": key[1]} | passes[key].result() for key in methods]
    for key, row in zip([*alone, *methods], rows):
        row |= {"mse": errors[key] / elements, "rms_from_target": (squares[key] / elements) ** 0.5}
    return rows


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerances", default="0.02,0.03,0.05,0.07,0.1,0.15,0.2,0.3", help="default: %(default)s")
    parser.add_argument("--repropose", default="draft,target,corrected", help="default: %(default)s")
    parser.add_argument("--out", default="benchmark/fidelity.csv")
    own, flags = parser.parse_known_args(argv)
    return exit_code(lambda: run(own, ["--is_training", "0", "--use_speculative", *flags]), "--batch_size",
                     "no table was written")


def run(own, flags: list[str]) -> None:
    try:
        tolerances = [float(value) for value in own.tolerances.split(",")]
    except ValueError:
        raise UserError(f"--tolerances {own.tolerances}: write numbers with commas between, as 0.05,0.1") from None
    reproposals = own.repropose.split(",")
    if min(tolerances) < 0 or not set(reproposals) <= set(REPROPOSALS):
        raise UserError(f"--tolerances {own.tolerances} --repropose {own.repropose}: tolerances are at least 0, proposals "
                        f"come from {', '.join(REPROPOSALS)}")
    args = parse_args(flags)
    idle = sorted(name for name in args.explicit - {"spec_draft_ckpt", "spec_draft_model"}
                  if name.startswith(("spec_", "amp", "num_samples", "compare")))
    if idle:
        raise UserError(f"--{idle[0]} has no effect here, where rule and proposals are fixed: leave it out")
    experiment = Exp_Forecast(args)
    checkpoint = experiment.tested_checkpoint(args.test_dir or experiment.setting())
    target, draft = experiment.load_pair(checkpoint)
    batches = data_provider(args, "test")[1]
    methods = {(repropose, tol): SpeculativeMethod(target, draft, args.test_pred_len, Tolerance(tol), None, args.seed,
                                                   repropose=repropose)
               for repropose in reproposals for tol in tolerances}
    alone = {"target": AloneMethod(target, args.test_pred_len), "draft": AloneMethod(draft, args.test_pred_len)}
    rows = measure(methods, alone, batches, experiment.device, args.quiet)
    write_csv(Path(own.out), [{key: row.get(key) for key in COLUMNS} for row in rows], COLUMNS)
    print(format_table(rows, {key: key for key in COLUMNS}))
    print(f"table: {own.out}")


if __name__ == "__main__":
    sys.exit(main())
