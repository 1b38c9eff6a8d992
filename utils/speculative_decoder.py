"""The loop: propose -> verify -> accept -> commit. Reads like the papers (Leviathan et al. 2023, Chen et al. 2023).

`decode_alone` and `decode_speculative` stand side by side so that one can be checked against the other. Models are
known by the interface of `models.decoding` only; rules by that of `utils.acceptance`.
"""
from dataclasses import dataclass

import torch

from utils.acceptance import Noise, Proposals

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


def patches_in(horizon: int, patch_len: int) -> int:
    return -(-horizon // patch_len)


@torch.inference_mode()
def decode_alone(model, context: torch.Tensor, horizon: int) -> torch.Tensor:
    """Plain autoregression with one model's mean: context [B, L, C] -> forecast [B, H, C], ceil(H / P) passes."""
    n = patches_in(horizon, model.patch_len)
    state = model.start(context, room=n)
    patches = []
    for _ in range(n):
        patches.append(model.extend(state).mean[:, 0])
        state.append(patches[-1])
    return torch.cat(patches, dim=1)[:, :horizon]


@torch.inference_mode()
def decode_speculative(target, draft, context: torch.Tensor, horizon: int, rule, max_proposals: int | None = None,
                       noise: Noise | None = None, observer=None) -> Decoded:
    """Speculative decoding of context [B, L, C] over `horizon` steps.

    A round costs at most `max_proposals` draft passes and ONE target pass, which verifies the proposals and gives
    one more patch: the replacement of the first rejected proposal or, all accepted, the bonus. The last patch of a
    row is always the target's own, so a row with r patches left needs r - 1 proposals. None: all of them.
    noise: required by random rules. observer(rows, first, judgement, looked_at) is called once a round.
    """
    n = patches_in(horizon, target.patch_len)
    limit = n - 1 if max_proposals is None else min(max_proposals, n - 1)
    out = _Ledger(context, n, target.patch_len, limit)
    states = target.start(context, room=n + limit), draft.start(context, room=n + limit)
    rows = torch.arange(context.shape[0], device=context.device)
    done = torch.zeros_like(rows)
    while True:
        left = (n - done).cpu()  # the one host synchronisation of a round: who is finished?
        if not left.any():
            return out.finish(horizon)
        if not left.all():  # a finished row leaves the batch
            going = left.nonzero()[:, 0].to(rows.device)
            rows, done = rows[going], done[going]
            for state in states:
                state.select(going)
        k = min(limit, int(left.max()) - 1)
        eps = noise.at(rows, done, k + 1) if rule.random else None
        proposals = _propose(draft, states[1], rule, k, eps)
        prediction = target.extend(states[0], proposals.patches if k else None)
        own = rule.own_patches(prediction, eps.target if eps else None)
        if k:
            judgement = rule.judge(proposals, prediction, eps.uniform[:, :k] if eps else None)
            needed = torch.arange(k, device=rows.device) < (n - done - 1)[:, None]
            run = (judgement.accepted & needed).long().cumprod(dim=1)  # 1 up to the first rejection
            length = run.sum(dim=1)
            patches = torch.where(run[..., None, None].bool(), rule.accepted_patches(proposals, prediction), own[:, :k])
            patches = torch.cat([patches, own[:, k:]], dim=1)
            looked_at = needed & (torch.arange(k, device=rows.device) <= length[:, None])
            if observer is not None:
                observer(rows, done, judgement, looked_at)
        else:
            needed = looked_at = torch.zeros(len(rows), 0, dtype=torch.bool, device=rows.device)
            length, patches = torch.zeros_like(done), own
        out.write(rows, done, patches, proposals, length, needed, looked_at)
        # commit: what was accepted stays in both contexts, the target's own patch follows it
        next_patch = own[torch.arange(len(rows), device=rows.device), length]
        for state in states:
            state.rollback(done + length)
            state.append(next_patch)
        done = done + length + 1


def _propose(draft, state, rule, k: int, eps: Noise | None) -> Proposals | None:
    """k draft passes, each on what the one before proposed."""
    parts = []
    for i in range(k):
        parts.append(rule.propose(draft.extend(state), eps.proposal[:, i:i + 1] if eps else None))
        state.append(parts[-1].patches[:, 0])
    return Proposals.join(parts) if k else None


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

    def write(self, rows, done, patches, proposals, length, needed, looked_at) -> None:
        k = needed.shape[1]
        step = torch.arange(k + 1, device=rows.device)
        at = rows[:, None], done[:, None] + step
        self.patches[at] = patches
        judged = looked_at.sum(dim=1)
        own = torch.where(judged > length, REJECTED, BONUS)[:, None]
        self.origin[at] = torch.where(step < length[:, None], ACCEPTED, own)
        if k:
            self._write_draft(rows, done, proposals, looked_at)
        for name, value in (("accepted", length), ("judged", judged), ("proposed", needed.sum(dim=1)),
                            ("target_passes", torch.ones_like(length)), ("draft_passes", torch.full_like(length, k))):
            getattr(self, name).index_add_(0, rows, value)
        self.lengths.index_add_(0, length, torch.ones_like(length))

    def _write_draft(self, rows, done, proposals, looked_at) -> None:
        at = rows[:, None], done[:, None] + torch.arange(looked_at.shape[1], device=rows.device)
        unseen = ~looked_at[..., None, None]
        self.draft_mean[at] = proposals.mean.masked_fill(unseen, float("nan"))
        if proposals.logvar is not None:
            if self.draft_sigma is None:
                self.draft_sigma = torch.full_like(self.patches, float("nan"))
            self.draft_sigma[at] = torch.exp(0.5 * proposals.logvar).masked_fill(unseen, float("nan"))

    def finish(self, horizon: int) -> Decoded:
        def steps(patches):
            return None if patches is None else patches[:, :self.n].flatten(1, 2)[:, :horizon]
        return Decoded(steps(self.patches), self.origin[:, :self.n], steps(self.draft_mean), steps(self.draft_sigma),
                       self.accepted, self.judged, self.proposed, self.target_passes, self.draft_passes, self.lengths)
