"""Ways to forecast, and the walk over the test windows that measures them."""
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from utils.acceptance import make_rule
from utils.metrics import PointMetrics, SpeculationMetrics
from utils.planner import Plan, make_plan
from utils.proposals import Noise
from utils.speculative_decoder import Decoded, decode_alone, decode_speculative, patches_in
from utils.timing import Stopwatch


class AloneMethod:
    """One model by itself. A `forecast` call maps context [B, L, C] to [B, H, C]."""

    def __init__(self, model, horizon: int):
        self.model, self.horizon = model, horizon

    @property
    def passes(self) -> int:
        """Each gives one patch, or as many as the model's heads speak of."""
        return -(-patches_in(self.horizon, self.model.patch_len) // self.model.patches_ahead)

    def forecast(self, context: torch.Tensor) -> torch.Tensor:
        return decode_alone(self.model, context, self.horizon)


class SeasonalNaiveMethod:
    """Repeats the last season of the context."""

    def __init__(self, season: int, horizon: int):
        self.season, self.horizon = season, horizon

    def forecast(self, context: torch.Tensor) -> torch.Tensor:
        last = context[:, -self.season:]
        return last[:, torch.arange(self.horizon, device=context.device) % last.shape[1]]


class SpeculativeMethod:
    """Draft and target together; `decode` also tells what it cost.

    adaptive: K follows the acceptance seen in earlier batches, one step at a time, between 1 and max_proposals.
    plans: batch size -> utils.planner.Plan; a batch takes the K of the plan nearest to its size.
    """

    def __init__(self, target, draft, horizon: int, rule, max_proposals: int | None, seed: int, adaptive: bool = False,
                 repropose: str = "draft"):
        self.target, self.draft, self.horizon, self.rule = target, draft, horizon, rule
        self.seed, self.generator = seed, torch.Generator().manual_seed(seed)
        self.adaptive, self.repropose = adaptive, repropose
        most = max(1, patches_in(horizon, target.patch_len) - 1)
        self.most = most if max_proposals is None else min(max_proposals, most)
        self.plans = {}
        self.reset()

    def reset(self) -> None:
        """Forgets what `adaptive` has learned."""
        self.max_proposals = self.most

    def plan(self, context: torch.Tensor) -> Plan:
        """Decides K for batches of this size (--spec_k auto) by measurement on context [B, L, C]."""
        plan = make_plan(self.target, self.draft, context, self.horizon, self.rule, self.seed, self.repropose)
        self.plans[len(context)] = plan
        return plan

    def proposals_for(self, batch: int) -> int:
        if not self.plans:
            return self.max_proposals
        return self.plans[min(self.plans, key=lambda size: abs(size - batch))].proposals

    def decode(self, context: torch.Tensor, observer=None, samples: int = 1) -> Decoded:
        """samples > 1: so many forecasts of each window, as rows one after the other."""
        noise = None
        if self.rule.random:
            patches = patches_in(self.horizon, self.target.patch_len)
            rows = context.repeat_interleave(samples, dim=0)
            noise = Noise.draw(rows, patches, self.target.patch_len, self.generator)
        decoded = decode_speculative(self.target, self.draft, context, self.horizon, self.rule,
                                     self.proposals_for(len(context) * samples), noise, observer, self.repropose,
                                     samples)
        if self.adaptive:
            self._adapt(decoded)
        return decoded

    def forecast(self, context: torch.Tensor) -> torch.Tensor:
        if self.proposals_for(len(context)) == 0:
            return decode_alone(self.target, context, self.horizon)
        return self.decode(context).forecast

    def _adapt(self, decoded: Decoded) -> None:
        rate = decoded.accepted.sum() / decoded.judged.sum().clamp(min=1)
        step = 1 if rate >= 0.8 else -1 if rate <= 0.5 else 0
        self.max_proposals = min(self.most, max(1, self.max_proposals + step))


def make_speculative(target, draft, args, rule_name: str | None = None, emit: str | None = None,
                     law=None) -> SpeculativeMethod:
    """The speculative method of the flags, or with another rule or emission (for the rows of --compare).

    law: the target's (`utils.target_law`), for `exact` and `coupling`; default: white noise of --spec_sigma.
    """
    rule = make_rule(rule_name or args.spec_accept_rule, args, emit, law)
    default = 3 if rule.random else None
    proposals = default if args.spec_k is None else None if args.spec_k == "auto" else args.spec_k
    repropose = "draft" if rule.random and args.spec_repropose == "target" else args.spec_repropose
    return SpeculativeMethod(target, draft, args.test_pred_len, rule, proposals, args.seed, args.spec_adaptive,
                             repropose)


@dataclass
class Evaluation:
    """What a walk over the test windows gives: point metrics, cost of speculation (if any), seconds of decoding."""

    point: PointMetrics = field(default_factory=PointMetrics)
    speculation: SpeculationMetrics | None = None
    seconds: float = 0.0
    windows: int = 0

    def result(self, batch_size: int) -> dict:
        metrics = {"windows": self.windows, "batch_size": batch_size, "seconds": self.seconds,
                   "ms_per_forecast": 1000 * self.seconds / self.windows}
        speculation = self.speculation.result() if self.speculation else {}
        return self.point.result() | speculation | metrics


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a walk over the test windows; `so_far`: what the finished batches gave, by method."""

    def __init__(self, so_far: dict[str, Evaluation]):
        super().__init__()
        self.so_far = so_far


@contextmanager
def interruptible(so_far: dict[str, Evaluation]):
    """A KeyboardInterrupt inside becomes Interrupted, once there is a window that all methods have forecast."""
    try:
        yield
    except KeyboardInterrupt:
        if not all(out.windows for out in so_far.values()):
            raise
        raise Interrupted(so_far) from None


def scored(series: torch.Tensor, covariate: bool) -> torch.Tensor:
    """The variables that count: the last one with --covariate, else all."""
    return series[..., -1:] if covariate else series


def evaluate(method, loader, device: torch.device, covariate: bool = False, quiet: bool = False,
             observer=None) -> Evaluation:
    """Forecasts every test window with `method`. observer is handed to a speculative decode.

    Raises Interrupted, with what there is, where Ctrl-C ends it early.
    """
    speculative = isinstance(method, SpeculativeMethod)
    out = Evaluation(speculation=SpeculationMetrics() if speculative else None)
    watch = Stopwatch(device)
    with interruptible({"tested": out}), tqdm(loader, desc="test", unit="batch", disable=quiet) as bar:
        for x, y in bar:
            x, y = x.to(device), y.to(device)
            if observer is not None:
                observer.first_window = out.windows
            with watch:
                decoded = method.decode(x, observer) if speculative else method.forecast(x)
            out.seconds += watch.seconds
            if speculative:
                out.speculation.update(decoded)
                bar.set_postfix(acceptance=f"{out.speculation.result()['acceptance_pct']:.1f} %", refresh=False)
            forecast = decoded.forecast if speculative else decoded
            out.point.update(scored(forecast, covariate), scored(y, covariate))
            out.windows += len(x)
    return out


class AcceptanceLog:
    """Observer for --spec_debug_accept: one line for each proposal that was judged, of the first `windows` windows."""

    COLUMNS = ["window", "patch", "score", "accepted"]

    def __init__(self, windows: int):
        self.windows, self.first_window, self.rows = windows, 0, []

    def __call__(self, rows, first, judgement, looked_at) -> None:
        b, j = looked_at.nonzero(as_tuple=True)
        columns = (self.first_window + rows[b], first[b] + j, judgement.score[b, j], judgement.accepted[b, j])
        for window, patch, score, accepted in zip(*(column.tolist() for column in columns)):
            if window < self.windows:
                self.rows.append({"window": window, "patch": patch, "score": score, "accepted": int(accepted)})
