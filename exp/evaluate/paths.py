"""--num_samples: paths for every test window, from the target alone or with a sampling rule, and their scores."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from utils.decoded import Decoded
from utils.errors import UserError
from utils.scores import PathMetrics, RollingScale

MOST_STEPS = 2**26  # cap on steps in all paths decoded at once: 0.25 GiB, plus some buffers of that size
PRIOR = 0.25  # weight of factor 1 in the rolling scale, as a fraction of one context of windows


class PathEvaluation(Evaluation):
    """Scores of sampled paths, as sampled and rescaled by preceding windows; add: callback that stores paths."""

    def __init__(self, covariate: bool, patch_len: int, rolling: RollingScale, rows: Sequence[int], add=None):
        super().__init__(covariate)
        self.plain, self.rescaled = PathMetrics(patch_len), PathMetrics(patch_len)
        self.rolling, self.rows, self.add = rolling, torch.tensor(rows), add

    def update(self, decoded: Decoded, truth: torch.Tensor, seconds: float, reference: torch.Tensor | None) -> None:
        assert decoded.paths is not None
        rows = self.rows[self.windows:self.windows + len(truth)]
        super().update(decoded, truth, seconds, reference)
        paths, truth = scored(decoded.paths, self.covariate), scored(truth, self.covariate)
        self.plain.update(paths, truth)
        mean = paths.mean(dim=1, keepdim=True)
        factor = self.rolling.factors(paths, truth, rows)
        self.rescaled.update(mean + factor[:, None] * (paths - mean), truth)
        if self.add is not None:
            self.add(paths, truth)


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
                   folder: Path) -> dict[str, Any]:
    """Scores of `num_samples` paths per test window; writes pit.png, and samples.npz if asked for."""
    data, samples, covariate = settings.data, settings.report.num_samples or 0, settings.model.config.covariate
    patch_len, span = settings.model.config.patch_len, settings.data.test_context
    rows = spread_windows(dataset, data.test_windows)
    prior = PRIOR * span * len(rows) / len(dataset)
    rolling = RollingScale(patch_len, span, dataset.first_items, prior)
    at_once = windows_at_once(settings, dataset)
    kept = samples_file(folder / "samples.npz", samples_shape(settings, dataset), window_index=rows,
                        series=dataset.series_of(torch.tensor(rows)).tolist()) \
        if settings.report.save_samples else nullcontext(None)
    with kept as add:
        record = PathEvaluation(covariate, patch_len, rolling, rows, add)
        evaluate({"samples": method}, in_parts(loader, at_once), device, covariate, settings.run.quiet,
                 records={"samples": record}, what="samples")
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


def in_parts(batches: Batches, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same windows in batches of at most `size`."""
    for x, y in batches:
        yield from zip(x.split(size), y.split(size))
