"""The loop over the test windows: `evaluate` measures every method on every window."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from exp.evaluate.by_series import BySeries, Walk
from exp.evaluate.methods import Method
from exp.team import ALONE, Team
from utils.adapters import VARIANCE_FLOOR
from utils.decoded import Decoded, Round
from utils.errors import NotFinite
from utils.scores import PararealMetrics, PointMetrics, SpeculationMetrics
from utils.timing import Stopwatch

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]  # contexts [B, L, C] and truths [B, H, C]


class Evaluation:
    """Results of one method on the windows so far: errors, cost, deviation from a reference.

    covariate: only the last variable counts. walk: the windows, in order, of which metrics by series are wanted.
    first: the number of the first window among them.
    """

    def __init__(self, covariate: bool = False, walk: Walk | None = None, first: int = 0):
        self.covariate = covariate
        self.point = PointMetrics()
        self.by_series = None if walk is None else BySeries(walk, first)
        self.speculation: SpeculationMetrics | PararealMetrics | None = None
        self.passes: dict[str, int] = {}
        self.seconds, self.windows, self.squares = 0.0, 0, 0.0
        self.relative_squares, self.relative_elements = 0.0, 0

    def update(self, decoded: Decoded, truth: torch.Tensor, seconds: float, reference: torch.Tensor | None) -> None:
        """Adds a batch: truth [B, H, C], seconds of decoding, the reference's forecast [B, H, C] or None."""
        forecast, wanted = scored(decoded.forecast, self.covariate), scored(truth, self.covariate)
        self.point.update(forecast, wanted)
        if self.by_series is not None:
            self.by_series.update(forecast, wanted)
        if reference is not None:
            self.squares += float((forecast - scored(reference, self.covariate)).double().square().sum())
        self._count(decoded)
        self.seconds += seconds
        self.windows += len(truth)

    def part(self, first: int) -> Evaluation:
        """An empty one of the same kind, for windows from number `first` on."""
        return type(self)(self.covariate, None if self.by_series is None else self.by_series.walk, first)

    def exchange(self, part: Evaluation | None, team: Team) -> None:
        """Completes a part by what other processes know of their windows; called in all, None without a batch."""

    def merge(self, part: Any) -> None:
        """Adds the windows of a part, which come after those that there are."""
        self.point.merge(part.point)
        if self.by_series is not None:
            self.by_series.metrics.merge(part.by_series.metrics)
        if self.speculation is None:
            self.speculation = part.speculation
        elif part.speculation is not None:
            self.speculation.merge(part.speculation)
        for name, total in part.passes.items():
            self.passes[name] = self.passes.get(name, 0) + total
        for name in ("seconds", "windows", "squares", "relative_squares", "relative_elements"):
            setattr(self, name, getattr(self, name) + getattr(part, name))

    def deviate(self, forecast: torch.Tensor, reference: torch.Tensor, unit: torch.Tensor) -> None:
        """Adds a batch to `rms_in_windows`: forecasts [B, H, C], unit [B, 1, C] of each window and variable.

        A variable that is constant in a window has no unit there, only the floor of a variance, and does not count.
        """
        gap, unit = scored(forecast - reference, self.covariate), scored(unit, self.covariate)
        varies = (unit.square() > 2 * VARIANCE_FLOOR).expand_as(gap)
        self.relative_squares += float((gap.double() / unit)[varies].square().sum())
        self.relative_elements += int(varies.sum())

    def _count(self, decoded: Decoded) -> None:
        if decoded.judged is not None or decoded.gap is not None:
            self.speculation = self.speculation or (PararealMetrics() if decoded.judged is None else
                                                    SpeculationMetrics())
            self.speculation.update(decoded)
            return
        for name in ("target_passes", "draft_passes"):
            if getattr(decoded, name) is not None:
                self.passes[name] = self.passes.get(name, 0) + int(getattr(decoded, name).sum())

    def acceptance_pct(self) -> float | None:
        return None if self.speculation is None else self.speculation.result().get("acceptance_pct")

    def rms_from_reference(self) -> float:
        return (self.squares / self.point.elements) ** 0.5

    def rms_in_windows(self) -> float | None:
        """The same in units of each window; None where no window has one."""
        return (self.relative_squares / self.relative_elements) ** 0.5 if self.relative_elements else None

    def cost(self) -> dict:
        """Acceptance and passes per window."""
        if self.speculation is not None:
            return self.speculation.result()
        return {name: total / self.windows for name, total in self.passes.items()}

    def result(self, batch_size: int) -> dict:
        scaled = {} if self.by_series is None else {"mase": self.by_series.mase()}
        return self.point.result() | scaled | self.cost() | {
            "windows": self.windows, "batch_size": batch_size, "seconds": self.seconds,
            "ms_per_forecast": 1000 * self.seconds / self.windows}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation; `so_far`: results of the finished batches, by method."""

    def __init__(self, so_far: Mapping[str, Evaluation]):
        super().__init__()
        self.so_far = so_far


def scored(series: torch.Tensor, covariate: bool) -> torch.Tensor:
    """The variables that count: the last one for a model with covariates, else all."""
    return series[..., -1:] if covariate else series


def evaluate(methods: Mapping[str, Method], batches: Batches, device: torch.device, covariate: bool = False,
             quiet: bool = False, observer: AcceptanceLog | None = None, reference: str | None = None,
             records: Mapping[str, Evaluation] | None = None, what: str = "test",
             walk: Walk | None = None, team: Team = ALONE) -> dict[str, Evaluation]:
    """Forecasts every window with every method.

    observer: logs the rounds of speculative methods. reference: the method from whose forecasts deviations are
    measured. records: Evaluations of another kind, or of earlier windows, by method. what: the word before the progress
    bar. walk: all the windows, for metrics by series. team: processes that take turns, batch by batch, each with a
    `shared_loader`; the main one then has the results, and the logs, that one process would have.
    Raises NotFinite, which names model and window, where a model's output is not finite.
    Raises Interrupted, with what there is, where Ctrl-C ends it early. It keeps whole batches only, the same for every
    method unless it comes in the moment of counting.
    """
    results = {name: (records or {}).get(name) or Evaluation(covariate, walk) for name in methods}
    begin, watch = max(out.windows for out in results.values()), Stopwatch(device)

    def forecast(turn: Turn) -> dict[str, Evaluation]:
        """What this process finds in its batch of a turn."""
        if turn.batch is None:
            return {}
        (x, y), first = (part.to(device) for part in turn.batch), begin + turn.first + sum(turn.sizes[:team.rank])
        made = {}
        for name, method in methods.items():
            for size in turn.sizes[:team.rank]:
                method.skip(size, x.shape[2])
            method.at(first)
            if observer is not None:
                observer.at(first)
            with watch, counted_from(first):
                decoded = method.decode(x, observer)
            made[name] = decoded, watch.seconds
            for size in turn.sizes[team.rank + 1:]:
                method.skip(size, x.shape[2])
        compared = None if reference is None else made[reference][0].forecast
        unit = None if reference is None else methods[reference].unit_of(x)
        parts = {name: results[name].part(first) for name in methods}
        for name, (decoded, seconds) in made.items():
            parts[name].update(decoded, y, seconds, compared)
            if compared is not None and unit is not None:
                parts[name].deviate(decoded.forecast, compared, unit)
        return parts
    try:
        with tqdm(total=_windows(batches), desc=what, unit="window", disable=quiet or not team.is_main) as bar:
            for turn in turns(batches, team):
                parts = forecast(turn)
                for name, out in results.items():
                    out.exchange(parts.get(name), team)
                for found, rows in team.gather((parts, [] if observer is None else observer.taken())):
                    for name, part in found.items():
                        results[name].merge(part)
                    if observer is not None:
                        observer.rows += rows
                _show(bar, results, sum(turn.sizes))
    except KeyboardInterrupt:
        if not all(out.windows for out in results.values()):
            raise
        raise Interrupted(results) from None
    return results


@dataclass(frozen=True)
class Turn:
    """A batch for each process, one after another in the order of the walk; the last processes may have none.

    first: windows before it; sizes: of the batches; batch: that of this process.
    """

    first: int
    sizes: Sequence[int]
    batch: tuple[torch.Tensor, torch.Tensor] | None


def turns(batches: Batches, team: Team) -> Iterator[Turn]:
    """The batches of this process, and the places of the others'."""
    first = 0
    if team.size == 1:
        for x, y in batches:
            yield Turn(first, [len(x)], (x, y))
            first += len(x)
        return
    sizes, own = batches.batch_sampler.sizes, iter(batches)  # type: ignore[attr-defined]
    for number in range(0, len(sizes), team.size):
        part = sizes[number:number + team.size]
        yield Turn(first, part, next(own) if team.rank < len(part) else None)
        first += sum(part)


