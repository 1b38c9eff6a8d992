"""Time of one forecast of public models: rolled as their own code does, and with speculation.

    bash scripts/benchmark/public_models.sh [--models timer,...] [--horizons 720,1440] [--batches 1] [--out FILE.csv]

Weights are RANDOM and of the public model's size, and every proposal is accepted: the time of a pass does not depend on
the weights. So these are the most that speculation can gain; a draft that was distilled says how much of it remains.
All ways of a cell are timed interleaved; ms is the median of a whole batch, gain is over the first way of the cell.

timer, 8 x d1024, 84 M parameters, each patch normalised by itself (`norm_roll` patch), patches of 96 steps:
  own roll            one patch a pass with a key-value cache, in torch's own layout of the weights
  own roll, packed    the same, with the weights laid out for the CPU's kernels, as in all ways below
  speculative, forced a draft of a quarter of its size proposes all patches, one pass of the target verifies them
  limit               one bare pass of the target over context and proposals

timesfm, 20 x d1280, 231 M parameters with both heads, reads 32 steps, predicts 128, and 1024 ahead:
  package's decode    that of the package timesfm, where it is installed; not compiled
  own decode          the same forecast by this program, in torch's own layout of the weights
  own decode, packed  the same, with the weights laid out for the CPU's kernels, as in all ways below
  head-drafted, forced   the longer head proposes, in the pass over the context; one more pass verifies
  head-drafted, bf16  the same with weights in bfloat16
  limit               one bare pass of the target over context and proposals
"""
from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from exp.flags import Parser, reader
from exp.program import exit_code
from exp.report.results import format_table, write_csv
from layers.linear import pack_linears
from models import timer, timer_xl_draft, timesfm
from models.config import ModelConfig
from scripts.benchmark.decode_speed import Forced, bare_pass, timed
from utils.errors import UserError
from utils.limits import Number
from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_speculative, patches_in
from utils.timing import hardware

COLUMNS = ["model", "horizon", "batch", "way", "ms", "passes", "context", "gain", "ms_p10", "ms_p90", "repeats",
           "device", "threads", "torch"]
TIMER = ModelConfig(input_token_len=96, d_model=1024, n_heads=8, d_ff=2048, e_layers=8, activation="silu",
                    use_norm=True)
TIMESFM = ModelConfig.from_mapping(timesfm.PUBLIC)
QUARTER = {f"draft_scale_{part}": 0.25 for part in ("d_model", "n_heads", "d_ff", "e_layers")}


@dataclass(frozen=True)
class Cell:
    """Forecasts of `horizon` steps from `context` steps of `batch` univariate windows."""

    context: int
    horizon: int
    batch: int
    device: torch.device

    def noise(self) -> torch.Tensor:
        return torch.randn(self.batch, self.context, 1, generator=torch.Generator().manual_seed(0)).to(self.device)


@dataclass(frozen=True)
class Way:
    """A way to forecast: context [B, L, 1] -> anything; passes: of the target, per forecast."""

    forecast: Callable[[torch.Tensor], Any]
    passes: int


@dataclass(frozen=True)
class PublicModel:
    """ways: of a cell, the model's own first; contexts, horizons: those that are measured by default, in steps."""

    ways: Callable[[Cell], dict[str, Way]]
    contexts: tuple[int, ...]
    horizons: tuple[int, ...]


def ready(model: Any, device: torch.device, packed: bool = True) -> Any:
    model.to(device).eval()
    if packed:
        pack_linears(model)
    return model


def timer_ways(cell: Cell) -> dict[str, Way]:
    patch, n = TIMER.input_token_len, patches_in(cell.horizon, TIMER.input_token_len)
    torch.manual_seed(0)
    plain = ready(timer.Model(TIMER), cell.device, packed=False)
    target = ready(copy.deepcopy(plain), cell.device)
    draft = ready(timer_xl_draft.Model(ModelConfig(**TIMER.as_dict() | QUARTER | {
        "norm_mode": "causal", "norm_window": cell.context // patch, "draft_stochastic": True,
        "draft_patches": max(1, n - 1)})), cell.device)
    noise = Noise.draw(cell.noise(), n, patch, torch.Generator().manual_seed(0))
    proposals = torch.randn(cell.batch, n - 1, patch, 1, device=cell.device)
    return {
        "own roll": Way(lambda x: decode_alone(plain, x, cell.horizon), n),
        "own roll, packed": Way(lambda x: decode_alone(target, x, cell.horizon), n),
        "speculative, forced": Way(
            lambda x: decode_speculative(target, draft, x, cell.horizon, Forced(1.0), None, noise), 1),
        "limit": Way(lambda x: bare_pass(target, x, proposals), 1),
    }


