"""A promise: forecasts that stay close to the target's own, at the least cost. Three kinds, named by what they assume.

Settings are numbered from the safest on; before the first stands the target alone, which never deviates. A window
*fails* at a setting where its deviation is above the budget. The truth is not needed for that, so it can be measured on
the very windows that are to be forecast.

    audit       assumes nothing about the windows, however they overlap: some of them, drawn by lot, are also forecast
                by the target alone. P(more than `share` of all windows fail at the setting chosen) <= level
    validation  assumes that blocks of validation windows and the block to come are exchangeable:
                P(some window of that block fails) <= level
    stream      assumes nothing, and says nothing about single windows: `Controller` bounds the mean over time
"""
from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import torch

from .adapters import VARIANCE_FLOOR


def deviations(forecast: torch.Tensor, reference: torch.Tensor, unit: torch.Tensor | None = None) -> torch.Tensor:
    """RMS over steps and variables of forecast - reference [B, H, C]: [B], double precision.

    unit [B, 1, C]: standard deviation of each window and variable, to measure in; None: data units. A variable that is
    constant in its window has none and does not count there; a window without any other deviates by 0.
    """
    gap = (forecast - reference).double()
    if unit is None:
        return gap.square().mean(dim=(1, 2)).sqrt()
    varies = (unit.square() > 2 * VARIANCE_FLOOR).expand_as(gap)
    squares = (gap / unit).square().where(varies, 0)
    return (squares.sum(dim=(1, 2)) / varies.sum(dim=(1, 2)).clamp(min=1)).sqrt()


# --- from deviations to errors


def mse_change(rms: float, mse: float) -> float:
    """The most that the MSE can change where forecasts deviate by `rms` from ones with this MSE: 2 r sqrt(mse) + r^2.

    By Cauchy and Schwarz, for every data set; reached only where deviations point along the errors.
    """
    return 2 * rms * math.sqrt(mse) + rms**2


def rms_for_change(share: float, mse: float) -> float:
    """The inverse of `mse_change`: the RMS deviation by which the MSE changes by at most `share` of it."""
    return math.sqrt(mse) * (math.sqrt(1 + share) - 1)


# --- which setting


def longest_safe(failures: Iterable[int], most: int) -> int:
    """How many settings are promised: those before the first with more than `most` failures.

    Fixed-sequence testing: the order was fixed beforehand and testing ends at the first setting that does not pass, so
    that many settings cost no more than one. What comes after that setting is not asked for.
    """
    count = 0
    for failed in failures:
        if failed > most:
            break
        count += 1
    return count


def hypergeometric_tail(observed: int, population: int, bad: int, drawn: int) -> float:
    """P(X <= observed), X the number of bad ones among `drawn` of `population`, of which `bad` are bad. Exact.

    Raises ValueError for numbers that do not describe a draw.
    """
    last = 0
    for x, draws in _cumulated(population, bad, drawn):
        if x > observed:
            break
        last = draws
    return last / math.comb(population, drawn)


def _cumulated(population: int, bad: int, drawn: int) -> Iterator[tuple[int, int]]:
    """(x, number of the comb(population, drawn) draws with x bad ones or fewer), in whole numbers."""
    good = population - bad
    if not (0 <= bad <= population and 0 <= drawn <= population):
        raise ValueError(f"{drawn} drawn of {population}, of which {bad} are bad, describes no draw")
    first = max(0, drawn - good)
    draws, total = math.comb(bad, first) * math.comb(good, drawn - first), 0
    for x in range(first, min(bad, drawn) + 1):
        total += draws
        yield x, total
        draws = draws * (bad - x) * (drawn - x) // ((x + 1) * (good - drawn + x + 1))


def _too_many(windows: int, share: float) -> int:
    """The least number of failures that breaks the promise."""
    if windows < 1 or not 0 < share < 1:
        raise ValueError(f"{windows} windows, share {share}: one window or more and a share between 0 and 1 are needed")
    return math.floor(share * windows) + 1


def audit_allows(windows: int, drawn: int, share: float, level: float) -> int:
    """The most failures among `drawn` of `windows` with which an audit still promises a setting; -1: it never does.

    With so few, P(as few or fewer) <= level wherever more than `share` of all windows fail.
    """
    bad, all_draws = _too_many(windows, share), math.comb(windows, drawn)
    most = max(0, drawn - (windows - bad)) - 1  # fewer cannot be found where too many fail
    for x, draws in _cumulated(windows, bad, drawn):
        if draws / all_draws > level:
            break
        most = x
    return most


def least_audit(windows: int, share: float, level: float) -> int:
    """The fewest windows whose audit can promise a setting, which it does if none of them fails.

    About log(level) / log(1 - share) of many windows, fewer of few.
    """
    bad = _too_many(windows, share)
    most = 1 if bad == windows else math.ceil(math.log(level) / math.log(1 - bad / windows))  # of independent draws
    return bisect_left(range(min(windows, most) + 1), True, key=lambda drawn: hypergeometric_tail(
        0, windows, bad, drawn) <= level)


