"""The decoder: target alone, sampled alone, speculative, parareal. Reads like Leviathan et al. 2023, Chen et al. 2023.

`decode_alone`, `sample_alone`, `decode_speculative` and `decode_parareal` are kept together so that each can be checked
against the others. Models, states and rules are used through the protocols of `interface` only.

What a round holds (b rows, k proposals, first, needed, looked_at, length) is explained at `decoded.Round`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .decoded import Decoded, Ledger, Passes, Round
from .fidelity import rms_of_gaps
from .finite import refuse_not_finite, refuse_pair
from .interface import Model, Prediction, Rule, State
from .proposals import Noise, Proposals
from .proposer import HeadProposer, Proposer, drafted, source_of
from .refusals import refuse_misfits, refuse_misuse
from .replay import Leave, leave_now, run
from .target_law import TargetLaw


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
    n = patches_in(horizon, model.patch_len)

    def decode(leave: Leave, context: torch.Tensor) -> tuple[torch.Tensor, ...]:
        patches, logvars = _alone(model, context, n)
        return patches, *logvars
    patches, *logvars = run(model, ("alone", n), decode, [context])
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
def sample_alone(model: Model, context: torch.Tensor, horizon: int, law: TargetLaw, z: torch.Tensor,
                 width: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain ancestral sampling: context [B, L, C] -> S paths per window, and the mean of each step given its past.

    Both are [B, S, H, C], data units. z: standard normal [B, S, n, P, C]. A patch is its mean, predicted from the path
    so far, plus law.spread(z) in the unit of the context, times the path's width [B, S, C] for a law with `widths`. The
    context is encoded once per window, whatever S is; each later pass is over all paths of the batch. Raises ValueError
    where z has too few patches or the width does not go with the law, and NotFinite if the model's output is not
    finite.
    """
    n, samples, there = patches_in(horizon, model.patch_len), z.shape[1], law.on(context)
    if z.shape[2] < n:
        raise ValueError(f"z has {z.shape[2]} patches, but {n} are needed for {horizon} steps")

    def decode(leave: Leave, context: torch.Tensor, z: Any, width: Any) -> tuple[torch.Tensor, ...]:
        patches, means, logvars = _sampled(model, context, n, there, z, width)
        return patches, means, *logvars
    patches, means, *logvars = run(model, ("sampled", n), decode, [context, z, width], [law])
    refuse_not_finite(model, "model", context, patches, logvars)

    def by_window(patches: torch.Tensor) -> torch.Tensor:
        return patches.flatten(1, 2)[:, :horizon].unflatten(0, (-1, samples))
    return by_window(patches), by_window(means)