def timesfm_ways(cell: Cell) -> dict[str, Way]:
    patch, n = TIMESFM.patch_len, patches_in(cell.horizon, TIMESFM.patch_len)
    torch.manual_seed(0)
    plain = ready(timesfm.Model(TIMESFM), cell.device, packed=False)
    target, half = ready(copy.deepcopy(plain), cell.device), ready(copy.deepcopy(plain), cell.device, packed=False)
    half.halve()
    noise = Noise.draw(cell.noise(), n, patch, torch.Generator().manual_seed(0))
    proposals = torch.randn(cell.batch, n - 1, patch, 1, device=cell.device)

    def drafted(model):
        forced = Forced(1.0)
        return Way(lambda x: decode_speculative(model, None, x, cell.horizon, forced, None, noise), head_passes(n))
    return package_way(cell, n) | {
        "own decode": Way(lambda x: decode_alone(plain, x, cell.horizon), n),
        "own decode, packed": Way(lambda x: decode_alone(target, x, cell.horizon), n),
        "head-drafted, forced": drafted(target),
        "head-drafted, bf16": drafted(half),
        "limit": Way(lambda x: bare_pass(target, x, proposals), 1),
    }


def head_passes(n: int) -> int:
    """Passes for n patches where all is accepted: each verifies what the one before proposed, and adds one patch."""
    passes, done, stock = 0, 0, 0
    while done < n:
        passes, done = passes + 1, done + stock + 1
        stock = min(timesfm.LONG_PATCHES - 1, n - done - 1)
    return passes


def package_way(cell: Cell, n: int) -> dict[str, Way]:
    """The decode of the package timesfm, of the public size; none where it is not installed, or for other sizes."""
    if find_spec("timesfm") is None or TIMESFM.d_model != timesfm.PUBLIC["d_model"]:
        return {}
    from timesfm.timesfm_2p5.timesfm_2p5_torch import TimesFM_2p5_200M_torch_module
    package = ready(TimesFM_2p5_200M_torch_module(), cell.device, packed=False)
    masks = torch.zeros(cell.batch, cell.context, dtype=torch.bool, device=cell.device)
    return {"package's decode": Way(lambda x: package.decode(cell.horizon, x[..., 0], masks), n)}


MODELS = {"timer": PublicModel(timer_ways, contexts=(672, 2880), horizons=(720, 1440)),
          "timesfm": PublicModel(timesfm_ways, contexts=(512, 2048), horizons=(1024,))}


def measure(name: str, cell: Cell, budget_s: float) -> list[dict[str, Any]]:
    """Rows of one cell."""
    ways = MODELS[name].ways(cell)
    times = timed({way: each.forecast for way, each in ways.items()}, cell.noise(), cell.device, budget_s)
    first = next(iter(times.values()))["ms_median"]
    machine = {key: hardware(cell.device)[key] for key in ("device", "threads", "torch")}
    return [{"model": name, "horizon": cell.horizon, "batch": cell.batch, "way": way, "passes": ways[way].passes,
             "context": cell.context, "ms": f"{found['ms_median']:.5g}", "gain": f"{first / found['ms_median']:.4g}",
             "ms_p10": f"{found['ms_p10']:.5g}", "ms_p90": f"{found['ms_p90']:.5g}", "repeats": found["repeats"]}
            | machine for way, found in times.items()]


def numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers from 1 on, with commas between them")
    return found


def run(args) -> None:
    names = args.models.split(",")
    if not set(names) <= set(MODELS):
        raise UserError(f"--models {args.models}: there are {', '.join(MODELS)}")
    if args.out.suffix != ".csv":
        raise UserError(f"--out {args.out} must end in .csv")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cells = [(name, Cell(context, horizon, batch, device)) for name in names
             for context in args.contexts or MODELS[name].contexts for batch in args.batches
             for horizon in args.horizons or MODELS[name].horizons]
    rows: list[dict[str, Any]] = []
    for name, cell in tqdm(cells, unit="cell", disable=args.quiet):
        rows += measure(name, cell, args.budget_s)
        write_csv(args.out, rows, COLUMNS)  # an interrupted run keeps the cells measured so far
    print(format_table(rows, {key: key for key in COLUMNS[:8]}))
    print(f"table: {args.out}")


def main(argv=None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmark/public_models.csv"), help="default: %(default)s")
    parser.add_argument("--models", default=",".join(MODELS), help="default: %(default)s")
    parser.add_argument("--contexts", type=numbers, default=None, help="steps (default: those of each model)")
    parser.add_argument("--horizons", type=numbers, default=None, help="steps (default: those of each model)")
    parser.add_argument("--batches", type=numbers, default=(1,), help="windows at once (default: 1)")
    parser.add_argument("--budget_s", type=reader(Number(0, 1e6, open_low=True)), default=15.0,
                        help="seconds of measurement per cell (at least 3 repeats; default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return exit_code(lambda: run(parser.parse_args(argv)), "--contexts, --horizons or --batches",
                     "the table holds the cells measured so far")


if __name__ == "__main__":
    sys.exit(main())