def draw_audit(windows: int, drawn: int, seed: int) -> torch.Tensor:
    """`drawn` of `windows` numbers, ascending, each subset as likely as any other. The seed must look at no data."""
    order = torch.randperm(windows, generator=torch.Generator().manual_seed(seed))
    return order[:drawn].sort().values


def blocks_of(windows: int, context: int, step: int = 1) -> list[range]:
    """Blocks of `context` windows, every `step`-th of them, with a gap of `context` windows between blocks.

    windows: number of windows, one row apart, each of `context` rows. No two blocks share a row of context.
    """
    return [range(first, first + context, step) for first in range(0, windows - context + 1, 2 * context)]


def blocks_allow(blocks: int, level: float) -> int:
    """The most failing blocks with which validation promises a setting: (failing + 1) / (blocks + 1) <= level.

    -1: it promises none, as nothing below 1 / (blocks + 1) can be.
    """
    return math.floor(level * (blocks + 1) * (1 + 1e-12)) - 1


def failing_blocks(failed: torch.Tensor) -> list[int]:
    """failed [K, B]: True where a block has a window that fails at a setting -> failing blocks by setting.

    A block that fails at a setting counts at every later one too: the bound needs failures that cannot be undone.
    """
    return failed.long().cummax(dim=0).values.sum(dim=1).tolist() if len(failed) else []


# --- certificates of single windows, for parareal


def fit_constants(deviation: torch.Tensor, gap: torch.Tensor, level: float = 0.95) -> list[float]:
    """For every pass the `level` quantile over windows of deviation / gap, both [J, W]; gap: RMS over the patches.

    The quantile is that of a new window: the ceil(level (W + 1))-th smallest ratio, the largest where there are too
    few. A window without a gap has no deviation either, and counts as 0.
    """
    ratio = torch.where(gap > 0, deviation.double() / gap.double(), 0).sort(dim=1).values
    rank = min(ratio.shape[1], math.ceil(level * (ratio.shape[1] + 1)))
    return ratio[:, rank - 1].tolist()


def rms_of_gaps(gap: torch.Tensor) -> torch.Tensor:
    """The RMS over patches of `Decoded.gap` [B, n - 1]: [B]."""
    return gap.square().mean(dim=1).sqrt()


def passes_until(gap: torch.Tensor, constants: Sequence[float], limit: float) -> torch.Tensor:
    """The pass, from 1, after which `decode_parareal` lets each window go: [W]; one more than J where none does.

    gap [J, W]: RMS over the patches, after each pass.
    """
    factor = torch.tensor(constants, dtype=gap.dtype, device=gap.device)[:, None]
    going = ~(factor * gap <= limit)
    return going.long().cumprod(dim=0).sum(dim=0) + 1


# --- a stream


class Controller:
    """The setting of a stream of windows, steered by audits so that the mean deviation keeps to a budget.

        lambda_{t+1} = lambda_t + rate (budget - min(dev_t, top))

    `setting` is max(lambda, 0), to be read as a tolerance or any other scale on which 0 is the target alone, which does
    not deviate. After every audited window, `update` with its deviation at the setting that it was forecast with.
    Then for EVERY sequence of windows, whatever depends on what: mean of min(dev_t, top) <= `bound()`, which tends to
    the budget. Where each window is audited with a fixed probability, by a coin that looks at nothing, the mean over
    all windows differs from that by chance only.
    Raises ValueError for numbers that are out of range, and for a deviation that is not a number.
    """

    def __init__(self, budget: float, rate: float, top: float, start: float = 0.0):
        if not (0 < budget < top < math.inf and 0 < rate < math.inf and 0 <= start < math.inf):
            raise ValueError(f"budget {budget}, rate {rate}, top {top}, start {start}: needed are 0 < budget < top, "
                             "0 < rate and 0 <= start, all finite")
        self.budget, self.rate, self.top, self.start = budget, rate, top, start
        self.level, self.audited = start, 0

    @property
    def setting(self) -> float:
        return max(self.level, 0.0)

    def update(self, deviation: float) -> None:
        if not deviation >= 0:
            raise ValueError(f"the deviation is {deviation}, but must be at least 0")
        self.level += self.rate * (self.budget - min(deviation, self.top))
        self.audited += 1

    def bound(self) -> float:
        """What the mean of min(dev_t, top) over the audited windows cannot exceed.

        lambda falls by at most rate (top - budget) at once, and only from above 0, so it never falls below the negative
        of that; the sum of dev_t - budget is (start - lambda) / rate.
        """
        if not self.audited:
            return self.top
        return min(self.top, self.budget + (self.start / self.rate + self.top - self.budget) / self.audited)
