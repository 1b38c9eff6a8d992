"""The loop: propose -> verify -> accept -> commit. Reads like the papers (Leviathan et al. 2023, Chen et al. 2023).

`decode_alone` and `decode_speculative` stand side by side so that one can be checked against the other. Models are
known by the interface of `models.decoding` only; rules by that of `utils.acceptance`.
"""
from dataclasses import dataclass

import torch

from utils.proposals import Noise, Proposals

REJECTED, ACCEPTED, BONUS = 0, 1, 2  # where a patch of the forecast came from


@dataclass
class Decoded:
    """Forecasts of B windows and what they cost; counts are per window.

    forecast [B, H, C]; origin [B, n]: REJECTED (the target's own, after a rejection), ACCEPTED, BONUS (the target's
    own, nothing was proposed there); draft_mean [B, H, C] and draft_sigma (None without variance head): what the
    draft said at each step, NaN where its word was not needed.
    accepted / judged: proposals that passed / that were looked at: up to and including the first rejection of a
    round. proposed: those that lay within the horizon; the ones after a rejection are thrown away unjudged.
    target_passes, draft_passes [B]: forward passes a window took part in; lengths [K + 1]: how many rounds accepted
    0, 1, ..., K proposals.
    most [B], or None: sum of `Judgement.most` over the proposals judged: so many of them a rule that keeps the target's
    law can accept on average.
    """

    forecast: torch.Tensor
    origin: torch.Tensor
    draft_mean: torch.Tensor | None
    draft_sigma: torch.Tensor | None
    accepted: torch.Tensor
    judged: torch.Tensor
    proposed: torch.Tensor
    target_passes: torch.Tensor
    draft_passes: torch.Tensor
    lengths: torch.Tensor
    most: torch.Tensor | None = None