@contextmanager
def counted_from(windows: int) -> Iterator[None]:
    """Errors of a batch that comes after so many windows name a window by its number in the whole walk."""
    try:
        yield
    except NotFinite as error:
        error.place = f"window {windows + error.window} (counted from 0)"
        raise


def _windows(batches: Batches) -> int | None:
    """Number of windows, or None if it is not known in advance."""
    sizes = getattr(getattr(batches, "batch_sampler", None), "sizes", None)  # of all processes
    if sizes is not None:
        return sum(sizes)
    sampler = getattr(batches, "sampler", None)  # a DataLoader has one
    if sampler is not None:
        return len(sampler)
    return sum(len(x) for x, _ in batches) if isinstance(batches, list) else None


def _show(bar: tqdm, results: Mapping[str, Evaluation], windows: int) -> None:
    accepted = [rate for out in results.values() if (rate := out.acceptance_pct()) is not None]
    if accepted:
        bar.set_postfix(acceptance=f"{accepted[-1]:.1f} %", refresh=False)
    bar.update(windows)


class AcceptanceLog:
    """Observer that records one row per judged proposal, for the first `windows` windows."""

    COLUMNS = ["window", "patch", "score", "accepted"]

    def __init__(self, windows: int):
        self.windows = windows
        self.rows: list[dict[str, float]] = []
        self.new: list[dict[str, float]] = []
        self.first = 0

    def at(self, window: int) -> None:
        """Tells that the next batch begins with this window."""
        self.first = window

    def taken(self) -> list[dict[str, float]]:
        """The rows since the last call."""
        taken, self.new = self.new, []
        return taken

    def __call__(self, judged: Round) -> None:
        assert judged.judgement is not None
        b, j = judged.looked_at.nonzero(as_tuple=True)
        columns = (self.first + judged.rows[b], judged.first[b] + j, judged.judgement.score[b, j],
                   judged.judgement.accepted[b, j])
        for window, patch, score, accepted in zip(*(column.tolist() for column in columns)):
            if window < self.windows:
                self.new.append({"window": window, "patch": patch, "score": score, "accepted": int(accepted)})
