"""Time of one batch of forecasts by every way to decode: float32 and bf16 weights, with CUDA graphs and without.

    bash scripts/benchmark/gpu_grid.sh [--pair TARGET,DRAFT --data FILE.csv] [--cells CELLS]

Configurations: `preset` (2 x d256, 7 variables), whose pair can be given with --pair and forecasts --data, and `deep`,
of the size of the public Timer-XL (8 x d1024, one variable). Without --pair the weights are RANDOM: then acceptance is
imposed (rows `forced`: each proposal is accepted with --acceptance), and the passes of `tol` mean nothing.
Drafts have a quarter of the target's width, heads and layers and propose one patch a pass.
rms_from_target: from the target alone in float32 without graphs. from_eager: largest difference that the graphs make,
in standard deviations of the forecast; only rounding is allowed.
"""
import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from exp.evaluate.methods import AloneMethod, Method, PararealMethod, SpeculativeMethod
from exp.flags import Parser
from exp.program import exit_code
from exp.report.results import format_table, write_csv
from layers.linear import pack_linears
from models import registry, timer_xl, timer_xl_draft
from models.config import ModelConfig
from models.timer_xl import TimerBackbone
from scripts.benchmark.decode_speed import CONFIGS, PATCH, Forced, add_measuring, parse_cells, timed
from utils.acceptance import Parareal, Tolerance
from utils.errors import UserError
from utils.lossless import Coupling
from utils.replay import record
from utils.target_law import TargetLaw
from utils.timing import hardware

CELLS = ",".join(f"{name}:672:{horizon}:{batch}"
                 for name in ("preset", "deep") for horizon in (336, 720, 1440) for batch in (1, 64))
TOL, SIGMA, TRAINED = 0.15, 0.25, 8640  # rows of the training part of ETTh, which fix the scale
COLUMNS = ["config", "weights", "context", "horizon", "batch", "dtype", "graphs", "method", "target_passes",
           "draft_passes", "rms_from_target", "from_eager", "ms_median", "ms_p10", "ms_p90", "repeats", "device",
           "torch"]
Models = tuple[TimerBackbone, TimerBackbone]


