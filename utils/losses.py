"""Training objectives: callables (model, x, y) -> scalar loss. All quantities are in standardised units.

`model.training` decides between the objective (with noise) and its validation form (noise in expectation, so that
two validations of one model agree).
"""
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

LOGVAR_FLOOR = -5.0


class SupervisedLoss:
    """Mean squared error between every token's prediction and its next patch (OpenLTM's objective).

    last_token / valid_last: only the newest token counts in training / validation.
    covariate: only the last variable counts.
    """

    def __init__(self, patch_len: int, covariate: bool = False, last_token: bool = False, valid_last: bool = False):
        self.patch_len, self.covariate = patch_len, covariate
        self.last_token, self.valid_last = last_token, valid_last

    def select(self, series: torch.Tensor, training: bool) -> torch.Tensor:
        """The part of series [B, L, C] that counts."""
        if self.last_token if training else self.valid_last:
            series = series[:, -self.patch_len:]
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
    """The draft learns the teacher's output distribution instead of the data (design section 8).

    y = teacher(x) + noise * eps; Gaussian NLL of a stochastic draft, MSE of a deterministic one.
    teacher_dropout > 0 runs the teacher with that dropout rate.
    """

    def __init__(self, teacher: nn.Module, var_reg: float, noise: float, teacher_dropout: float,
                 selection: SupervisedLoss):
        self.teacher, self.var_reg, self.noise = teacher.eval().requires_grad_(False), var_reg, noise
        self.teacher_dropout, self.selection = teacher_dropout, selection

    @torch.no_grad()
    def _teach(self, x: torch.Tensor, training: bool) -> torch.Tensor:
        if not training:
            return self.teacher(x)
        if self.teacher_dropout > 0:
            with dropout_rate(self.teacher, self.teacher_dropout):
                y = self.teacher(x)
        else:
            y = self.teacher(x)
        return y + self.noise * torch.randn_like(y) if self.noise > 0 else y

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        training = model.training
        taught = self.selection.select(self._teach(x, training), training)
        output = model(x)
        if not isinstance(output, tuple):
            return F.mse_loss(self.selection.select(output, training), taught)
        mean, logvar = (self.selection.select(part, training) for part in output)
        return gaussian_nll(mean, logvar, taught, self.var_reg, 0.0 if training else self.noise)


def gaussian_nll(mean, logvar, y, var_reg: float = 0.0, expected_noise: float = 0.0) -> torch.Tensor:
    """mean(0.5 * (logvar + (mean - y)^2 / exp(logvar))) + var_reg * mean(relu(-logvar - 5)).

    `expected_noise` adds the variance of noise that y would have in training.
    """
    squared = (mean - y).square() + expected_noise**2
    nll = 0.5 * (logvar + squared * torch.exp(-logvar))
    return nll.mean() + var_reg * F.relu(LOGVAR_FLOOR - logvar).mean()


@contextmanager
def dropout_rate(model: nn.Module, rate: float):
    """Runs `model` in training mode with every dropout set to `rate`; restores all on leaving."""
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