def _sampled(model: Model, context: torch.Tensor, n: int, law: TargetLaw, z: torch.Tensor,
             width: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The patches of `sample_alone` and their means, each [B * S, n, P, C]; the log-variances, in parts."""
    samples, z = z.shape[1], z.flatten(0, 1)
    state = model.start(context, room=n)
    prediction = model.extend(state).first(1)
    mean, unit = (part.repeat_interleave(samples, dim=0) for part in (prediction.mean, prediction.unit))
    unit = law.own_unit(unit, None if width is None else width.flatten(0, 1))
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
    return torch.cat(parts, dim=1), torch.cat(means, dim=1), logvars


@torch.inference_mode()
def decode_speculative(target: Model, draft: Model | None, context: torch.Tensor, horizon: int, rule: Rule,
                       max_proposals: int | None = None, noise: Noise | None = None,
                       observer: Callable[[Round], None] | None = None, repropose: str | None = None,
                       samples: int = 1) -> Decoded:
    """Speculative decoding of context [B, L, C] over `horizon` steps.

    A round costs the draft passes for at most `max_proposals` proposals and ONE target pass, which verifies them and
    yields one more patch. The first round verifies inside the pass over the context. The last patch of a row is always
    the target's own, so a row with r patches left needs r - 1 proposals; max_proposals None: all of them.
    draft None: the target's own longer heads propose, at most `heads_ahead` patches. There are no draft passes, and the
    first round, which lets the heads speak, has no proposals; see `proposer.HeadProposer`.
    noise: for random rules; None: drawn from torch's global generator. observer: called with every round that has
    proposals. repropose: source of proposals after a rejection, see `proposer.Proposer`; None: the best for the rule,
    'corrected' for `exact` and `coupling`.
    samples: forecasts per window. The result (and noise) has B * samples rows, those of a window adjacent; with a cache
    the context is encoded once per window, in a pass that is not counted.
    Raises TypeError for what is not a model or not a rule; ValueError if draft and target differ in patch length, for
    a target without longer heads where there is no draft, for an unknown `repropose`, for max_proposals below 0 and for
    samples below 1; NotFinite, which names the model, if an output that counts is not finite: of the target in the
    forecast, of the draft (or its square) in a proposal that was judged.
    """
    refuse_misuse(target, draft, rule, max_proposals, samples)
    n = patches_in(horizon, target.patch_len)
    limit = n - 1 if max_proposals is None else min(max_proposals, n - 1)
    if draft is None:
        limit = min(limit, target.heads_ahead)
    windows, context = context, context.repeat_interleave(samples, dim=0)
    state, law = _started(target, windows, n + limit, samples), getattr(rule, "law", None)
    if not rule.random:
        noise = None
    elif noise is None:
        noise = Noise.draw(context, n, target.patch_len, law=law)
    if law is not None and noise is not None:
        state.unit = law.own_unit(state.unit, noise.width)
    out = Ledger(context, n, target.patch_len, limit)
    repropose = source_of(rule, repropose, of_heads=draft is None)
    proposer = HeadProposer(rule) if draft is None else \
        Proposer(draft, _started(draft, windows, n + limit, samples), state.unit, rule, repropose)
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
        k = min(proposer.most(limit), int(left.max()) - 1)
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


@torch.inference_mode()
def decode_parareal(target: Model, draft: Model, context: torch.Tensor, horizon: int, passes: int | None = None,
                    tol: float = 0.0, law: TargetLaw | None = None, z: torch.Tensor | None = None,
                    width: torch.Tensor | None = None, constants: Sequence[float] | None = None, audit: int = 0,
                    observer: Callable[[torch.Tensor, torch.Tensor], None] | None = None) -> Decoded:
    """The draft, corrected by the error that the target has found, again and again (Lions, Maday and Turinici 2001).

    G is the draft's mean, the coarse propagator, F the target's, the fine one; e[i] = law.spread(z[i]) is noise fixed
    per position, none for means:

        q_0[i] = the draft's forecast of its own, with e[i]
        p_j[i] = F(q_{j-1}[<i]) + e[i]                          all i in one target pass
        q_j[i] = G(q_j[<i]) + (F - G)(q_{j-1}[<i]) + e[i]

    The forecast after j passes is p_j. Its first j patches are those of the target alone: they stay in both contexts,
    and are not computed again. The others converge at the rate of F - G, and n = ceil(H / P) passes are plain decoding.
    G is the next patch alone, also of a draft that predicts several ahead, which serves for q_0: an error of its other
    heads does not correct the next pass, which begins elsewhere.
    A window leaves after `passes`, or once no gap rms((q_{j-1}[i] - p_j[i]) / s) is above `tol`, s the standard
    deviation of the target's window; with tol 0 the number of passes is fixed, and no pass asks anything of the device.
    constants, one a pass: a window leaves once its certificate, constants[j - 1] times the RMS of the gaps over its
    patches, is at most `tol` instead; see `fidelity.fit_constants`. observer: called after every pass with the
    forecasts [B * S, H, C] and gaps [B * S, n - 1] so far.
    context [B, L, C]; law, z [B, S, n, P, C], standard normal, and width [B, S, C] of a law with `widths`: S paths per
    window, which converge to those of `sample_alone` for this z and width. The result has B * S rows, those of a window
    adjacent, and their `gap` [B * S, n - 1].
    With a cache the context is encoded once per window for all of its paths, in a pass that is not counted.
    audit: paths of each window that the target reads once more, in a pass that is not counted. `divergence` [B, audit]
    is then half the squared whitened distance between the means that the path was drawn around and the target's means
    behind this very path: its expectation over z is KL(law of the paths || target's law), in nats (the guide has the
    proof), of a law with `widths` an upper bound of it. It holds for a number of passes that does not depend on z, so
    for tol 0 only.
    Raises TypeError for what is not a model; ValueError if the patches of both differ in length, for passes below 1, a
    negative tol, too few constants, a z that does not fit, and an audit without a law, of more paths than there are or
    with a tol above 0; NotFinite, which names the model, if the forecast or the proposals behind it are not finite.
    """
    n = patches_in(horizon, target.patch_len)
    refuse_misfits(target, draft, context, n, passes, tol, law, z, width, audit)
    if constants is not None and len(constants) < n - 1:
        raise ValueError(f"there are {len(constants)} constants, but {n - 1} passes before the last need one each")
    samples = 1 if z is None else z.shape[1]
    there, last = law and law.on(context), n if passes is None else min(passes, n)
    each = None if constants is None else tuple(constants)

    def decode(leave: Leave, context: torch.Tensor, z: Any, width: Any) -> tuple[torch.Tensor, ...]:
        seen = None if observer is None else lambda out: observer(out.forecast(horizon), out.gap.clone())
        return _parareal(target, draft, context, n, last, tol, there, z, width, each, audit, leave, seen).parts()
    if observer is None:
        made = run(target, ("parareal", n, last, tol, each, audit), decode, [context, z, width], [draft, law])
    else:
        made = decode(leave_now, context, z, width)  # what is replayed cannot be watched
    out = Passes(*made)
    refuse_pair(out.finite, target, draft, context.repeat_interleave(samples, dim=0), samples, _alone)
    return out.finish(horizon)


def _parareal(target: Model, draft: Model, context: torch.Tensor, n: int, last: int, tol: float,
              law: TargetLaw | None, z: torch.Tensor | None, width: torch.Tensor | None,
              constants: Sequence[float] | None, audit: int, leave: Leave,
              seen: Callable[[Passes], None] | None) -> Passes:
    """The passes of `decode_parareal`, `last` of them at most."""
    state, draft_state = (model.start(context, room=n) for model in (target, draft))
    noise = None
    if law is not None and z is not None:
        samples = z.shape[1]
        target.fan_out(state, samples)
        draft.fan_out(draft_state, samples)
        context = context.repeat_interleave(samples, dim=0)
        state.unit = law.own_unit(state.unit, None if width is None else width.flatten(0, 1))
        noise = law.spread(z.flatten(0, 1)[:, :n], state.unit)
    draft_state.unit = state.unit  # the law is the target's
    out = Passes.of(context, n, target.patch_len)
    rows = torch.arange(len(context), device=context.device)
    correction = None
    for exact in range(last):  # so many patches are the target's own by now
        e = None if noise is None else noise[rows, exact:]
        q, coarse, made = _corrected(draft, draft_state, n - 1 - exact, e, correction, one_by_one=exact > 0)
        prediction = target.extend(state, q if q.shape[1] else None).first(q.shape[1] + 1)
        fine, p = prediction.mean, prediction.mean if e is None else prediction.mean + e
        gap = out.write(rows, exact, p, q, prediction.scale, made)
        if seen is not None:
            seen(out)
        if exact + 1 == last:
            break
        if constants is not None:
            gap = constants[exact] * rms_of_gaps(out.gap[rows])
        if tol > 0:
            going = leave(gap <= tol)  # the one host synchronisation of a pass
            if going is not None:  # a window that is close enough leaves the batch
                if not len(going):
                    break
                rows, fine, p, q, coarse = (part[going] for part in (rows, fine, p, q, coarse))
                state.select(going)
                draft_state.select(going)
        if made < q.shape[1]:  # several patches ahead: G of all of them, in one more pass
            draft_state.rollback(exact)
            coarse = draft.extend(draft_state, q).mean
            out.draft_passes[rows] += 1
        correction = fine[:, 1:-1] - coarse[:, 1:q.shape[1]]
        correction = torch.nan_to_num(correction, nan=0.0, posinf=0.0, neginf=0.0)  # of proposals beyond the target
        for each in (state, draft_state):
            each.rollback(exact)
            each.append(p[:, :1])
    if audit and law is not None:
        audited = torch.arange(len(rows), device=rows.device).view(-1, samples)[:, :audit].flatten()
        nats = _divergence(target, state, law, exact, fine[audited], p[audited], audited)
        out.divergence = nats.unflatten(0, (-1, audit))
    return out


def _divergence(target: Model, state: State, law: TargetLaw, exact: int, fine: torch.Tensor, p: torch.Tensor,
                audited: torch.Tensor) -> torch.Tensor:
    """Nats [r] of the `audited` rows of a state, whose last k + 1 patches p [r, k + 1, P, C] were drawn around `fine`.

    The first `exact` patches are final, and p[:, 0] is the target's own too: both means are the same up to there.
    """
    if p.shape[1] == 1:
        return p.new_zeros(len(p), dtype=torch.float64)
    state.select(audited)
    state.rollback(exact)
    heard = target.extend(state, p[:, :-1]).first(p.shape[1]).mean
    return law.divergence((fine - heard)[:, 1:], state.unit).sum(dim=1)


def _corrected(draft: Model, state: State, k: int, noise: torch.Tensor | None, correction: torch.Tensor | None,
               one_by_one: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
    """k proposals of parareal, the draft's own means behind them, both [b, k, P, C], and the number of draft passes."""
    if not k:
        none = state.unit.new_zeros(len(state.unit), 0, draft.patch_len, state.unit.shape[-1])
        return none, none, 0

    def propose(prediction: Prediction, made: int) -> Proposals:
        count = prediction.mean.shape[1]
        return Proposals.of_mean(prediction.mean if noise is None else prediction.mean + noise[:, made:made + count])
    proposals, means, passes = drafted(draft, state, k, propose, correction, one_by_one)
    return proposals.patches, means, passes


def _started(model: Model, context: torch.Tensor, room: int, samples: int) -> State:
    """A state of context [B, L, C] with `samples` rows for each window."""
    state = model.start(context, room)
    if samples > 1:
        model.fan_out(state, samples)
    return state


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
