"""What a decode gives: forecasts and their cost; the rounds that lead to them, and the ledger of their results."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from .finite import has_sigma, is_finite
from .interface import Rule
from .proposals import Judgement, Proposals

REJECTED, ACCEPTED, BONUS = 0, 1, 2  # origin of a patch of the forecast


@dataclass
class Decoded:
    """Forecasts of B windows and their cost; counts are per window.

    forecast [B, H, C]; target_passes, draft_passes [B]: forward passes that a window took part in. A model decoded
    alone sets nothing else; speculation adds:
    origin [B, n]: REJECTED (the target's own, after a rejection), ACCEPTED, BONUS (the target's own, with no proposal
    there); draft_mean [B, H, C] and draft_sigma (None without a variance head): the draft's prediction at each step,
    NaN where it was not consulted.
    accepted, judged [B]: proposals accepted, and judged (up to and including the first rejection of a round).
    proposed [B]: proposals within the horizon; those after a rejection are discarded unjudged.
    lengths [K + 1]: number of rounds that accepted 0, 1, ..., K proposals.
    most [B], or None: the expected number of acceptances of a law-preserving rule that is optimal for each of the
    proposals judged, taken by itself.
    paths [B, S, H, C]: sampled paths, if any; `forecast` is then their mean.
    gap [B, n - 1], of parareal: rms((q - p) / s) at each patch but the last, of the last proposals of a window and what
    the target made of them, in standard deviations s of the target's window; 0 where the patch is exact.
    divergence [B, A], of A audited paths of a window: nats, see `decode_parareal`; None where nothing was audited.
    """

    forecast: torch.Tensor
    target_passes: torch.Tensor | None = None
    draft_passes: torch.Tensor | None = None
    origin: torch.Tensor | None = None
    draft_mean: torch.Tensor | None = None
    draft_sigma: torch.Tensor | None = None
    accepted: torch.Tensor | None = None
    judged: torch.Tensor | None = None
    proposed: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    most: torch.Tensor | None = None
    paths: torch.Tensor | None = None
    gap: torch.Tensor | None = None
    divergence: torch.Tensor | None = None


@dataclass
class Round:
    """One round of the speculative loop, of the b rows that are not finished, with k proposals each.

    rows [b]: their numbers in the batch; first [b]: patches that each had before the round
    proposals, judgement: None without proposals
    needed [b, k]: proposals that lie within the horizon and count
    looked_at [b, k]: proposals that were judged, the accepted ones and the first rejected one
    length [b]: accepted proposals, up to the first rejection
    After them comes the target's own patch, which ends the round: the replacement of the rejected proposal, or the
    bonus where all were accepted.
    """

    rows: torch.Tensor
    first: torch.Tensor
    proposals: Proposals | None
    judgement: Judgement | None
    needed: torch.Tensor
    looked_at: torch.Tensor
    length: torch.Tensor


class Ledger:
    """Buffers of a batch's results. Writing past a rejection is harmless: a later round overwrites it."""

    COUNTS = ("accepted", "judged", "proposed", "target_passes", "draft_passes")

    def __init__(self, context: torch.Tensor, n: int, patch_len: int, limit: int):
        B, _, C = context.shape
        self.n = n
        self.patches = context.new_zeros(B, n + limit + 1, patch_len, C)
        self.draft_mean = torch.full_like(self.patches, float("nan"))
        self.draft_sigma: torch.Tensor | None = None
        self.origin = torch.zeros(B, n + limit + 1, dtype=torch.long, device=context.device)
        self.counts = {name: torch.zeros(B, dtype=torch.long, device=context.device) for name in self.COUNTS}
        self.lengths = torch.zeros(limit + 1, dtype=torch.long, device=context.device)
        self.most: torch.Tensor | None = None

    def write(self, judged: Round, patches: torch.Tensor, draft_passes: int) -> None:
        length, step = judged.length, torch.arange(patches.shape[1], device=patches.device)
        at = judged.rows[:, None], judged.first[:, None] + step
        self.patches[at] = patches
        looked_at = judged.looked_at.sum(dim=1)
        own = torch.where(looked_at > length, REJECTED, BONUS)[:, None]
        self.origin[at] = torch.where(step < length[:, None], ACCEPTED, own)
        if judged.proposals is not None and judged.judgement is not None:
            self._write_draft(judged, judged.proposals)
            self._add_most(judged, judged.judgement.most)
        one = torch.ones_like(length)
        for name, value in zip(self.COUNTS, (length, looked_at, judged.needed.sum(dim=1), one, draft_passes * one)):
            self.counts[name].index_add_(0, judged.rows, value)
        self.lengths.index_add_(0, length, one)

    def _write_draft(self, judged: Round, proposals: Proposals) -> None:
        step = torch.arange(judged.looked_at.shape[1], device=judged.rows.device)
        at = judged.rows[:, None], judged.first[:, None] + step
        unseen = ~judged.looked_at[..., None, None]
        self.draft_mean[at] = proposals.mean.masked_fill(unseen, float("nan"))
        if self.draft_sigma is None and proposals.logvar is not None:
            self.draft_sigma = torch.full_like(self.patches, float("nan"))
        if self.draft_sigma is not None:
            unknown = torch.full_like(proposals.mean, float("nan"))
            sigma = unknown if proposals.logvar is None else torch.exp(0.5 * proposals.logvar)
            self.draft_sigma[at] = sigma.masked_fill(unseen, float("nan"))

    def _add_most(self, judged: Round, most: torch.Tensor | None) -> None:
        if most is None:
            return
        if self.most is None:
            self.most = torch.zeros(len(self.patches), dtype=torch.float64, device=most.device)
        self.most.index_add_(0, judged.rows, most.masked_fill(~judged.looked_at, 0).sum(dim=1))

    def finite(self, rule: Rule, repropose: str) -> torch.Tensor:
        """[2, B, n]: True where the forecast is finite, and where the draft's prediction was not judged or could be.

        A rule compares squares: one that overflows is never accepted, whatever the target says.
        """
        n, sigma = self.n, self.draft_sigma
        draft = is_finite(self.draft_mean[:, :n].square())
        if sigma is not None:
            # with 'target' only the first patch is the draft's for sure; others may have no sigma
            draft &= has_sigma(sigma[:, :n], rule.random, 1 if repropose == "target" else n)
        return torch.stack([is_finite(self.patches[:, :n]), draft | (self.origin[:, :n] == BONUS)])

    def finish(self, horizon: int) -> Decoded:
        def steps(patches: torch.Tensor) -> torch.Tensor:
            return patches[:, :self.n].flatten(1, 2)[:, :horizon]
        return Decoded(steps(self.patches), origin=self.origin[:, :self.n], draft_mean=steps(self.draft_mean),
                       draft_sigma=None if self.draft_sigma is None else steps(self.draft_sigma),
                       lengths=self.lengths, most=self.most, **self.counts)


