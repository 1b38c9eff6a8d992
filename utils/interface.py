"""The interface between the decoder and everything it drives: models, decode states, acceptance rules.

A model that can be decoded offers

    state = model.start(context, room)         context [B, L, C]; room: most patches after it, proposals included
    prediction = model.extend(state, patches)  patches [B, k, P, C] or None -> next-patch predictions, ONE pass
    state.append(patches)                      patches [B, k, P, C] that are known and need no prediction of their own
    state.rollback(lengths)                    forget everything after `lengths` patches, [B] of each row, or one number
    state.select(rows)                         keep only these rows: a finished row leaves the batch
    model.fan_out(state, samples)              repeats every row `samples` times: paths with a shared context

`extend` predicts after what the state already holds and after each of the k new patches, so K proposals and the
bonus patch take one call. Nothing is computed before the first `extend`, which encodes context and proposals together
(or `fan_out`, which may encode the context). After the first `rollback` rows may differ in length. A row that is nearly
done still gets as many proposals as the others: the surplus is past its horizon, within `room`, and does not count.
A model may have `graphs` (`replay.record`): then its decodes of fixed shape are recorded and replayed on a GPU.
Your own model needs no class for this if one of `adapters` fits; see `docs/YOUR_MODEL.md`.

A patch is what the model predicts, `patch_len` steps. What it reads at a time, a token, may be shorter: only its states
know of that, and its context need not be a whole number of patches.

Shapes: B windows, C variables, L steps of context, P steps per patch, k or K proposals. Means are in data units (those
of the context); a `unit` or `scale` is the standard deviation that a window was normalised by.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from .proposals import Judgement, Proposals


class State(Protocol):
    """The past of a batch: the context and the patches after it.

    unit [B, 1, 1, C]: normalisation stdev of the context, the unit of a `relative` law. The decoder writes the target's
    into the draft's state, and accesses nothing else inside a state.
    """

    unit: torch.Tensor

    def append(self, patches: torch.Tensor) -> None:
        """Adds known patches [B, k, P, C] after each row's own length."""

    def rollback(self, lengths: torch.Tensor | int) -> None:
        """Keeps the context and the first `lengths` patches: [B] of each row, not to be modified, or one number for
        all."""

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows [b] (indices), in this order."""

    def fan_out(self, samples: int) -> None:
        """Repeats every row `samples` times, with the copies of a row adjacent."""

    def predict(self, newest: int) -> Prediction:
        """Predicts the patch after each of the last `newest` positions of every row, oldest first, in one pass.

        There may be more new patches than that (they are encoded too), or fewer (predictions are then repeated).
        """


class Model(Protocol):
    """A model the decoder can drive. `Decodable` gives `extend` and `fan_out` to any class with a `start`."""

    patch_len: int

    @property
    def patches_ahead(self) -> int:
        """Number of patches that one prediction covers: 1, or J for a draft with longer heads.

        Serves to count passes in advance; the decoder uses what a prediction holds.
        """

    @property
    def heads_ahead(self) -> int:
        """Number of patches after the next one that the model's longer heads speak of: 0 for a model without.

        They are proposals that cost no draft; what the model itself forecasts does not depend on them.
        """

    def start(self, context: torch.Tensor, room: int) -> State:
        """A state that holds context [B, L, C] and has room for `room` patches; nothing is computed yet."""

    def extend(self, state: State, patches: torch.Tensor | None = None) -> Prediction:
        """Appends patches [B, k, P, C] and predicts after the state's last patch and after each of them: n = k + 1."""

    def fan_out(self, state: State, samples: int) -> None:
        """Repeats every row of the state `samples` times; shared work is done before, once for all copies."""


class Decodable:
    """Base class with the methods that are the same for every model whose states can `predict`."""

    heads_ahead: int = 0

    def extend(self, state: State, patches: torch.Tensor | None = None) -> Prediction:
        if patches is not None:
            state.append(patches)
        return state.predict(1 if patches is None else patches.shape[1] + 1)

    def fan_out(self, state: State, samples: int) -> None:
        state.fan_out(samples)


