"""A sweep: cells of a grid of decoding parameters, measured on the same windows with models that are loaded once."""
from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from data_provider.data_factory import spread_windows
from exp.evaluate.evaluation import evaluate
from exp.evaluate.methods import AloneMethod, Method, make_rule, make_speculative
from exp.exp_basic import Exp_Basic
from exp.laws import target_law
from exp.memory import Shape, refuse_unfitting_test
from exp.report.results import DRAFT, TARGET
from exp.settings import Settings, SpecSettings, parameters_of
from models.checkpoint import ARGS
from utils.errors import UserError
from utils.files import digest
from utils.timing import hardware

NUMBERS = ("sigma", "bias", "tol", "k")
DEFAULT_WINDOWS = 512
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """Parameters of one row of the table; None if a parameter does not apply.

    rule: one of utils.acceptance, or TARGET / DRAFT for one model alone.
    """

    rule: str
    emit: str | None = None
    sigma: float | None = None
    bias: float | None = None
    tol: float | None = None
    k: int | None = None


def make_cells(spec: SpecSettings, shared: set[str], grid: Mapping[str, list], given: set[str]) -> list[Cell]:
    """The two references, then every distinct combination of the parameters that the rule uses.

    spec: settings shared by all cells (rule and emission are replaced by the cell's); shared: its fields that the user
    set; grid: column -> values; given: columns that the user set. Raises UserError if something that the user set
    applies to none of the rules.
    """
    cells, used = [Cell(TARGET), Cell(DRAFT)], {"rule"}
    for rule in grid["rule"]:
        own = replace(spec, rule=rule, emit=None)
        own.refuse_contradictions(shared)
        own.refuse_simplified_calibrated()
        axes = {name: grid[name] if _has_meaning(own, name) else [] for name in NUMBERS}
        possible = grid["emit"] if "emit" in parameters_of(rule) else [own.emission]
        emits = [emit for emit in grid["emit"] if emit in possible]
        used |= {name for name, values in (axes | {"emit": emits}).items() if values}
        cells += [Cell(rule, emit, *numbers) for emit in emits or [own.emission]
                  for numbers in itertools.product(*(values or [None] for values in axes.values()))]
    for name in sorted(given - used):
        values, rules = (",".join(map(str, grid[column])) for column in (name, "rule"))
        raise UserError(f"--{name} {values} does not apply to --rule {rules}: leave it out, or add a rule that uses "
                        "it")
    return cells


def _has_meaning(spec: SpecSettings, name: str) -> bool:
    """True if the parameter has an effect; a calibrated law estimates its own sigma."""
    if name == "k":
        return True
    return name in parameters_of(spec.rule) and not (name == "sigma" and spec.sigma_mode == "calibrated")


class Bench:
    """Target, draft and test windows in memory; `measure` forecasts the windows with the parameters of one cell.

    windows: number per series, evenly spaced over the test split (None: 512, or all if there are fewer).
    """

    def __init__(self, settings: Settings, windows: int | None):
        self.settings = settings
        experiment = Exp_Basic(settings)
        self.checkpoint, self.device = experiment.tested_checkpoint(), experiment.device
        self.draft_checkpoint = Path(str(settings.run.draft_checkpoint))
        self.target, self.draft = experiment.load_tested(self.checkpoint), experiment.load_draft()
        dataset = experiment.tested_split()
        self.available = int(dataset.counts.max())
        self.windows = windows or min(DEFAULT_WINDOWS, self.available)
        if self.windows > self.available:
            raise UserError(f"--windows {windows}: the test part of {settings.data.data_path} has {self.available}: "
                            "give at most that many")
        data = settings.data
        shape = Shape(min(data.batch_size, self.windows * dataset.n_series), dataset.variables, data.test_context,
                      data.horizon)
        refuse_unfitting_test(shape, self.device, self.target, self.draft)
        items = torch.as_tensor(spread_windows(dataset, self.windows)).split(settings.data.batch_size)
        pairs = (dataset.__getitems__(batch.tolist()) for batch in items)
        self.batches = [(x.to(self.device).contiguous(), y.to(self.device).contiguous()) for x, y in pairs]
        self.law = None  # white noise of the cell's sigma
        if settings.spec.sigma_mode == "calibrated":
            self.law = target_law(experiment, self.target, self.checkpoint)
        for cell in (Cell(TARGET), Cell(DRAFT)):  # warm-up: the first passes of a process are slow
            self._method(cell).decode(self.batches[0][0])

    def files(self) -> dict[str, str]:
        """Digests of the files that were loaded."""
        return {"target_sha256": with_settings(self.checkpoint), "draft_sha256": with_settings(self.draft_checkpoint),
                "data_sha256": digest(*(file.path for file in self.settings.data.files))}

    def describe(self) -> dict[str, Any]:
        """Everything that results depend on besides the cell: file contents, windows, lengths and the machine."""
        data = self.settings.data
        return self.files() | {
            "windows": f"{self.windows} of {self.available}", "horizon": data.horizon, "context": data.test_context,
            "patch": self.target.patch_len, "batch_size": data.batch_size, "seed": self.settings.run.seed,
        } | hardware(self.device)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """The measured columns of the cell's row. Noise comes from a separate generator, seeded with --seed."""
        out = evaluate({"cell": self._method(cell)}, self.batches, self.device, self.settings.model.config.covariate,
                       quiet=True)["cell"]
        return out.result(self.settings.data.batch_size) | {"seed": self.settings.run.seed}

    def _method(self, cell: Cell) -> Method:
        horizon = self.settings.data.horizon
        if cell.rule in (TARGET, DRAFT):
            return AloneMethod(self.target if cell.rule == TARGET else self.draft, horizon, cell.rule == DRAFT)
        own = {name: value for name, value in asdict(cell).items() if value is not None}
        spec = replace(self.settings.spec, **own)
        return make_speculative(self.target, self.draft, spec, horizon, self.settings.run.seed,
                                make_rule(spec, self.law))


def run_serially(bench: Bench, cells: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    for cell in cells:
        yield cell, bench.measure(cell)


def with_settings(checkpoint: Path) -> str:
    """Digest of a checkpoint and of the args.json beside it, if there is one."""
    beside = checkpoint.with_name(ARGS)
    return digest(checkpoint, *([beside] if beside.is_file() else []))
