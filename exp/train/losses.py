"""Training objectives: callables (model, x, y) -> scalar loss. All quantities are in standardised units.

`model.training` decides between the objective (with noise) and its validation form (noise in expectation, so that
two validations of one model agree).
"""
from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from utils.interface import Prediction
from utils.proposals import Proposals
from utils.proposer import drafted
from utils.target_law import TargetLaw

LOGVAR_FLOOR = -5.0
MOST_ASKED = 128  # windows of a step whose answers are learned: the target reads along
HINGE = 100.0  # weight of what is further from the target than a tolerance
APART_FLOOR = 1e-4  # squares of a window's unit: contexts that differ by less than 1 % of it count as equal
HINGE_FLOOR = 1e-12  # the root of nothing has no gradient


class SupervisedLoss:
    """Mean squared error between every token's prediction and its next patch (OpenLTM's objective).

    last_token / valid_last: only the newest token counts in training / validation.
    covariate: only the last variable counts. skip: the first `skip` patches do not count.
    """

    def __init__(self, patch_len: int, covariate: bool = False, last_token: bool = False, valid_last: bool = False,
                 skip: int = 0):
        self.patch_len, self.covariate = patch_len, covariate
        self.last_token, self.valid_last, self.skip = last_token, valid_last, skip

    def select(self, series: torch.Tensor, training: bool) -> torch.Tensor:
        """The part of series [B, L, C] that enters the loss."""
        if self.last_token if training else self.valid_last:
            series = series[:, -self.patch_len:]
        else:
            series = series[:, self.skip * self.patch_len:]
        return series[..., -1:] if self.covariate else series

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        output = model(x)
        mean = output[0] if isinstance(output, tuple) else output
        return F.mse_loss(self.select(mean, model.training), self.select(y, model.training))


class SupervisedNLL(SupervisedLoss):
    """Gaussian NLL against the data, for a stochastic draft trained without a teacher."""

    def __init__(self, var_reg: float, **selection):
        super().__init__(**selection)
        self.var_reg = var_reg

    def __call__(self, model, x, y):
        mean, logvar = (self.select(part, model.training) for part in model(x))
        return gaussian_nll(mean, logvar, self.select(y, model.training), self.var_reg)


class DistillationLoss:
    """The draft learns the teacher's output distribution instead of the data (the guide, "Distillation").

    y = teacher(x) + noise; Gaussian NLL of a stochastic draft, MSE of a deterministic one.
    noise: a standard deviation in standardised units, or the law of the teacher, drawn anew for every token's patch.
    teacher_dropout > 0 runs the teacher with that dropout rate.
    """

    def __init__(self, teacher: nn.Module, var_reg: float, noise: float | TargetLaw, teacher_dropout: float,
                 selection: SupervisedLoss):
        self.teacher: Any = frozen(teacher)
        self.var_reg, self.law = var_reg, as_law(noise)
        self.teacher_dropout, self.selection = teacher_dropout, selection

    @torch.no_grad()
    def _teach(self, x: torch.Tensor, training: bool):
        """Labels [B, L, C], and the variance of the noise that they do not include."""
        with dropout_rate(self.teacher, self.teacher_dropout if training else 0.0):
            mean = self.teacher.to_patches(self.teacher(x))
        unit = self.teacher.stats_of(self.teacher.to_patches(x)).stdev  # each token's own: its past is a context
        return (part.flatten(1, 2) for part in with_noise(mean, self.law, unit, training))

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        training = model.training
        taught, variance = (self.selection.select(part, training) for part in self._teach(x, training))
        output = model(x)
        if not isinstance(output, tuple):
            return F.mse_loss(self.selection.select(output, training), taught)
        mean, logvar = (self.selection.select(part, training) for part in output)
        return gaussian_nll(mean, logvar, taught, self.var_reg, variance)