def patches_in(horizon: int, patch_len: int) -> int:
    return -(-horizon // patch_len)


@torch.inference_mode()
def decode_alone(model, context: torch.Tensor, horizon: int) -> torch.Tensor:
    """Plain autoregression with one model's mean: context [B, L, C] -> forecast [B, H, C].

    ceil(H / P) passes; a draft that speaks of J patches ahead needs a J-th of them.
    """
    n = patches_in(horizon, model.patch_len)
    state = model.start(context, room=n)
    parts, left = [], n
    while left:
        if parts:
            state.append(parts[-1])
        parts.append(model.extend(state).first(left).mean)
        left -= parts[-1].shape[1]
    return torch.cat(parts, dim=1).flatten(1, 2)[:, :horizon]


@torch.inference_mode()
def decode_speculative(target, draft, context: torch.Tensor, horizon: int, rule, max_proposals: int | None = None,
                       noise: Noise | None = None, observer=None, repropose: str = "draft",
                       samples: int = 1) -> Decoded:
    """Speculative decoding of context [B, L, C] over `horizon` steps.

    A round costs the draft passes for at most `max_proposals` proposals and ONE target pass, which verifies them and
    gives one more patch: the replacement of the first rejected proposal or, all accepted, the bonus. The first round
    verifies inside the pass over the context. The last patch of a row is always the target's own, so a row with r
    patches left needs r - 1 proposals; max_proposals None: all of them.
    noise: required by random rules. observer(rows, first, judgement, looked_at) is called once a round.
    repropose: where proposals come from after a rejection, see `_Proposer`.
    samples: forecasts of each window, which are B * samples rows from then on (and in noise), those of a window one
    after the other; with a cache its context is encoded once for all of them, which is not counted as their pass.
    """
    n = patches_in(horizon, target.patch_len)
    limit = n - 1 if max_proposals is None else min(max_proposals, n - 1)
    state, draft_state = (model.start(context, room=n + limit) for model in (target, draft))
    draft_state.unit = state.unit  # the law is the target's
    if samples > 1:
        target.fan_out(state, samples)
        draft.fan_out(draft_state, samples)
        context = context.repeat_interleave(samples, dim=0)
    out = _Ledger(context, n, target.patch_len, limit)
    proposer = _Proposer(draft, draft_state, rule, repropose)
    rows = torch.arange(context.shape[0], device=context.device)
    done = torch.zeros_like(rows)
    while True:
        # the one host synchronisation of a round: who is finished, and who has nothing left to propose again?
        left, stock = torch.stack([n - done, proposer.stock_of(done)]).cpu()
        if not left.any():
            return out.finish(horizon)
        if not left.all():  # a finished row leaves the batch
            going = left.nonzero()[:, 0].to(rows.device)
            rows, done = rows[going], done[going]
            state.select(going)
            proposer.select(going)
        k = min(limit, int(left.max()) - 1)
        eps = noise.at(rows, done, k) if rule.random and k else None
        ask_draft = bool(((left > 1) & (stock == 0)).any())
        proposals, available = proposer.propose(k, done, eps, ask_draft) if k else (None, None)
        prediction = target.extend(state, proposals.patches if k else None)
        here = torch.arange(len(rows), device=rows.device)
        if k:
            judgement = rule.judge(proposals, prediction, eps.uniform if eps else None)
            counted = torch.minimum(n - done - 1, available)
            step = torch.arange(k, device=rows.device)
            needed = step < counted[:, None]
            length = (judgement.accepted & needed).long().cumprod(dim=1).sum(dim=1)  # up to the first rejection
            looked_at = needed & (step <= length[:, None])
            out.add_most(rows, judgement, looked_at)
            if observer is not None:
                observer(rows, done, judgement, looked_at)
        else:
            needed = looked_at = torch.zeros(len(rows), 0, dtype=torch.bool, device=rows.device)
            counted = length = torch.zeros_like(done)
        # the target's own patch ends the round: in place of the rejected proposal, or as the bonus
        own_eps = noise.at(rows, done + length, 1).target if rule.random else None
        own = rule.own_patch(prediction.at(here, length), own_eps,
                             proposals.at(here, length.clamp(max=k - 1)) if k else None, length < counted)
        patches = torch.cat([rule.accepted_patches(proposals, prediction) if k else own[:, :0], own], dim=1)
        patches[here, length] = own[:, 0]
        out.write(rows, done, patches, proposals, length, needed, looked_at, proposer.passes if k else 0)
        # commit: what was accepted stays in both contexts, the target's own patch follows it
        state.rollback(done + length)
        state.append(own)
        proposer.commit(done, length, own, prediction, counted)
        done = done + length + 1


class _Proposer:
    """Where proposals come from; the target's last pass already said something of the patches after a rejection.

    repropose 'draft': the draft is asked anew and knows nothing of it. 'target': what the target said is proposed, at
    no draft pass. 'corrected': the draft is asked anew and what it says of a patch is shifted by the gap that the
    target found there last time, q' = q_new + (p_old - q_old): draft and target both moved with the patch in between,
    their gap moved less. In a sampling rule only the mean shifts, by what was known before the patch was drawn, so a
    rule that keeps the target's law still does.
    `passes` counts the draft passes of the round.
    """

    def __init__(self, draft, state, rule, repropose: str):
        if repropose == "target" and rule.random:
            raise ValueError("repropose 'target' has no law to sample from: it needs a deterministic rule")
        self.draft, self.state, self.rule, self.repropose = draft, state, rule, repropose
        self.left_over, self.stock, self.passes = None, None, 0
        self.said, self.correction = None, None  # the draft's own word of this round, and what to add in the next

    def stock_of(self, done: torch.Tensor) -> torch.Tensor:
        """How many proposals [b] each row has left over."""
        return torch.zeros_like(done) if self.stock is None else self.stock

    def propose(self, k: int, done: torch.Tensor, eps: Noise | None, ask_draft: bool):
        """k proposals a row, and how many of them count [b]."""
        self.passes = 0
        everything = torch.full_like(done, k)
        drafted = self._ask_draft(k, eps) if ask_draft else None
        if self.stock is None:
            return drafted, everything
        again = Proposals.of_mean(self.left_over[:, :k])
        if drafted is None:
            proposals, available = again, self.stock
        else:
            fresh = self.stock == 0
            proposals, available = drafted.where(fresh, again), torch.where(fresh, everything, self.stock)
        self.state.rollback(done)
        self.state.append(proposals.patches)
        return proposals, available

    def _ask_draft(self, k: int, eps: Noise | None) -> Proposals:
        """As many draft passes as k proposals need, each on what the one before proposed."""
        parts, said, made = [], [], 0
        while made < k:
            prediction = self.draft.extend(self.state).first(k - made)
            count = prediction.mean.shape[1]
            said.append(prediction.mean)
            if self.correction is not None:
                prediction = prediction.shifted(self.correction[:, made:made + count])
            parts.append(self.rule.propose(prediction, eps.proposal[:, made:made + count] if eps else None))
            self.state.append(parts[-1].patches)
            made += count
            self.passes += 1
        self.said = torch.cat(said, dim=1)
        return Proposals.join(parts)

    def commit(self, done: torch.Tensor, length: torch.Tensor, next_patch: torch.Tensor, prediction, counted) -> None:
        """`counted` [b] proposals were verified, `length` of them accepted, `next_patch` follows these."""
        self.state.rollback(done + length)
        self.state.append(next_patch)
        k = prediction.mean.shape[1] - 1
        if self.repropose == "draft" or not k:
            return
        # position `length` went to the target's own patch; what it said of the later ones can be used
        rows = torch.arange(len(done), device=done.device)[:, None]
        later = length[:, None] + torch.arange(1, k + 1, device=done.device)
        if self.repropose == "target":
            self.left_over, self.stock = prediction.mean[rows, later.clamp(max=k)], counted - length
        else:  # past the last patch judged its gap is the best guess
            self.correction = (prediction.mean[:, :k] - self.said)[rows, later.clamp(max=k - 1)]

    def select(self, rows: torch.Tensor) -> None:
        self.state.select(rows)
        if self.correction is not None:
            self.correction = self.correction[rows]
        if self.stock is not None:
            self.left_over, self.stock = self.left_over[rows], self.stock[rows]


class _Ledger:
    """Buffers of a batch's results. Writing past a rejection is harmless: a later round overwrites it."""

    def __init__(self, context: torch.Tensor, n: int, patch_len: int, limit: int):
        B, _, C = context.shape
        self.n = n
        self.patches = context.new_zeros(B, n + limit + 1, patch_len, C)
        self.draft_mean = torch.full_like(self.patches, float("nan"))
        self.draft_sigma = None
        counts = torch.zeros(B, dtype=torch.long, device=context.device)
        self.origin = torch.zeros(B, n + limit + 1, dtype=torch.long, device=context.device)
        self.accepted, self.judged, self.proposed = counts.clone(), counts.clone(), counts.clone()
        self.target_passes, self.draft_passes = counts.clone(), counts.clone()
        self.lengths = torch.zeros(limit + 1, dtype=torch.long, device=context.device)
        self.most = None

    def add_most(self, rows, judgement, looked_at) -> None:
        if judgement.most is None:
            return
        if self.most is None:
            self.most = torch.zeros(len(self.accepted), dtype=torch.float64, device=rows.device)
        self.most.index_add_(0, rows, judgement.most.masked_fill(~looked_at, 0).sum(dim=1))

    def write(self, rows, done, patches, proposals, length, needed, looked_at, draft_passes: int) -> None:
        k = needed.shape[1]
        step = torch.arange(k + 1, device=rows.device)
        at = rows[:, None], done[:, None] + step
        self.patches[at] = patches
        judged = looked_at.sum(dim=1)
        own = torch.where(judged > length, REJECTED, BONUS)[:, None]
        self.origin[at] = torch.where(step < length[:, None], ACCEPTED, own)
        if k:
            self._write_draft(rows, done, proposals, looked_at)
        one = torch.ones_like(length)
        for name, value in (("accepted", length), ("judged", judged), ("proposed", needed.sum(dim=1)),
                            ("target_passes", one), ("draft_passes", draft_passes * one)):
            getattr(self, name).index_add_(0, rows, value)
        self.lengths.index_add_(0, length, one)

    def _write_draft(self, rows, done, proposals, looked_at) -> None:
        at = rows[:, None], done[:, None] + torch.arange(looked_at.shape[1], device=rows.device)
        unseen = ~looked_at[..., None, None]
        self.draft_mean[at] = proposals.mean.masked_fill(unseen, float("nan"))
        if self.draft_sigma is None and proposals.logvar is not None:
            self.draft_sigma = torch.full_like(self.patches, float("nan"))
        if self.draft_sigma is not None:
            unknown = torch.full_like(proposals.mean, float("nan"))
            sigma = unknown if proposals.logvar is None else torch.exp(0.5 * proposals.logvar)
            self.draft_sigma[at] = sigma.masked_fill(unseen, float("nan"))

    def finish(self, horizon: int) -> Decoded:
        def steps(patches):
            return None if patches is None else patches[:, :self.n].flatten(1, 2)[:, :horizon]
        return Decoded(steps(self.patches), self.origin[:, :self.n], steps(self.draft_mean), steps(self.draft_sigma),
                       self.accepted, self.judged, self.proposed, self.target_passes, self.draft_passes, self.lengths,
                       self.most)
