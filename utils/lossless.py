"""The two law-preserving rules: their samples have the law of the target alone, N(mu_p, law), patch by patch.

x: proposal; q: the law it was drawn from; p: the target's. Log densities are compared in double precision: a patch has
up to thousands of elements, and near-equal models differ by less than float32 can resolve in such a sum.
"""
from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F

from .counter_random import redraws, seeds_of
from .interface import Prediction
from .proposals import Judgement, Proposals
from .target_law import TargetLaw

EMISSIONS = ("sample", "mean")
RESIDUAL_FLOOR = 1e-3  # 1 - c: smallest probability of keeping a redraw in `exact`
BLOCK_ELEMENTS = 2**21  # cap on elements redrawn at once (16 MiB)


class Lossless(ABC):
    """Base of `exact` and `coupling`: proposals with a law, and emission.

    emit 'mean': every verified patch is emitted as mu_p; x only decides. The law is then not preserved: the context
    holds mu_q where x was accepted (later patches were verified after it) and mu_p elsewhere.
    """

    random = True
    reproposes = "corrected"  # saves 10 to 50 % of the target passes, on every measured pair

    name: str

    def __init__(self, law: TargetLaw, emit: str = "sample"):
        refuse_emission(emit)
        self.law, self.emit = law, emit

    def proposal_law(self, logvar: torch.Tensor | None) -> TargetLaw:
        return self.law

    @abstractmethod
    def weigh(self, proposals: Proposals, gap: torch.Tensor,
              unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log of the threshold below which a uniform number accepts each of k proposals, and `Judgement.most`.

        gap [b, k, P, C]: mu_q - mu_p; unit: stdev of the context; both in double precision.
        """

    @abstractmethod
    def replace(self, own: torch.Tensor, prediction: Prediction, eps: torch.Tensor, proposals: Proposals,
                rejected: torch.Tensor) -> torch.Tensor:
        """`own` [b, 1, P, C], drawn from p, with a draw from the residual in place of each rejected proposal."""

    def propose(self, prediction: Prediction, eps: torch.Tensor | None) -> Proposals:
        mean, eps = prediction.mean, needed(eps)
        x = mean if self.emit == "mean" else drawn(self.proposal_law(prediction.logvar), prediction, eps)
        return Proposals(x, eps, mean, prediction.logvar)

    def judge(self, proposals: Proposals, prediction: Prediction, uniform: torch.Tensor | None) -> Judgement:
        k = proposals.mean.shape[1]
        gap = proposals.mean.double() - prediction.mean[:, :k].double()
        score, most = self.weigh(proposals, gap, prediction.unit.double())
        # float32 uniforms are multiples of 2^-24 and may be 0, which would always accept: use the centres of their bins
        return Judgement(torch.log(needed(uniform).double() + 2.0**-25) < score, score, most)

    def accepted_patches(self, proposals: Proposals, prediction: Prediction) -> torch.Tensor:
        return prediction.mean[:, :proposals.mean.shape[1]] if self.emit == "mean" else proposals.patches

    def own_patch(self, prediction: Prediction, eps: torch.Tensor | None, proposals: Proposals | None = None,
                  rejected: torch.Tensor | None = None) -> torch.Tensor:
        if self.emit == "mean":
            return prediction.mean
        own = drawn(self.law, prediction, needed(eps))
        if proposals is None:
            return own
        return self.replace(own, prediction, needed(eps), proposals, needed(rejected))


def refuse_emission(emit: str) -> None:
    if emit not in EMISSIONS:
        raise ValueError(f"emit must be one of {', '.join(EMISSIONS)}, not {emit!r}")


def needed(part: torch.Tensor | None) -> torch.Tensor:
    """Returns `part`. Raises ValueError if it is None: a random rule needs it."""
    if part is None:
        raise ValueError("this rule draws random numbers: give it noise (proposals.Noise)")
    return part


class Coupling(Lossless):
    """Reflection-maximal coupling of N(mu_q, S) and N(mu_p, S), S = L L^T (De Bortoli et al. 2025).

    x = mu_q + L z and delta = L^-1 (mu_q - mu_p); accept while log u < |z|^2/2 - |z + delta|^2/2. A rejected x is
    replaced by mu_p + L (z - 2 (e.z) e), e = delta/|delta|: no redraw. P(accept) = 2 Phi(-|delta|/2) = 1 - TV(q, p),
    the maximum over all law-preserving rules for ONE patch. Only the mean is the draft's: draft and target share L.
    """

    name = "coupling"

    def weigh(self, proposals: Proposals, gap: torch.Tensor,
              unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        delta = self.law.whiten(gap, unit)
        score = -(delta * (proposals.judged.double() + 0.5 * delta)).sum(dim=(-2, -1))
        return score, torch.erfc(delta.flatten(-2).norm(dim=-1) / 8**0.5)  # = 2 Phi(-|delta|/2)

    def replace(self, own: torch.Tensor, prediction: Prediction, eps: torch.Tensor, proposals: Proposals,
                rejected: torch.Tensor) -> torch.Tensor:
        z = proposals.judged.double().flatten(-2)
        delta = self.law.whiten(proposals.mean.double() - prediction.mean.double(), prediction.unit.double())
        e = F.normalize(delta.flatten(-2), dim=-1, eps=torch.finfo(delta.dtype).tiny)
        reflected = z - 2 * (e * z).sum(dim=-1, keepdim=True) * e
        patch = drawn(self.law, prediction, reflected.view_as(delta))
        return torch.where(rejected[:, None, None, None], patch, own)


class Exact(Lossless):
    """Speculative sampling (Leviathan et al. 2023; Chen et al. 2023) with full densities.

    q is N(mu_q, (temp sigma_q)^2), the draft's prediction; for a draft without log-variances, and for a target law with
    full covariance or with widths (which the draft's variances cannot match), q is the target's law around mu_q.
    Accept while u < c p(x)/q(x), c = 0.999. A rejected x is replaced by a draw from the residual p - min(q, c p): draw
    y ~ p, keep it with probability 1 - min(q(y)/p(y), c), else redraw. Both parts add up to p for any c in (0, 1]; with
    c < 1 every y is kept with probability 1 - c or more, so the number of redraws is geometric and needs no cap. On
    average there is one redraw per proposal, whatever the models: P(reject) / P(keep), where both are equal.
    P(accept) = integral of min(q, c p), between c (1 - TV(q, p)) and 1 - TV(q, p).
    """

    name = "exact"

    def __init__(self, law: TargetLaw, emit: str = "sample", temp: float = 1.0):
        super().__init__(law, emit)
        self.temp = temp

    def proposal_law(self, logvar: torch.Tensor | None) -> TargetLaw:
        if logvar is None or self.law.full or self.law.widths is not None:
            return self.law
        return TargetLaw(torch.exp(0.5 * logvar) * self.temp)

    def weigh(self, proposals: Proposals, gap: torch.Tensor,
              unit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        ratio = _log_ratio(self.law, self.proposal_law(proposals.logvar), unit, gap, proposals.judged.double())
        return ratio + math.log1p(-RESIDUAL_FLOOR), None

    def replace(self, own: torch.Tensor, prediction: Prediction, eps: torch.Tensor, proposals: Proposals,
                rejected: torch.Tensor) -> torch.Tensor:
        rows = rejected.nonzero()[:, 0]
        seeds, shape = seeds_of(eps)[:, 0], own.shape[-2:]
        first, count = 0, 1
        while len(rows):  # draw in growing blocks until every row has kept one
            z, uniform = redraws(seeds[rows], first, count, shape)
            p, x = prediction.at(rows, 0), proposals.at(rows, 0)
            ratio = _log_ratio(self.proposal_law(x.logvar), self.law, p.unit.double(),
                               p.mean.double() - x.mean.double(), z)
            # not (u <= r): a ratio that is NaN, of a model that overflowed, ends the search; the decoder then tells
            kept = ~(uniform.log() <= ratio.clamp(max=math.log1p(-RESIDUAL_FLOOR)))
            found, which = kept.any(dim=1), kept.long().argmax(dim=1)
            z = z[torch.arange(len(rows), device=rows.device), which][:, None]
            own[rows[found]] = drawn(self.law, p, z)[found]
            rows, first = rows[~found], first + count
            count = max(1, min(2 * count, BLOCK_ELEMENTS // max(1, len(rows) * shape.numel())))
        return own


def drawn(law: TargetLaw, prediction: Prediction, z: torch.Tensor) -> torch.Tensor:
    """mu + law.spread(z), in the dtype of the prediction."""
    spread = law.spread(z.double(), prediction.unit.double())
    return (prediction.mean.double() + spread).to(prediction.mean.dtype)


def _log_ratio(of: TargetLaw, over: TargetLaw, unit: torch.Tensor, gap: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Log density ratio `of` / `over` at a draw z [r, m, P, C] from `over`; gap: mean of `over` minus that of `of`.

    Relative to the mean of `of` the draw is gap + spread(z): large means cancel before the noise is added.
    """
    w = of.whiten(gap + over.spread(z, unit), unit)
    squares = 0.5 * ((z - w) * (z + w)).sum(dim=(-2, -1))
    patch_len = z.shape[-2]
    return squares + over.log_volume(unit, patch_len) - of.log_volume(unit, patch_len)
