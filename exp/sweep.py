"""A sweep: cells of a grid of decoding parameters, all measured on the same windows by models that are loaded once."""
import argparse
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data_provider.data_factory import data_file, data_provider, spread_windows
from exp.evaluation import AloneMethod, evaluate, make_speculative
from exp.exp_forecast import Exp_Forecast
from exp.laws import law_of_flags
from exp.options import parse_args
from utils.checkpoint import ARGS
from utils.errors import UserError
from utils.results import DRAFT, TARGET, refuse_overflow
from utils.timing import hardware

FLAGS = {"rule": "spec_accept_rule", "emit": "spec_emit", "sigma": "spec_sigma", "bias": "spec_accept_bias",
         "tol": "spec_tol", "k": "spec_k"}  # column of the table -> flag of run.py
NUMBERS = ("sigma", "bias", "tol", "k")


@dataclass(frozen=True)
class Cell:
    """What one row of the table was measured with; None where a parameter has no meaning.

    rule: of utils.acceptance, or TARGET / DRAFT for one model by itself.
    """

    rule: str
    emit: str | None = None
    sigma: float | None = None
    bias: float | None = None
    tol: float | None = None
    k: int | None = None


def make_cells(flags: list[str], grid: dict[str, list], given: set[str]) -> list[Cell]:
    """The two references, then every combination that differs in something that has a meaning for its rule.

    flags: of run.py, common to all cells (a rule among them gives way to the cell's); grid: column -> values; given:
    columns that the user named. What has a meaning is what run.py's own flags accept. Raises UserError where
    something given has none for any rule swept.
    """
    cells, used = [Cell(TARGET), Cell(DRAFT)], {"rule"}
    for rule in grid["rule"]:
        named = [*flags, "--spec_accept_rule", rule]
        default = parse_args(named)
        axes = {name: [value for value in grid[name] if _has_meaning(named, name, value)]
                for name in ("emit", *NUMBERS)}
        used |= {name for name, values in axes.items() if values}
        emits = axes.pop("emit") or [default.spec_emit]
        cells += [Cell(rule, emit, *numbers)
                  for emit in emits for numbers in itertools.product(*(values or [None] for values in axes.values()))]
    for name in sorted(given - used):
        values, rules = (",".join(map(str, grid[column])) for column in (name, "rule"))
        raise UserError(f"--{name} {values} has no meaning for --rule {rules}: leave it out, or add a rule that it has "
                        "one for")
    return cells


def _has_meaning(flags: list[str], name: str, value) -> bool:
    try:
        parse_args([*flags, f"--{FLAGS[name]}", str(value)])
    except UserError:
        return False
    return True


class Bench:
    """Target, draft and test windows in memory; `measure` forecasts the windows as one cell says.

    flags: of run.py, with --use_speculative; windows: how many of each series, evenly spread over the test part (None:
    512, or all where there are fewer).
    """

    def __init__(self, flags: list[str], windows: int | None):
        self.args = parse_args(flags)
        experiment = Exp_Forecast(self.args)
        self.checkpoint = experiment.tested_checkpoint(self.args.test_dir)
        self.device = experiment.device
        self.target, self.draft = experiment.load_pair(self.checkpoint)
        dataset, _ = data_provider(self.args, "test")
        self.available = dataset.windows
        self.windows = windows or min(512, self.available)
        if self.windows > self.available:
            raise UserError(f"--windows {windows}: the test part of {data_file(self.args)} has {self.available}, give "
                            "at most that")
        items = torch.as_tensor(spread_windows(dataset, self.windows)).split(self.args.batch_size)
        self.batches = [tuple(part.to(self.device).contiguous() for part in dataset.__getitems__(batch.tolist()))
                        for batch in items]
        self.law = None  # white noise of the cell's sigma
        if self.args.spec_sigma_mode == "calibrated":
            self.law = law_of_flags(self.args, self.target, self.checkpoint, self.device, experiment.say)
        for cell in (Cell(TARGET), Cell(DRAFT)):  # the first passes of a process are slow, and no cell's fault
            self._method(cell).forecast(self.batches[0][0])

    def files(self) -> dict[str, str]:
        """Digests of what was loaded."""
        return {"target_sha256": digest(self.checkpoint), "draft_sha256": digest(self.args.spec_draft_ckpt),
                "data_sha256": digest(data_file(self.args))}

    def settings(self) -> dict:
        """What results depend on, the cell aside: file contents, windows, lengths and the machine."""
        args = self.args
        return self.files() | {
            "windows": f"{self.windows} of {self.available}", "horizon": args.test_pred_len,
            "context": args.test_seq_len, "patch": args.input_token_len, "batch_size": args.batch_size,
            "seed": args.seed} | hardware(self.device)

    def measure(self, cell: Cell) -> dict:
        """The measured columns of the cell's row. Noise comes from a generator of its own, seeded by --seed."""
        method = self._method(cell)
        out = evaluate(method, self.batches, self.device, self.args.covariate, quiet=True)
        result = out.result(self.args.batch_size)
        refuse_overflow(result["mse"], f"cell {asdict(cell)}")
        if cell.rule in (TARGET, DRAFT):
            result["target_passes" if cell.rule == TARGET else "draft_passes"] = method.passes
        return result | {"seed": self.args.seed}

    def _method(self, cell: Cell):
        if cell.rule in (TARGET, DRAFT):
            return AloneMethod(self.target if cell.rule == TARGET else self.draft, self.args.test_pred_len)
        own = {FLAGS[name]: value for name, value in asdict(cell).items() if value is not None}
        return make_speculative(self.target, self.draft, argparse.Namespace(**vars(self.args) | own), law=self.law)


def run_serially(bench: Bench, cells: list[Cell]) -> Iterator[tuple[Cell, dict]]:
    for cell in cells:
        yield cell, bench.measure(cell)


def digest(path: str | Path) -> str:
    """sha256 of a file, of the args.json beside it too where it is a checkpoint."""
    sha = hashlib.sha256()
    beside = Path(path).with_name(ARGS)
    for file in [Path(path), *([beside] if Path(path).suffix == ".pth" and beside.is_file() else [])]:
        with open(file, "rb") as handle:
            while block := handle.read(2**20):
                sha.update(block)
    return sha.hexdigest()
