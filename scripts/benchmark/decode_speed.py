"""Time of one forecast, target alone and speculative, over a grid of model sizes, contexts, horizons and batches.

    bash scripts/benchmark/decode_speed.sh [--cells config:context:horizon:batch,...] [--out FILE.csv]

Weights are RANDOM and acceptance is imposed: the time of a pass does not depend on the weights. Modes:
  reencode             target alone as OpenLTM rolls it: a full pass over the last N patches for every patch
  cached               target alone with a key-value cache
  speculative_forced   draft proposes all remaining patches in one pass, every proposal is accepted
  speculative_trained  the same, each proposal accepted with the probability of a trained pair (--acceptance)
  limit                one bare target pass over context + all proposals: a lower bound for anything that verifies
FILE_planner.csv compares the choice of `--spec_k auto` at that acceptance with the best plain decoding.
"""
import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from exp.evaluate.methods import SpeculativeMethod
from exp.flags import Parser, reader
from exp.program import exit_code
from exp.report.plots import decode_speed_figure
from exp.report.results import format_table, write_csv
from layers.linear import pack_linears
from models import timer_xl, timer_xl_draft
from models.config import ModelConfig
from utils.acceptance import MeanRule
from utils.errors import UserError
from utils.interface import Prediction
from utils.limits import Number
from utils.proposals import Judgement, Noise, Proposals
from utils.speculative_decoder import decode_alone, decode_speculative, patches_in
from utils.timing import hardware, time_side_by_side

PATCH = 96
# name -> (variables, target). The deep one has the size of the public 84M checkpoint.
CONFIGS = {
    "published": (7, ModelConfig(PATCH, d_model=1024, n_heads=8, d_ff=2048, e_layers=1, use_norm=True)),
    "deep": (1, ModelConfig(PATCH, d_model=1024, n_heads=8, d_ff=3072, e_layers=8, use_norm=True)),
    "preset": (7, ModelConfig(PATCH, d_model=256, n_heads=8, d_ff=1024, e_layers=2, use_norm=True)),
}
CONTEXTS, HORIZONS, BATCHES = (672, 1536, 2880), (336, 720, 1440), (1, 64)
MODES = ("reencode", "cached", "speculative_trained", "speculative_forced", "limit")
COLUMNS = ["config", "context", "horizon", "batch", "mode", "acceptance", "target_passes", "draft_passes", "ms_median",
           "ms_p10", "ms_p90", "repeats", "device", "threads"]
PLAN_COLUMNS = ["config", "context", "horizon", "batch", "proposals", "ms_predicted", "ms_median", "ms_plain", "ratio"]


class Forced(MeanRule):
    """Accepts each proposal with a fixed probability, whatever its content: for timing only."""

    name, random = "forced", True

    def __init__(self, acceptance: float):
        self.acceptance = acceptance

    def judge(self, proposals: Proposals, prediction: Prediction, uniform: torch.Tensor | None) -> Judgement:
        assert uniform is not None
        return Judgement(uniform < self.acceptance, uniform)


