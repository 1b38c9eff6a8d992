"""A sweep: cells of a grid of decoding parameters, measured on the same windows with models that are loaded once."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
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
from exp.settings import Settings
from exp.sweep.gaps import WINDOWS, Gaps, measure_gaps
from exp.sweep.grid import Cell
from models.checkpoint import ARGS
from utils.errors import UserError
from utils.files import digest
from utils.speculative_decoder import patches_in
from utils.timing import hardware

DEFAULT_WINDOWS = 512


class Bench:
    """Target, draft and test windows in memory; `measure` forecasts the windows with the parameters of one cell.

    windows: number per series, evenly spaced over the test split (None: 512, or all if there are fewer).
    """

    def __init__(self, settings: Settings, windows: int | None):
        self.settings = settings
        self.experiment = experiment = Exp_Basic(settings)
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

    def gaps(self) -> Gaps:
        """The gaps between draft and target on windows spread over the validation part: the test part has no say."""
        data, own = self.settings.data, "give values for --sigma and --tol, or --grid published"
        try:
            dataset = self.experiment.dataset("val", data.test_context)
        except UserError as error:
            raise UserError(f"{error}; or {own}, to sweep without validation windows") from None
        count = min(int(dataset.counts.max()), max(1, WINDOWS // dataset.n_series))
        items = torch.as_tensor(spread_windows(dataset, count)).split(len(self.batches[0][0]))
        contexts = (dataset.__getitems__(batch.tolist())[0].to(self.device).contiguous() for batch in items)
        return measure_gaps(self.target, self.draft, contexts, data.horizon,
                            patches_in(data.horizon, self.target.patch_len))

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
