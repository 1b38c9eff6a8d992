"""Where proposals come from: the draft, after a rejection with what the target's last pass has found; or the target."""
from __future__ import annotations

from collections.abc import Callable

import torch

from .decoded import Round
from .interface import Model, Prediction, Rule, State
from .proposals import Noise, Proposals

REPROPOSALS = ("draft", "target", "corrected")  # source of proposals after a rejection, see `Proposer`


def source_of(rule: Rule | type, asked: str | None = None, of_heads: bool = False) -> str:
    """The source of proposals after a rejection: `asked`, or the one that was measured to be best for the rule (None).

    A rule, or its class, names it by an attribute `reproposes`; without one it is 'draft'. of_heads: a target's own
    heads propose, and nothing else. Raises ValueError for an unknown source.
    """
    if of_heads:
        if asked not in (None, "draft"):
            raise ValueError(f"repropose {asked!r} goes with a draft: the target's own heads propose anew in each pass")
        return "draft"
    source = getattr(rule, "reproposes", "draft") if asked is None else asked
    if source not in REPROPOSALS:
        raise ValueError(f"repropose must be one of {', '.join(REPROPOSALS)}, not {source!r}")
    return source


def drafted(draft: Model, state: State, k: int, propose: Callable[[Prediction, int], Proposals],
            correction: torch.Tensor | None = None, one_by_one: bool = False) -> tuple[Proposals, torch.Tensor, int]:
    """k proposals in as few draft passes as it takes, each pass conditioned on the proposals before it.

    propose: (prediction, number of proposals before it) -> proposals; correction [b, k, P, C] shifts the draft's means.
    one_by_one: one patch per pass, also from a draft that predicts several ahead. Its answer for a patch depends on
    where the pass began, so that an error found in one pass does not correct the next, which begins elsewhere.
    Also returns the means before the shift, and the number of passes.
    """
    parts, means, made = [], [], 0
    while made < k:
        prediction = draft.extend(state).first(1 if one_by_one else k - made)
        count = prediction.mean.shape[1]
        means.append(prediction.mean)
        if correction is not None:
            prediction = prediction.shifted(correction[:, made:made + count])
        parts.append(propose(prediction, made))
        state.append(parts[-1].patches)
        made += count
    return Proposals.join(parts), torch.cat(means, dim=1), len(parts)


class Proposer:
    """Source of proposals. After a rejection the target's last pass already has information on later patches.

    repropose 'draft': the draft proposes again and ignores it. 'target': the target's own means are proposed, without a
    draft pass. 'corrected': the draft proposes again, and its mean for a patch is shifted by the gap that the target
    found there last time, q' = q_new + (p_old - q_old): the patch in between moved both means, but their gap less. It
    proposes one patch per pass, see `drafted`. With a sampling rule only the mean shifts, by an amount known before the
    patch is drawn, so a law-preserving rule remains one.
    `passes` counts the draft passes of the round.
    """

    def __init__(self, draft: Model, state: State, unit: torch.Tensor, rule: Rule, repropose: str):
        """unit [B, 1, 1, C]: of the target's state, as the law of proposals is the target's."""
        if repropose == "target" and rule.random:
            raise ValueError("repropose 'target' has no law to sample from: it needs a deterministic rule")
        self.draft, self.state, self.rule, self.repropose = draft, state, rule, repropose
        state.unit = unit
        self.passes = 0
        self.left_over: torch.Tensor | None = None  # 'target': the target's means to propose next, `stock` of them
        self.stock: torch.Tensor | None = None
        self.means: torch.Tensor | None = None  # 'corrected': the draft's means of this round, before correction
        self.correction: torch.Tensor | None = None  # and the shift for those of the next

    def most(self, limit: int) -> int:
        """Most proposals of the next round, of at most `limit`."""
        return limit

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
        def propose(prediction: Prediction, made: int) -> Proposals:
            until = made + prediction.mean.shape[1]
            return self.rule.propose(prediction, None if eps is None else eps.proposal[:, made:until])
        proposals, self.means, self.passes = drafted(self.draft, self.state, k, propose, self.correction,
                                                      self.repropose == "corrected")
        return proposals

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


class HeadProposer:
    """Proposals from the target's own longer heads, with the methods of `Proposer` and no draft.

    The pass that verifies the present proposals says, from the last accepted patch on, what comes after the target's
    own patch, which ends the round: the next proposals. So the first round, over the context, has none. The heads have
    not seen that own patch. Where it is the target's mean they lose nothing by it, as the mean follows from what they
    have seen; where it is drawn, proposals do not follow the draw, and are accepted less often. A law-preserving rule
    remains one: the mean of a proposal is known before any noise of its position, and of the own patch, is looked at.
    """

    passes = 0

    def __init__(self, rule: Rule):
        self.rule = rule
        self.said: Prediction | None = None  # of the patches after those that are done

    def most(self, limit: int) -> int:
        return 0 if self.said is None else limit

    def stock_of(self, done: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(done)

    def propose(self, k: int, done: torch.Tensor, eps: Noise | None,
                ask_draft: bool) -> tuple[Proposals | None, torch.Tensor]:
        proposals = None
        if k and self.said is not None:
            proposals = self.rule.propose(self.said.first(k), None if eps is None else eps.proposal)
        return proposals, torch.full_like(done, k)

    def commit(self, judged: Round, own: torch.Tensor, prediction: Prediction) -> None:
        """Keeps what the heads say behind the last accepted patch of every row."""
        rows = torch.arange(len(judged.length), device=judged.length.device)
        self.said = prediction.at(rows, judged.length).of_ahead()

    def select(self, rows: torch.Tensor) -> None:
        if self.said is not None:
            self.said = self.said.of_rows(rows)