class Rule(Protocol):
    """Decides what is proposed, whether the target accepts it, and what enters the forecast. See `acceptance`.

    The P * C elements of a patch are judged together, each row of the batch separately. name: the name in tables;
    random: True if the rule needs `proposals.Noise`. eps is standard normal, uniform in [0, 1).
    """

    name: str
    random: bool

    def propose(self, prediction: Prediction, eps: torch.Tensor | None) -> Proposals:
        """Proposals from the draft's prediction; eps [b, k, P, C], None for a deterministic rule."""

    def judge(self, proposals: Proposals, prediction: Prediction, uniform: torch.Tensor | None) -> Judgement:
        """Judges k proposals by the target's k + 1 predictions; uniform [b, k]."""

    def accepted_patches(self, proposals: Proposals, prediction: Prediction) -> torch.Tensor:
        """The patches that accepted proposals add to the forecast [b, k, P, C]."""

    def own_patch(self, prediction: Prediction, eps: torch.Tensor | None, proposals: Proposals | None = None,
                  rejected: torch.Tensor | None = None) -> torch.Tensor:
        """The target's own patch [b, 1, P, C], which ends a round.

        It replaces proposals [b, 1] where `rejected` [b] is True. Elsewhere, and without proposals, it is the bonus: a
        patch as the target alone would emit it.
        """


@dataclass
class Prediction:
    """Predictions of consecutive patches in data units; the first is of the first patch the state lacks.

    mean [B, n, P, C]; logvar: the same shape, or None for a model without a variance head;
    scale [B, n, 1, C]: the normalisation stdev that each prediction was made with (ones without normalisation);
    unit [B, 1, 1, C]: the normalisation stdev of the context (of the target's, in its draft's predictions).
    n = k + 1 for k patches given; a draft that predicts J patches ahead gives n = J where no patches are given.
    ahead [B, n, J - 1, P, C], or None: what the model's longer heads say, from the same positions, of the J - 1 patches
    after the predicted ones; they know nothing of the predicted patch itself.
    """

    mean: torch.Tensor
    logvar: torch.Tensor | None
    scale: torch.Tensor
    unit: torch.Tensor
    ahead: torch.Tensor | None = None

    @classmethod
    def of_heads(cls, mean: torch.Tensor, logvar: torch.Tensor | None, stdev: torch.Tensor, unit: torch.Tensor,
                 heads_ahead: int = 0) -> Prediction:
        """From mean and logvar [B, n, J, P, C], stdev [B, n or 1, 1, C] at n positions, and the unit.

        With one position all J patches of it count; with several, the next patch of each. The last `heads_ahead` of the
        J are `ahead` instead, at every position.
        """
        ahead = None
        if heads_ahead:
            mean, ahead = mean[:, :, :-heads_ahead], mean[:, :, -heads_ahead:]
            logvar = None if logvar is None else logvar[:, :, :-heads_ahead]
        n, J = mean.shape[1:3]

        def pick(part: torch.Tensor) -> torch.Tensor:
            return part[:, 0] if n == 1 else part[:, :, 0]
        scale = stdev.expand(-1, J if n == 1 else n, -1, -1)
        return cls(pick(mean), None if logvar is None else pick(logvar), scale, unit, ahead)

    def shifted(self, by: torch.Tensor) -> Prediction:
        return replace(self, mean=self.mean + by)

    def at(self, rows: torch.Tensor, position: torch.Tensor | int) -> Prediction:
        """One prediction for each of some rows [r]: n = 1."""
        def pick(part: torch.Tensor) -> torch.Tensor:
            return part[rows, position][:, None]
        logvar, ahead = (None if part is None else pick(part) for part in (self.logvar, self.ahead))
        return Prediction(pick(self.mean), logvar, pick(self.scale), self.unit[rows], ahead)

    def first(self, count: int) -> Prediction:
        """The first `count` predictions, or all if there are fewer."""
        logvar, ahead = (None if part is None else part[:, :count] for part in (self.logvar, self.ahead))
        return Prediction(self.mean[:, :count], logvar, self.scale[:, :count], self.unit, ahead)

    def of_rows(self, rows: torch.Tensor) -> Prediction:
        """The predictions of these rows [r]."""
        logvar, ahead = (None if part is None else part[rows] for part in (self.logvar, self.ahead))
        return Prediction(self.mean[rows], logvar, self.scale[rows], self.unit[rows], ahead)

    def of_ahead(self) -> Prediction:
        """What the longer heads say at the only position (n = 1), as predictions of consecutive patches.

        Raises ValueError for a prediction without.
        """
        if self.ahead is None:
            raise ValueError("the target says nothing of later patches: give a draft, or a target with longer heads")
        mean = self.ahead[:, 0]
        return Prediction(mean, None, self.scale.expand(-1, mean.shape[1], -1, -1), self.unit)