class RolloutLoss:
    """On-policy distillation: the draft learns the target's own forecast at the positions where it will propose.

    y [B, 1 or 2, rollout * P, C]: y[:, 0] is the continuation of x that the draft sees, y[:, 1] the target's mean at
    each of its steps; one copy where they coincide (`exp.train.target_forecasts`). At the end of the context and after
    each patch of y the draft predicts the next ones (as many as its heads cover); Gaussian NLL, or MSE without a
    variance.
    A draft with window normalisation sees one such position per window, drawn at random; a causal one sees all of them.
    noise: as in `DistillationLoss`; added to the labels, not to the inputs.
    along: weight of a second loss, that of `DistillationLoss` within the real window; y then begins with the target's
    means there, one context more of steps.
    answer: weight of a third loss, on how the draft's answer changes with what it is asked, see `_answer`.
    hinge: a tolerance, in units of each window; with `answer`, gaps count for what they exceed it by, see `_beyond`.
    """

    def __init__(self, teacher: nn.Module, var_reg: float, noise: float | TargetLaw, rollout: int,
                 covariate: bool = False, along: float = 0.0, answer: float = 0.0, hinge: float = 0.0):
        self.teacher: Any = frozen(teacher)
        self.var_reg, self.law, self.along, self.answer = var_reg, as_law(noise), along, answer
        self.rollout, self.covariate, self.hinge = rollout, covariate, hinge

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        plain: Any = getattr(model, "module", model)  # without the wrapper of distributed training
        loss = self._after(model, plain, x, y[:, :, y.shape[2] - self.rollout * self.teacher.patch_len:])
        if not self.along:
            return loss
        return loss + self.along * self._within(model, plain, x, y[:, -1, :x.shape[1]])

    def _within(self, model: nn.Module, plain: Any, x: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        """The loss at every patch of the real window; means [B, L, C]: what the target predicts there."""
        patches = self.teacher.to_patches(x)
        output = self._predictions(model, patches, plain.config.draft_patches, patches.shape[1])
        taught, variance = with_noise(self.teacher.to_patches(means), self.law, self.teacher.stats_of(patches).stdev,
                                      model.training)
        first = [part[:, :, :1] for part in output]  # heads for later patches have nothing to learn here
        everywhere = torch.ones(first[0].shape[:3], dtype=torch.bool, device=x.device)
        return self._loss(first, taught[:, :, None], variance[:, :, None], everywhere)

    def _after(self, model: nn.Module, plain: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The losses along the target's own forecast."""
        training, B = model.training, len(x)
        seen, means = (self.teacher.to_patches(part) for part in y.expand(-1, 2, -1, -1).unbind(dim=1))
        context = self.teacher.to_patches(x)
        ahead = plain.config.draft_patches
        taught = with_noise(means, self.law, self.teacher.unit_of(context), training)
        taught, variance = (following(part, ahead) for part in taught)  # [B, rollout, J, P, C]
        step = torch.arange(self.rollout, device=x.device)
        known = (step[:, None] + torch.arange(ahead, device=x.device) < self.rollout).expand(taught.shape[:3])
        patches = torch.cat([context, seen], dim=1)
        asked = 0 if not self.answer else min(B, MOST_ASKED) if training else B  # windows of which answers are learned
        if asked:  # both in one pass: along the forecast, then along the proposals
            proposals, answers = self._proposals(plain, x[:asked])
            patches = torch.cat([patches, torch.cat([context[:asked], proposals], dim=1)])
        place: Any = slice(None)
        if plain.config.causal:
            output = self._predictions(model, patches[:, :-1], ahead, self.rollout)
        else:
            newest = torch.randint(self.rollout, (B,), device=x.device) if training \
                else torch.arange(B, device=x.device) % self.rollout
            place = torch.arange(B, device=x.device)[:, None], newest[:, None]
            rows = torch.arange(len(patches), device=x.device)
            windows = patches.unfold(1, context.shape[1], 1)[rows, torch.cat([newest, newest[:asked]])].movedim(-1, 1)
            output = self._predictions(model, windows, ahead, 1)
            taught, variance, known = taught[place], variance[place], known[place]
        loss = self._loss([part[:B] for part in output], taught, variance, known)
        if not asked:
            return loss
        unit = self.teacher.unit_of(context)
        if self.hinge:
            loss = loss + HINGE * self._beyond((output[0][:B, :, 0] - means[place]) / unit)
        if not plain.config.causal:
            place = tuple(part[:asked] for part in place)
        unit = unit[:asked]
        changed = output[0][B:, :, 0] - output[0][:asked, :, 0]
        corrected = (changed - (answers - means[:asked])[place]) / unit
        apart = ((proposals - seen[:asked]) / unit).square().mean(dim=(2, 3))
        loss = loss + self.answer * self._answer(corrected, apart, place)
        return loss + HINGE * self._beyond(corrected) if self.hinge else loss

    @torch.no_grad()
    def _proposals(self, plain: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The draft's own proposals after x, one patch a pass, and the target's means along them: [B, R, P, C]."""
        def propose(prediction: Prediction, made: int) -> Proposals:
            return Proposals.of_mean(prediction.mean)
        proposals = drafted(plain, plain.start(x, self.rollout), self.rollout, propose, one_by_one=True)[0].patches
        answers = self.teacher.extend(self.teacher.start(x, self.rollout), proposals[:, :-1])
        return proposals, answers.first(self.rollout).mean

    def _answer(self, gap: torch.Tensor, apart: torch.Tensor, place: Any) -> torch.Tensor:
        """How much less or more the draft's answer changes than the target's, relative to what has changed before it.

        gap [B, T, P, C]: what the draft says after its own proposals, less what it says after the target's forecast,
        less the same of the target; apart [B, rollout]: the mean squared distance of these two contexts at each patch.
        Both in units of the window.
        |(G(q) - G(p)) - (F(q) - F(p))|^2 / |q - p|^2: parareal contracts its errors at the root of this.
        """
        patches = torch.arange(self.rollout, device=apart.device).clamp(min=1)
        before = (F.pad(apart, (1, 0))[:, :-1].cumsum(dim=1) / patches)[place]
        relative = self._squared(gap) / (before + APART_FLOOR)
        return relative[before > 0].sum() / (before > 0).sum().clamp(min=1)

    def _beyond(self, gap: torch.Tensor) -> torch.Tensor:
        """How far gaps [B, T, P, C] between draft and target, in units of the window, are above the tolerance: the rule
        of that name rejects a patch for what is counted here, and for nothing else."""
        return F.relu((self._squared(gap) + HINGE_FLOOR).sqrt() - self.hinge).mean()

    def _squared(self, gap: torch.Tensor) -> torch.Tensor:
        """The mean square of every patch [B, T]."""
        return (gap[..., -1:] if self.covariate else gap).square().mean(dim=(2, 3))

    def _predictions(self, model, patches, ahead: int, newest: int):
        """The model's mean (and logvar), each [B, newest, J, P, C], at the last `newest` positions."""
        output = model(patches.flatten(1, 2), newest)
        parts = list(output) if isinstance(output, tuple) else [output]
        return parts if ahead > 1 else [part.unflatten(1, (newest, 1, patches.shape[2])) for part in parts]

    def _loss(self, output, taught, variance, known) -> torch.Tensor:
        values = [part[known][..., -1:] if self.covariate else part[known] for part in (*output, taught, variance)]
        if len(output) == 1:
            return F.mse_loss(values[0], values[1])
        mean, logvar, learned, spread = values
        return gaussian_nll(mean, logvar, learned, self.var_reg, spread)


def frozen(teacher: Any) -> Any:
    """A teacher that learns nothing; one of which only the decoder's interface is known sees to that itself."""
    return teacher.eval().requires_grad_(False) if isinstance(teacher, nn.Module) else teacher


def as_law(noise: float | TargetLaw) -> TargetLaw | None:
    """A standard deviation in standardised units as a law; None if there is no noise."""
    if isinstance(noise, TargetLaw):
        return noise
    return TargetLaw.fixed(noise) if noise > 0 else None


def with_noise(mean: torch.Tensor, law: TargetLaw | None, unit: torch.Tensor, training: bool):
    """(a draw from the law around mean [B, T, P, C], zeros) in training; else (the mean, the law's variance)."""
    nothing = mean.new_zeros(1).expand_as(mean)
    if law is None:
        return mean, nothing
    if training:
        return mean + law.spread(torch.randn_like(mean), unit), nothing
    return mean, law.variance(unit, mean.shape[2]).expand_as(mean)


def following(patches: torch.Tensor, count: int) -> torch.Tensor:
    """[B, T, P, C] -> [B, T, count, P, C]: each patch and those after it, zeros past the end."""
    return F.pad(patches, (0, 0, 0, 0, 0, count - 1)).unfold(1, count, 1).movedim(-1, 2)


def gaussian_nll(mean, logvar, y, var_reg: float = 0.0, expected_variance: torch.Tensor | float = 0.0) -> torch.Tensor:
    """mean(0.5 * (logvar + (mean - y)^2 / exp(logvar))) + var_reg * mean(relu(-logvar - 5)).

    expected_variance: variance of the noise that y would have in training.
    """
    squared = (mean - y).square() + expected_variance
    nll = 0.5 * (logvar + squared * torch.exp(-logvar))
    return nll.mean() + var_reg * F.relu(LOGVAR_FLOOR - logvar).mean()


@contextmanager
def dropout_rate(model: nn.Module, rate: float):
    """Runs `model` in training mode with every dropout set to `rate`; restores all on leaving."""
    if rate == 0.0 and not getattr(model, "training", False):
        yield
        return
    touched = [m for m in model.modules()
               if isinstance(m, nn.Dropout) or isinstance(getattr(m, "dropout", None), float)]
    before = [m.p if isinstance(m, nn.Dropout) else m.dropout for m in touched]
    was_training = model.training
    _set_rates(touched, [rate] * len(touched))
    model.train()
    try:
        yield
    finally:
        _set_rates(touched, before)
        model.train(was_training)


def _set_rates(modules, rates) -> None:
    for module, rate in zip(modules, rates):
        setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", rate)
