"""--num_samples: paths for every test window, from the target alone or with a sampling rule, and their scores."""
from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from data_provider.data_factory import spread_windows
from exp.evaluate.evaluation import Batches, Evaluation, evaluate, scored
from exp.evaluate.methods import Method
from exp.report.plots import pit_figure
from exp.report.results import samples_file
from exp.settings import Settings
from exp.team import ALONE, Team
from utils.decoded import Decoded
from utils.errors import UserError
from utils.scores import PathMetrics, RollingScale

MOST_STEPS = 2**26  # cap on steps in all paths decoded at once: 0.25 GiB, plus some buffers of that size
PRIOR = 0.25  # weight of factor 1 in the rolling scale, as a fraction of one context of windows


class PathEvaluation(Evaluation):
    """Scores of sampled paths, as sampled and rescaled by preceding windows.

    rows: all windows of the walk, in order, of which those from number `first` on come here. add: callback that stores
    paths in the main process; keeps: whether there is one, in all of them.
    """

    def __init__(self, covariate: bool, rolling: RollingScale, rows: torch.Tensor, keeps: bool = False, add=None,
                 first: int = 0):
        super().__init__(covariate)
        self.rolling, self.rows, self.keeps, self.add, self.first = rolling, rows, keeps, add, first
        self.plain, self.rescaled = PathMetrics(rolling.patch_len), PathMetrics(rolling.patch_len)
        self.last = torch.zeros(0), torch.zeros(0), torch.zeros(0)  # paths, truths and rows of a batch

    def part(self, first: int) -> PathEvaluation:
        return PathEvaluation(self.covariate, self.rolling, self.rows, self.keeps, None, first)

    def update(self, decoded: Decoded, truth: torch.Tensor, seconds: float, reference: torch.Tensor | None) -> None:
        assert decoded.paths is not None
        super().update(decoded, truth, seconds, reference)
        paths, truth = scored(decoded.paths, self.covariate), scored(truth, self.covariate)
        self.plain.update(paths, truth)
        self.last = paths, truth, self.rows[self.first:self.first + len(truth)]

    def exchange(self, part: Any, team: Team) -> None:
        """Every process learns the errors of all windows so far, and rescales the paths of its own by them."""
        for known in team.everyone(None if part is None else part.known()):
            if known is not None:
                self.rolling.add(*known)
        if part is not None:
            part.rescale()

    def known(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What a batch adds to the rolling scale."""
        paths, truth, rows = self.last
        return self.rolling.squares_of(paths, truth), rows

    def rescale(self) -> None:
        """Scores a batch as rescaled by the windows before it, which are known by now."""
        paths, truth, rows = self.last
        mean = paths.mean(dim=1, keepdim=True)
        factor = self.rolling.factors_at(rows, truth.shape[1]).to(truth)
        self.rescaled.update(mean + factor[:, None] * (paths - mean), truth)
        self.last = (paths.cpu(), truth.cpu(), rows) if self.keeps else (rows[:0],) * 3

    def merge(self, part: PathEvaluation) -> None:
        super().merge(part)
        self.plain.merge(part.plain)
        self.rescaled.merge(part.rescaled)
        if self.add is not None:
            self.add(*part.last[:2])

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the sums, not what they were made with."""
        return vars(self) | {"rolling": None, "rows": None, "add": None}


def samples_shape(settings: Settings, dataset) -> tuple[int, int, int, int]:
    """Shape of samples.npz: windows, paths, steps, scored variables."""
    windows = len(spread_windows(dataset, settings.data.test_windows))
    variables = 1 if settings.model.config.covariate else dataset.variables
    return windows, settings.report.num_samples or 0, settings.data.horizon, variables


def windows_at_once(settings: Settings, dataset) -> int:
    """Number of windows whose paths are decoded at once, if the batch has as many."""
    steps = (settings.data.test_context + settings.data.horizon) * dataset.variables
    return max(1, MOST_STEPS // ((settings.report.num_samples or 1) * steps))


def evaluate_paths(method: Method, dataset, loader: Batches, settings: Settings, device: torch.device,
                   folder: Path, team: Team = ALONE) -> dict[str, Any]:
    """Scores of `num_samples` paths per test window; writes pit.png, and samples.npz if asked for.

    The loader has batches of at most `windows_at_once`. Of several processes, the main one writes and has the scores.
    """
    data, samples, covariate = settings.data, settings.report.num_samples or 0, settings.model.config.covariate
    patch_len, span = settings.model.config.patch_len, settings.data.test_context
    rows = spread_windows(dataset, data.test_windows)
    prior = PRIOR * span * len(rows) / len(dataset)
    rolling = RollingScale(patch_len, span, dataset.first_items, prior)
    kept = samples_file(folder / "samples.npz", samples_shape(settings, dataset), window_index=rows,
                        series=dataset.series_of(torch.tensor(rows)).tolist()) \
        if settings.report.save_samples and team.is_main else nullcontext(None)
    with kept as add:
        record = PathEvaluation(covariate, rolling, torch.tensor(rows), settings.report.save_samples, add)
        evaluate({"samples": method}, loader, device, covariate, settings.run.quiet, records={"samples": record},
                 what="samples", team=team)
        if not team.is_main:
            return {}
        scores = record.plain.result()
        if not math.isfinite(scores["mse_of_mean"] + scores["energy_score"]):  # before a file is written
            raise UserError("the sampled paths are finite, but so large that their scores overflow: train the model "
                            "again")
    scores |= {"paths": samples, "seconds": record.seconds,
               "rolling": record.rescaled.result() | {"span": span, "prior": prior}}
    scores |= record.cost() if record.speculation is not None else {}
    if not settings.report.save_samples:  # a file of an older run must not be mistaken for this run's
        (folder / "samples.npz").unlink(missing_ok=True)
    pit_figure(folder / "pit.png", {"as sampled": scores, "rescaled by preceding windows": scores["rolling"]},
               f"{samples} paths per window, {len(rows)} windows, horizon {data.horizon}")
    return scores

