"""A grid from the models themselves: the gaps between draft and target on validation windows, and what they suggest."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from exp.speculation import parameters_of
from exp.sweep.grid import POINTS
from utils.acceptance import RULES, Tolerance, unit_mean
from utils.errors import UserError
from utils.interface import Model, Prediction
from utils.proposals import Judgement, Proposals
from utils.speculative_decoder import decode_speculative

WINDOWS = 256  # of the validation part, evenly spaced
LOW, HIGH = 0.05, 0.95  # quantiles of the gaps that the grid goes from and to
# |delta| at which the means of two Gaussians of equal sigma let half of the proposals pass: 2 Phi(-|delta| / 2) = 1/2
HALF = 1.3490


class Probe(Tolerance):
    """Keeps what rules judge proposals by: one value per row and patch."""

    def __init__(self) -> None:
        super().__init__()
        self.relative: list[torch.Tensor] = []
        self.standardised: list[torch.Tensor] = []
        self.variance: list[torch.Tensor] = []

    def judge(self, proposals: Proposals, prediction: Prediction, uniform: torch.Tensor | None = None) -> Judgement:
        judgement = super().judge(proposals, prediction, uniform)
        gap = proposals.mean - prediction.mean[:, :proposals.mean.shape[1]]
        self.relative.append(judgement.score.double())
        self.standardised.append(unit_mean(gap.double().square()).sqrt())
        if proposals.logvar is not None:
            self.variance.append(unit_mean(proposals.logvar.double().exp()))
        return judgement


@dataclass(frozen=True)
class Gaps:
    """RMS gaps between the means of draft and target, one per judged patch [N].

    relative: in standard deviations of the target's window, as a tolerance judges them; standardised: in standardised
    units, as a sigma judges them; variance: the draft's own, mean(sigma_q^2) in standardised units, or None for a draft
    without a variance head. elements: D, the number of elements judged together; windows: how many were looked at.
    """

    relative: torch.Tensor
    standardised: torch.Tensor
    variance: torch.Tensor | None
    elements: int
    windows: int

    def indifferent_sigmas(self, rule: str, temp: float = 1.0) -> torch.Tensor:
        """For each patch the sigma at which the rule is about indifferent between accepting it and rejecting it [N].

        g: RMS gap, standardised; q^2 = mean(sigma_q^2); D elements; temp multiplies both sigmas.

        Proposals drawn with the draft's own variance (`simplified`, `exact`): the mean of the published log ratio,
        D/2 (1 - (g^2 + q^2) / sigma^2), is zero at  sigma = sqrt(g^2 + q^2).  From rejecting to accepting it takes a
        few 1 / sqrt(D) of that sigma: a tenth at D = 672. The same sigma makes N(mu_p, sigma^2) as close to the draft's
        law as it gets (KL divergence), so `exact` accepts most there, however little that is.

        Proposals drawn with the target's sigma (`coupling`, and the others with a draft that has no variance head):
        the log ratio is N(-d^2/2, d^2) with d = sqrt(D) g / sigma, and P(accept) = 2 Phi(-d/2) is one half at
        d = 1.349, hence at  sigma = sqrt(D) g / 1.349.
        """
        gap = self.standardised / temp
        if rule == "coupling" or self.variance is None:
            return gap * self.elements**0.5 / HALF
        return (gap.square() + self.variance).sqrt()

    def columns(self, temp: float = 1.0) -> dict[str, Any]:
        """The values of tol, and those of sigma by rule, see `grid.columns_of`."""
        sigmas = {rule: spaced(self.indifferent_sigmas(rule, temp)) for rule in RULES if "sigma" in parameters_of(rule)}
        return {"tol": spaced(self.relative), "sigma": sigmas}

    def describe(self, columns: Mapping[str, Any]) -> str:
        """One line: the gaps, and the columns that follow from them."""
        quantiles = self.relative.quantile(self.relative.new_tensor([LOW, 0.5, HIGH])).tolist()
        low, middle, high = (f"{value:.2g}" for value in quantiles)
        rules: dict[str, list[str]] = {}  # those that share their sigmas
        for rule, values in columns["sigma"].items():
            rules.setdefault(_list(values), []).append(rule)
        sigmas = "".join(f"; sigma {values} ({', '.join(names)})" for values, names in rules.items())
        return (f"on {self.windows} validation windows, draft and target differ by {low} to {high} standard deviations "
                f"of the window (RMS of a patch, 5 % to 95 % of them; median {middle}); tol "
                f"{_list(columns['tol'])}{sigmas}")


def _list(values: Iterable[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def spaced(values: torch.Tensor) -> list[float]:
    """POINTS numbers on a log scale from the quantile LOW of positive values to HIGH, rounded to two digits."""
    low, high = values.quantile(values.new_tensor([LOW, HIGH])).log().tolist()
    exponents = torch.linspace(low, high, POINTS, dtype=torch.float64)
    return list(dict.fromkeys(float(f"{value:.2g}") for value in exponents.exp().tolist()))


@torch.inference_mode()
def measure_gaps(target: Model, draft: Model, batches: Iterable[torch.Tensor], horizon: int, patches: int) -> Gaps:
    """Gaps of proposals for every patch but the last: behind the target's own patches, where a tight tolerance judges
    them, and behind the draft's, where a loose one does.

    batches: contexts [B, L, C]; patches: of a forecast, at least 2. Raises UserError where draft and target agree.
    """
    probe, windows, elements = Probe(), 0, 0
    for context in batches:
        for tol, proposals in ((0.0, 1), (float("inf"), patches - 1)):  # rejects, or accepts, every proposal
            probe.tol = tol
            decode_speculative(target, draft, context, horizon, probe, proposals)
        windows, elements = windows + len(context), target.patch_len * context.shape[2]
    relative, standardised = (torch.cat([part.flatten() for part in parts]).cpu()
                              for parts in (probe.relative, probe.standardised))
    variance = torch.cat([part.flatten() for part in probe.variance]).cpu() if probe.variance else None
    some = standardised > 0
    if not some.any():
        raise UserError("draft and target predict the same on every validation window, so there is no gap to lay a "
                        "grid around: give another --draft, or values for --sigma and --tol")
    return Gaps(relative[some], standardised[some], None if variance is None else variance[some], elements, windows)