@dataclass
class Passes:
    """Buffers of the results of parareal passes: a pass overwrites the patches that were not exact before it.

    patches [B, n, P, C], gap [B, n - 1]; sane [B, 2, n]: the target's patches are finite, the draft's can be judged;
    target_passes, draft_passes [B]; divergence [windows, audit], if any.
    """

    patches: torch.Tensor
    gap: torch.Tensor
    sane: torch.Tensor
    target_passes: torch.Tensor
    draft_passes: torch.Tensor
    divergence: torch.Tensor | None = None

    @classmethod
    def of(cls, context: torch.Tensor, n: int, patch_len: int) -> Passes:
        B, _, C = context.shape
        return cls(context.new_zeros(B, n, patch_len, C), context.new_zeros(B, n - 1),
                   torch.ones(B, 2, n, dtype=torch.bool, device=context.device),
                   *torch.zeros(2, B, dtype=torch.long, device=context.device))

    def parts(self) -> tuple[torch.Tensor, ...]:
        """All that is there, in the order of the fields."""
        return tuple(part for part in vars(self).values() if part is not None)

    @property
    def finite(self) -> torch.Tensor:
        """[2, B, n], as `refuse_pair` takes it."""
        return self.sane.transpose(0, 1)

    def write(self, rows: torch.Tensor, exact: int, p: torch.Tensor, q: torch.Tensor, scale: torch.Tensor,
              draft_passes: int) -> torch.Tensor:
        """Of rows [b] of which the first `exact` patches are final: the largest gap [b] of their patches after those.

        p, scale: what the target made of the proposals q [b, k, P, C], and of the patch after them (k + 1 patches).
        """
        self.patches[rows, exact:] = p
        gap = ((q - p[:, :-1]) / scale[:, :-1]).square().mean(dim=(2, 3)).sqrt()
        self.gap[rows] = 0
        self.gap[rows, exact:] = gap
        self.sane[rows, 0, exact:] = is_finite(p)
        self.sane[rows, 1] = True
        self.sane[rows, 1, exact:-1] = is_finite(q.square())
        self.target_passes[rows] += 1
        self.draft_passes[rows] += draft_passes
        return gap.amax(dim=1) if gap.shape[1] else gap.sum(dim=1)

    def forecast(self, horizon: int) -> torch.Tensor:
        """The forecasts [B, H, C] so far; the next pass leaves them as they are."""
        return self.patches.flatten(1, 2)[:, :horizon].clone()

    def finish(self, horizon: int) -> Decoded:
        return Decoded(self.forecast(horizon), self.target_passes, self.draft_passes, gap=self.gap,
                       divergence=self.divergence)
