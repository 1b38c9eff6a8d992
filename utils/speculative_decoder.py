"""The decoder: target alone, sampled alone, and speculative. Reads like Leviathan et al. 2023 and Chen et al. 2023.

`decode_alone`, `sample_alone` and `decode_speculative` are kept together so that each can be checked against the
others. Models, states and rules are used through the protocols of `interface` only.

What a round holds (b rows, k proposals, first, needed, looked_at, length) is explained at `decoded.Round`.
"""
from __future__ import annotations

from collections.abc import Callable

import torch

from .decoded import Decoded, Ledger, Round
from .finite import refuse_not_finite, refuse_pair
from .interface import Model, Prediction, Rule, State
from .proposals import Noise, Proposals
from .target_law import TargetLaw

REPROPOSALS = ("draft", "target", "corrected")  # source of proposals after a rejection, see `_Proposer`


def patches_in(horizon: int, patch_len: int) -> int:
    """ceil(H / P). Raises ValueError for a horizon below 1."""
    if horizon < 1:
        raise ValueError(f"the horizon is {horizon}: at least 1 step is needed")
    return -(-horizon // patch_len)


@torch.inference_mode()
def decode_alone(model: Model, context: torch.Tensor, horizon: int) -> torch.Tensor:
    """Plain autoregression with one model's mean: context [B, L, C] -> forecast [B, H, C], data units.

    Takes n = ceil(H / P) passes, or ceil(n / J) for a draft that predicts J patches ahead. Raises NotFinite if the
    model's output is not finite.
    """
    patches, logvars = _alone(model, context, patches_in(horizon, model.patch_len))
    refuse_not_finite(model, "model", context, patches, logvars)
    return patches.flatten(1, 2)[:, :horizon]


def _alone(model: Model, context: torch.Tensor, n: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """n patches [B, n, P, C] of plain autoregression, and the log-variances of a model that has them, in parts."""
    state = model.start(context, room=n)
    parts: list[torch.Tensor] = []
    logvars: list[torch.Tensor] = []
    left = n
    while left:
        if parts:
            state.append(parts[-1])
        prediction = model.extend(state).first(left)
        parts.append(prediction.mean)
        if prediction.logvar is not None:
            logvars.append(prediction.logvar)
        left -= parts[-1].shape[1]
    return torch.cat(parts, dim=1), logvars


@torch.inference_mode()
def sample_alone(model: Model, context: torch.Tensor, horizon: int, law: TargetLaw,
                 z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain ancestral sampling: context [B, L, C] -> S paths per window, and the mean of each step given its past.

    Both are [B, S, H, C], data units. z: standard normal [B, S, n, P, C]. A patch is its mean, predicted from the path
    so far, plus law.spread(z) in the unit of the context. The context is encoded once per window, whatever S is; each
    later pass is over all paths of the batch. Raises ValueError where z has too few patches, and NotFinite if the
    model's output is not finite.
    """
    n, samples = patches_in(horizon, model.patch_len), z.shape[1]
    if z.shape[2] < n:
        raise ValueError(f"z has {z.shape[2]} patches, but {n} are needed for {horizon} steps")
    z = z.flatten(0, 1)
    state = model.start(context, room=n)
    prediction = model.extend(state).first(1)
    mean, unit = (part.repeat_interleave(samples, dim=0) for part in (prediction.mean, prediction.unit))
    model.fan_out(state, samples)
    parts: list[torch.Tensor] = []
    means: list[torch.Tensor] = []
    logvars: list[torch.Tensor] = []
    for step in range(n):
        if step:
            state.append(parts[-1])
            prediction = model.extend(state).first(1)
            mean = prediction.mean
        means.append(mean)
        parts.append(mean + law.spread(z[:, step:step + 1], unit))
        if prediction.logvar is not None:
            logvars.append(prediction.logvar.repeat_interleave(len(z) // len(prediction.logvar), dim=0))
    patches = torch.cat(parts, dim=1)
    refuse_not_finite(model, "model", context, patches, logvars)

    def by_window(patches: torch.Tensor) -> torch.Tensor:
        return patches.flatten(1, 2)[:, :horizon].unflatten(0, (-1, samples))
    return by_window(patches), by_window(torch.cat(means, dim=1))


@torch.inference_mode()
def decode_speculative(target: Model, draft: Model, context: torch.Tensor, horizon: int, rule: Rule,
                       max_proposals: int | None = None, noise: Noise | None = None,
                       observer: Callable[[Round], None] | None = None, repropose: str = "draft",
                       samples: int = 1) -> Decoded:
    """Speculative decoding of context [B, L, C] over `horizon` steps.

    A round costs the draft passes for at most `max_proposals` proposals and ONE target pass, which verifies them and
    yields one more patch. The first round verifies inside the pass over the context. The last patch of a row is always
    the target's own, so a row with r patches left needs r - 1 proposals; max_proposals None: all of them.
    noise: for random rules; None: drawn from torch's global generator. observer: called with every round that has
    proposals. repropose: source of proposals after a rejection, see `_Proposer`.
    samples: forecasts per window. The result (and noise) has B * samples rows, those of a window adjacent; with a cache
    the context is encoded once per window, in a pass that is not counted.
    Raises TypeError for what is not a model or not a rule; ValueError if draft and target differ in patch length, for
    an unknown `repropose`, for max_proposals below 0 and for samples below 1; NotFinite, which names the model, if an
    output that counts is not finite: of the target in the forecast, of the draft (or its square) in a proposal that was
    judged.
    """
    _refuse_misuse(target, draft, rule, max_proposals, samples)
    n = patches_in(horizon, target.patch_len)
    limit = n - 1 if max_proposals is None else min(max_proposals, n - 1)
    state, draft_state = (model.start(context, room=n + limit) for model in (target, draft))
    draft_state.unit = state.unit  # the law is the target's
    if samples > 1:
        target.fan_out(state, samples)
        draft.fan_out(draft_state, samples)
        context = context.repeat_interleave(samples, dim=0)
    if not rule.random:
        noise = None
    elif noise is None:
        noise = Noise.draw(context, n, target.patch_len)
    out = Ledger(context, n, target.patch_len, limit)
    proposer = _Proposer(draft, draft_state, rule, repropose)
    rows = torch.arange(context.shape[0], device=context.device)
    done = torch.zeros_like(rows)
    while True:
        # the one host synchronisation per round: which rows are finished, which have no proposals left over?
        left, stock = torch.stack([n - done, proposer.stock_of(done)]).cpu()
        if not left.any():
            refuse_pair(out.finite(rule, repropose), target, draft, context, samples, _alone)
            return out.finish(horizon)
        if not left.all():  # a finished row leaves the batch
            going = left.nonzero()[:, 0].to(rows.device)
            rows, done = rows[going], done[going]
            state.select(going)
            proposer.select(going)
        k = min(limit, int(left.max()) - 1)
        eps = noise.at(rows, done, k) if noise is not None and k else None
        proposals, available = proposer.propose(k, done, eps, bool(((left > 1) & (stock == 0)).any()))
        prediction = target.extend(state, None if proposals is None else proposals.patches)
        judged = _judged(rule, rows, done, proposals, prediction, torch.minimum(n - done - 1, available), eps)
        own = _own_patch(rule, judged, prediction, noise)
        out.write(judged, _patches(rule, judged, prediction, own), proposer.passes)
        if observer is not None and k:
            observer(judged)
        # commit: accepted patches stay in both contexts, followed by the target's own patch
        state.rollback(done + judged.length)
        state.append(own)
        proposer.commit(judged, own, prediction)
        done = done + judged.length + 1


def _refuse_misuse(target: Model, draft: Model, rule: Rule, max_proposals: int | None, samples: int) -> None:
    """Raises TypeError for what is no model or no rule, with the way to make one, and ValueError for bad values."""
    for model in (target, draft):
        if not hasattr(model, "patch_len"):
            raise TypeError(f"{type(model).__name__} is not a model: wrap a function by FromForward(function, "
                            "patch_len), a model with a cache by FromCache")
    if isinstance(rule, type) or not hasattr(rule, "judge"):
        raise TypeError(f"{rule!r} is not a rule: give an instance, such as Tolerance(0.15)")
    if draft.patch_len != target.patch_len:
        raise ValueError(f"the draft's patch has {draft.patch_len} steps, the target's {target.patch_len}: they must "
                         "be equal")
    if samples < 1 or (max_proposals is not None and max_proposals < 0):
        raise ValueError(f"samples is {samples} and max_proposals {max_proposals}, but must be at least 1 and 0")


def _judged(rule: Rule, rows: torch.Tensor, first: torch.Tensor, proposals: Proposals | None, prediction: Prediction,
            counted: torch.Tensor, eps: Noise | None) -> Round:
    """Judges the proposals of a round; only the first `counted` [b] of each row count."""
    if proposals is None:
        none = torch.zeros(len(rows), 0, dtype=torch.bool, device=rows.device)
        return Round(rows, first, None, None, none, none, torch.zeros_like(first))
    judgement = rule.judge(proposals, prediction, None if eps is None else eps.uniform)
    step = torch.arange(judgement.accepted.shape[1], device=rows.device)
    needed = step < counted[:, None]
    length = (judgement.accepted & needed).long().cumprod(dim=1).sum(dim=1)  # up to the first rejection
    return Round(rows, first, proposals, judgement, needed, needed & (step <= length[:, None]), length)


def _own_patch(rule: Rule, judged: Round, prediction: Prediction, noise: Noise | None) -> torch.Tensor:
    """The target's own patch [b, 1, P, C], after the accepted proposals."""
    length, here = judged.length, torch.arange(len(judged.rows), device=judged.rows.device)
    eps = None if noise is None else noise.at(judged.rows, judged.first + length, 1).target
    rejected = judged.looked_at.sum(dim=1) > length
    instead_of = None
    if judged.proposals is not None:
        instead_of = judged.proposals.at(here, length.clamp(max=judged.needed.shape[1] - 1))
    return rule.own_patch(prediction.at(here, length), eps, instead_of, rejected)


def _patches(rule: Rule, judged: Round, prediction: Prediction, own: torch.Tensor) -> torch.Tensor:
    """Patches that the round adds to the forecast [b, k + 1, P, C]; past a row's own patch they are meaningless."""
    accepted = own[:, :0] if judged.proposals is None else rule.accepted_patches(judged.proposals, prediction)
    patches = torch.cat([accepted, own], dim=1)
    patches[torch.arange(len(own), device=own.device), judged.length] = own[:, 0]
    return patches


class _Proposer:
    """Source of proposals. After a rejection the target's last pass already has information on later patches.

    repropose 'draft': the draft proposes again and ignores it. 'target': the target's own means are proposed, without a
    draft pass. 'corrected': the draft proposes again, and its mean for a patch is shifted by the gap that the target
    found there last time, q' = q_new + (p_old - q_old): the patch in between moved both means, but their gap less. With
    a sampling rule only the mean shifts, by an amount known before the patch is drawn, so a law-preserving rule
    remains one.
    `passes` counts the draft passes of the round.
    """

    def __init__(self, draft: Model, state: State, rule: Rule, repropose: str):
        if repropose not in REPROPOSALS:
            raise ValueError(f"repropose must be one of {', '.join(REPROPOSALS)}, not {repropose!r}")
        if repropose == "target" and rule.random:
            raise ValueError("repropose 'target' has no law to sample from: it needs a deterministic rule")
        self.draft, self.state, self.rule, self.repropose = draft, state, rule, repropose
        self.passes = 0
        self.left_over: torch.Tensor | None = None  # 'target': the target's means to propose next, `stock` of them
        self.stock: torch.Tensor | None = None
        self.means: torch.Tensor | None = None  # 'corrected': the draft's means of this round, before correction
        self.correction: torch.Tensor | None = None  # and the shift for those of the next

    def stock_of(self, done: torch.Tensor) -> torch.Tensor:
        """Number of proposals [b] that each row has left over."""
        return torch.zeros_like(done) if self.stock is None else self.stock

    def propose(self, k: int, done: torch.Tensor, eps: Noise | None,
                ask_draft: bool) -> tuple[Proposals | None, torch.Tensor]:
        """k proposals per row (None if k is 0), and how many of them count [b]."""
        self.passes = 0
        everything = torch.full_like(done, k)
        if not k:
            return None, everything
        drafted = self._ask_draft(k, eps) if ask_draft else None
        if self.stock is None or self.left_over is None:
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
        """Makes k proposals in as many draft passes as needed, each conditioned on the proposals before."""
        parts, means, made = [], [], 0
        while made < k:
            prediction = self.draft.extend(self.state).first(k - made)
            count = prediction.mean.shape[1]
            means.append(prediction.mean)
            if self.correction is not None:
                prediction = prediction.shifted(self.correction[:, made:made + count])
            parts.append(self.rule.propose(prediction, None if eps is None else eps.proposal[:, made:made + count]))
            self.state.append(parts[-1].patches)
            made += count
            self.passes += 1
        self.means = torch.cat(means, dim=1)
        return Proposals.join(parts)

    def commit(self, judged: Round, own: torch.Tensor, prediction: Prediction) -> None:
        """Advances the draft's state to the target's own patch, and keeps what the next round can use."""
        length, k = judged.length, judged.needed.shape[1]
        self.state.rollback(judged.first + length)
        self.state.append(own)
        if self.repropose == "draft" or not k:
            return
        # position `length` went to the target's own patch; its predictions of the later ones can be used
        rows = torch.arange(len(length), device=length.device)[:, None]
        later = length[:, None] + torch.arange(1, k + 1, device=length.device)
        if self.repropose == "target":
            self.left_over = prediction.mean[rows, later.clamp(max=k)]
            self.stock = judged.needed.sum(dim=1) - length
        elif self.means is not None:  # past the last patch judged its gap is the best guess
            self.correction = (prediction.mean[:, :k] - self.means)[rows, later.clamp(max=k - 1)]

    def select(self, rows: torch.Tensor) -> None:
        self.state.select(rows)
        if self.correction is not None:
            self.correction = self.correction[rows]
        if self.stock is not None and self.left_over is not None:
            self.left_over, self.stock = self.left_over[rows], self.stock[rows]
