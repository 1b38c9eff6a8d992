"""--num_samples: paths of every test window, from the target alone or by a sampling rule, and their scores."""
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data_provider.data_factory import spread_windows
from exp.evaluation import SpeculativeMethod, scored
from utils.calibration import RollingScale
from utils.metrics import SpeculationMetrics
from utils.plots import pit_figure
from utils.probabilistic import PathMetrics
from utils.results import refuse_overflow, samples_file
from utils.sampling import sample_alone
from utils.speculative_decoder import patches_in
from utils.target_law import TargetLaw
from utils.timing import Stopwatch

MOST_STEPS = 2**26  # of all series that are decoded at once: 0.25 GiB, and some buffers of that size
PRIOR = 0.25  # of the rolling scale: the weight of the calibration as it is, against a context full of windows


class PlainSampler:
    """Paths of the target alone; those of a window do not depend on the batch that it is in."""

    speculation = None

    def __init__(self, model, horizon: int, law: TargetLaw, seed: int):
        self.model, self.horizon, self.law = model, horizon, law
        self.generator = np.random.default_rng(seed)  # its numbers come one by one, in the order of the windows

    def paths(self, context: torch.Tensor, samples: int) -> torch.Tensor:
        P = self.model.patch_len
        shape = (len(context), samples, patches_in(self.horizon, P), P, context.shape[2])
        z = torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32)).to(context.device)
        return sample_alone(self.model, context, self.horizon, self.law, z)[0]


class SpeculativeSampler:
    """Paths by a sampling rule, and what they cost."""

    def __init__(self, method: SpeculativeMethod):
        self.method, self.speculation = method, SpeculationMetrics()

    def paths(self, context: torch.Tensor, samples: int) -> torch.Tensor:
        decoded = self.method.decode(context, samples=samples)
        self.speculation.update(decoded)
        return decoded.forecast.unflatten(0, (-1, samples))


def samples_shape(args, dataset) -> tuple[int, int, int, int]:
    """Of samples.npz: windows, paths, steps, variables that count."""
    windows = len(spread_windows(dataset, args.test_windows))
    variables = 1 if args.covariate or dataset.series > 1 else len(dataset.names)
    return windows, args.num_samples, args.test_pred_len, variables


def evaluate_paths(sampler, dataset, loader, args, device: torch.device, folder: Path) -> dict:
    """Scores of --num_samples paths of every test window; writes pit.png, and samples.npz if asked for."""
    rows, samples = spread_windows(dataset, args.test_windows), args.num_samples
    plain, rescaled = PathMetrics(args.input_token_len), PathMetrics(args.input_token_len)
    span = args.test_seq_len
    prior = PRIOR * span * len(rows) / len(dataset)
    rolling = RollingScale(args.input_token_len, span, dataset.windows, prior)
    at_once = max(1, MOST_STEPS // (samples * (args.test_seq_len + args.test_pred_len) * len(dataset.names)))
    watch, seconds, done = Stopwatch(device), 0.0, 0
    file = samples_file(folder / "samples.npz", samples_shape(args, dataset), rows) if args.save_samples \
        else nullcontext(None)
    with file as add, tqdm(total=len(rows), desc="samples", unit="window", disable=args.quiet) as bar:
        for x, y in loader:
            for some, truth in zip(x.split(at_once), scored(y, args.covariate).split(at_once)):
                some, truth = some.to(device), truth.to(device)
                with watch:
                    paths = scored(sampler.paths(some, samples), args.covariate)
                seconds += watch.seconds
                plain.update(paths, truth)
                mean = paths.mean(dim=1, keepdim=True)
                factor = rolling.factors(paths, truth, torch.tensor(rows[done:done + len(truth)]))
                rescaled.update(mean + factor[:, None] * (paths - mean), truth)
                if add is not None:
                    add(paths, truth)
                done += len(truth)
                bar.update(len(truth))
        refuse_overflow(plain.result()["mse_of_mean"], "the mean of the sampled paths")  # before there is a file
    scores = plain.result() | {"paths": samples, "seconds": seconds,
                               "rolling": rescaled.result() | {"span": span, "prior": prior}}
    if sampler.speculation is not None:
        scores |= sampler.speculation.result() | {"windows": len(rows)}
    if not args.save_samples:  # those of an older run must not be taken for these
        (folder / "samples.npz").unlink(missing_ok=True)
    pit_figure(folder / "pit.png", {"as sampled": scores, "rescaled by the windows before": scores["rolling"]},
               f"{samples} paths of {len(rows)} windows, horizon {args.test_pred_len}")
    return scores