def random_pair(name: str, context: int, device: torch.device) -> Models:
    config = CONFIGS[name][1].as_dict() | {"norm_mode": "causal", "norm_window": context // PATCH}
    scales = {f"draft_scale_{part}": 0.25 for part in ("d_model", "n_heads", "d_ff", "e_layers")}
    torch.manual_seed(0)
    target = timer_xl.Model(ModelConfig(**config))
    draft = timer_xl_draft.Model(ModelConfig(**config | scales | {"draft_stochastic": True}))
    return target.to(device).eval(), draft.to(device).eval()


def given_pair(paths: str, device: torch.device) -> Models:
    files = paths.split(",")
    if len(files) != 2:
        raise UserError(f"--pair {paths}: give two checkpoints, TARGET,DRAFT")
    target, draft = (registry.load(file, device, packed=False) for file in files)
    return target, draft


def windows_of(file: Path | None, variables: int, steps: int, rows: int, device: torch.device) -> torch.Tensor:
    """Contexts [rows, steps, C], standardised: spread over the last fifth of the file, or noise."""
    if file is None:
        return torch.randn(rows, steps, variables, generator=torch.Generator().manual_seed(0)).to(device)
    import pandas as pd
    frame = pd.read_csv(file)
    values = torch.tensor(frame.select_dtypes("number").to_numpy(), dtype=torch.float32)
    if values.shape[1] != variables or len(values) < TRAINED + steps:
        raise UserError(f"--data {file} must have {variables} columns of numbers and {TRAINED + steps} rows or more")
    values = (values - values[:TRAINED].mean(0)) / values[:TRAINED].std(0, correction=0)
    firsts = torch.linspace(0.8 * len(values) - steps, len(values) - steps, rows).long()
    return torch.stack([values[first:first + steps] for first in firsts.tolist()]).to(device)


def methods_of(pair: Models, horizon: int, given: bool, acceptance: float) -> dict[str, Method]:
    target, draft = pair
    methods: dict[str, Method] = {"target": AloneMethod(target, horizon), "draft": AloneMethod(draft, horizon, True)}

    def speculative(rule, repropose="draft") -> Method:
        return SpeculativeMethod(target, draft, horizon, rule, None, 0, repropose=repropose)
    if given:
        methods[f"tolerance {TOL}"] = speculative(Tolerance(TOL))
        methods["coupling"] = speculative(Coupling(TargetLaw.fixed(SIGMA)), "corrected")
    else:
        methods[f"forced {acceptance:g}"] = speculative(Forced(acceptance))
    for passes, tol in ((2, 0.0), (3, 0.0), (4, 0.0), (None, TOL)):
        name = f"parareal {passes}" if passes else f"parareal tol {tol}"
        methods[name] = PararealMethod(target, draft, horizon, Parareal(passes, tol), 0)
    return methods


def measure(pair: Models, cell: dict, context: torch.Tensor, given: bool, acceptance: float,
            budget_s: float) -> list[dict]:
    """Rows of one configuration, horizon and batch; all are timed interleaved, under the same conditions."""
    device, methods = context.device, {}
    for dtype in ("float32", "bf16"):
        models = [copy.deepcopy(model) for model in pair]
        for model in models:
            if dtype == "bf16":
                model.halve()
            elif device.type == "cpu":  # as in the program
                pack_linears(model)
        for name, method in methods_of((models[0], models[1]), cell["horizon"], given, acceptance).items():
            methods[dtype, 0, name] = method
        if device.type == "cuda":  # the same weights; rules that accept have no fixed shape and are not recorded
            recorded = copy.copy(models[0]), copy.copy(models[1])
            for model in recorded:
                record(model)
            for name, method in methods_of(recorded, cell["horizon"], given, acceptance).items():
                if type(method) is not SpeculativeMethod:
                    methods[dtype, 1, name] = method
    made = {key: method.decode(context) for key, method in methods.items()}
    calls: dict[Any, Any] = {key: method.decode for key, method in methods.items()}
    times = timed(calls, context, device, budget_s, most=30, warm_up=0)
    alone = made["float32", 0, "target"].forecast
    machine = {key: hardware(device)[key] for key in ("device", "torch")}
    rows = []
    for (dtype, graphs, name), decoded in made.items():
        forecast, eager = decoded.forecast, made[dtype, 0, name].forecast
        passes = {key: 0 if (part := getattr(decoded, key)) is None else round(float(part.double().mean()), 3)
                  for key in ("target_passes", "draft_passes")}
        rows.append(cell | {"dtype": dtype, "graphs": graphs, "method": name} | passes | machine | {
            "rms_from_target": f"{float((forecast - alone).square().mean().sqrt()):.3g}",
            "from_eager": f"{float((forecast - eager).abs().max() / eager.std()):.2g}" if graphs else "",
        } | {key: f"{value:.6g}" for key, value in times[dtype, graphs, name].items()})
    return rows


def run(args) -> None:
    cells = parse_cells(args.cells)
    if (args.pair is None) != (args.data is None):
        raise UserError("--pair and --data go together: the pair forecasts that series")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict] = []
    for name, steps, horizon, batch in tqdm(cells, unit="cell", disable=args.quiet):
        given = name == "preset" and args.pair is not None
        pair = given_pair(args.pair, device) if given else random_pair(name, steps, device)
        context = windows_of(args.data if given else None, CONFIGS[name][0], steps, batch, device)
        cell = {"config": name, "weights": "trained" if given else "random", "context": steps, "horizon": horizon,
                "batch": batch}
        rows += measure(pair, cell, context, given, args.acceptance, args.budget_s)
        write_csv(args.out, rows, COLUMNS)  # an interrupted run keeps the cells measured so far
    print(format_table(rows, {key: key for key in COLUMNS[:-2]}))
    print(f"table: {args.out}")


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmark/gpu_grid.csv"), help="default: %(default)s")
    parser.add_argument("--pair", default=None, help="checkpoints of a trained pair of the preset: TARGET,DRAFT")
    parser.add_argument("--data", type=Path, default=None, help="csv of the series that it forecasts")
    parser.add_argument("--cells", default=CELLS, help="config:context:horizon:batch[,...] (default: %(default)s)")
    add_measuring(parser, "imposed acceptance of a random pair", acceptance=0.9, budget_s=4.0)
    return exit_code(lambda: run(parser.parse_args(argv)), "the sizes in --cells",
                     "the table holds the cells measured so far")


if __name__ == "__main__":
    sys.exit(main())