def build(name: str, context: int, horizon: int, device):
    """(variables, window-normalised target, causal target, parallel draft), random weights."""
    variables, config = CONFIGS[name]
    causal = config.as_dict() | {"norm_mode": "causal", "norm_window": context // PATCH}
    scales = {f"draft_scale_{part}": 0.25 for part in ("d_model", "n_heads", "d_ff", "e_layers")}
    ahead = {"draft_stochastic": True, "draft_patches": max(1, patches_in(horizon, PATCH) - 1)}
    torch.manual_seed(0)
    models = (timer_xl.Model(config), timer_xl.Model(ModelConfig(**causal)),
              timer_xl_draft.Model(ModelConfig(**causal | scales | ahead)))
    for model in models:
        model.to(device).eval()
    for model in models[1:]:  # the first is timed as OpenLTM computes
        pack_linears(model)
    return variables, *models


@torch.inference_mode()
def reencode(model, context: torch.Tensor, horizon: int) -> torch.Tensor:
    """OpenLTM's rolling forecast: every patch costs a full pass over a window, with outputs for all its tokens."""
    length, series = context.shape[1], context
    for _ in range(patches_in(horizon, PATCH)):
        series = torch.cat([series, model(series[:, -length:])[:, -PATCH:]], dim=1)
    return series[:, length:length + horizon]


@torch.inference_mode()
def bare_pass(model, context: torch.Tensor, proposals: torch.Tensor) -> torch.Tensor:
    """One target pass over context and proposals [B, K, P, C], and nothing else."""
    K = proposals.shape[1]
    return model.extend(model.start(context, room=K), proposals if K else None).mean


def measure(name: str, context_len: int, horizon: int, batch: int, acceptance: float, budget_s: float, device):
    """Rows of one cell, and the planner's row; all modes are timed interleaved, under the same conditions."""
    variables, window_target, target, draft = build(name, context_len, horizon, device)
    n = patches_in(horizon, PATCH)
    context = torch.randn(batch, context_len, variables, device=device)
    noise = Noise.draw(context, n, PATCH, torch.Generator().manual_seed(0))
    proposals = torch.randn(batch, n - 1, PATCH, variables, device=device)
    planned = SpeculativeMethod(target, draft, horizon, Forced(acceptance), None, seed=0)
    plan = planned.plan(context)
    tqdm.write(plan.describe())

    def speculate(probability):
        # new draws every time: the cost of a typical forecast, not of one
        noise.uniform.uniform_()
        return decode_speculative(target, draft, context, horizon, Forced(probability), None, noise)

    calls = {
        "reencode": lambda _: reencode(window_target, context, horizon),
        "cached": lambda _: decode_alone(target, context, horizon),
        "speculative_trained": lambda _: speculate(acceptance),
        "speculative_forced": lambda _: speculate(1.0),
        "planned": lambda _: planned.forecast(context),
        "limit": lambda _: bare_pass(target, context, proposals),
    }
    times = timed(calls, None, device, budget_s)
    passes = _passes(n, [speculate(acceptance) for _ in range(20 if batch == 1 else 1)])
    cell = {"config": name, "context": context_len, "horizon": horizon, "batch": batch}
    machine = {key: hardware(device)[key] for key in ("device", "threads")}
    rows = [cell | {"mode": mode} | machine | passes[mode]
            | {key: round(value, 3) for key, value in times[mode].items()} for mode in MODES]
    ms, plain = times["planned"]["ms_median"], min(times[mode]["ms_median"] for mode in ("reencode", "cached"))
    return rows, cell | {"proposals": plan.proposals, "ms_predicted": round(batch * plan.predicted[plan.proposals], 3),
                         "ms_median": round(ms, 3), "ms_plain": round(plain, 3), "ratio": round(ms / plain, 3)}


def timed(calls: dict, given, device: torch.device, budget_s: float, most: int = 40, warm_up: int = 1) -> dict:
    """`time_side_by_side` of calls on `given`: as often as fits into `budget_s` seconds, but 3 to `most` times."""
    spent = sum(part["ms_median"] for part in time_side_by_side(calls, [given], device, warm_up).values())
    repeats = int(min(most, max(3, 1000 * budget_s / spent)))
    return time_side_by_side(calls, [given] * repeats, device, warm_up=0)


def _passes(n: int, decoded: list) -> dict[str, dict]:
    """Acceptance and passes per forecast of every mode."""
    def row(target, draft, acceptance=""):
        return {"target_passes": target, "draft_passes": draft, "acceptance": acceptance}

    def mean(part):
        return round(float(torch.cat([getattr(d, part) for d in decoded]).double().mean()), 3)
    judged = sum(int(d.judged.sum()) for d in decoded)
    seen = round(sum(int(d.accepted.sum()) for d in decoded) / judged, 4) if judged else ""
    return {"reencode": row(n, 0), "cached": row(n, 0), "limit": row(1, 0),
            "speculative_forced": row(1, min(1, n - 1), 1.0),
            "speculative_trained": row(mean("target_passes"), mean("draft_passes"), seen)}


def parse_cells(text: str | None) -> list[tuple[str, int, int, int]]:
    if text is None:
        return [(name, context, horizon, batch) for name in CONFIGS for context in CONTEXTS for horizon in HORIZONS
                for batch in BATCHES]
    cells: list[tuple[str, int, int, int]] = []
    for cell in text.split(","):
        try:
            name, *numbers = cell.split(":")
            context, horizon, batch = (int(number) for number in numbers)
        except ValueError:
            raise UserError(f"--cells {cell}: write config:context:horizon:batch, such as deep:672:720:1") from None
        if name not in CONFIGS or context < PATCH or context % PATCH or horizon < 1 or batch < 1:
            raise UserError(f"--cells {cell}: the config must be one of {', '.join(CONFIGS)}, the context a multiple "
                            f"of {PATCH}, horizon and batch at least 1")
        cells.append((name, context, horizon, batch))
    return cells


def add_measuring(parser: Parser, accepted: str, acceptance: float, budget_s: float) -> None:
    """The flags of a timing with an imposed acceptance, with their defaults; accepted: what it is the acceptance of."""
    parser.add_argument("--acceptance", type=reader(Number(0, 1)), default=acceptance,
                        help=f"{accepted} (default: %(default)s)")
    parser.add_argument("--budget_s", type=reader(Number(0, 1e6, open_low=True)), default=budget_s,
                        help="seconds of measurement per cell (at least 3 repeats; default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=None, help="config:context:horizon:batch[,...] (default: the whole grid)")
    parser.add_argument("--out", default="benchmark/decode_speed.csv", help="csv; the plot goes next to it as .png")
    add_measuring(parser, "acceptance of speculative_trained", acceptance=0.97, budget_s=20.0)
    return exit_code(lambda: run(parser.parse_args(argv)), "the sizes in --cells",
                     "the tables hold the cells measured so far")


def run(args) -> None:
    cells = parse_cells(args.cells)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out = Path(args.out)
    rows: list[dict] = []
    plans: list[dict] = []
    for cell in tqdm(cells, unit="cell", disable=args.quiet):
        name, context, horizon, batch = cell
        cell_rows, plan = measure(name, context, horizon, batch, args.acceptance, args.budget_s, device)
        rows, plans = rows + cell_rows, [*plans, plan]
        write_csv(out, rows, COLUMNS)  # an interrupted run keeps the cells measured so far
        write_csv(out.with_name(f"{out.stem}_planner.csv"), plans, PLAN_COLUMNS)
    print(format_table(rows, {key: key for key in COLUMNS[:-2]}), end="\n\n")
    print(format_table(plans, {key: key for key in PLAN_COLUMNS}))
    decode_speed_figure(out.with_suffix(".png"), rows)
    print(f"tables: {out}, {out.with_name(f'{out.stem}_planner.csv')}\nplot: {out.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(main())
