"""The training objective of longer heads on a frozen target."""
from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from exp.train.losses import RolloutLoss, following


class HeadLoss(RolloutLoss):
    """Longer heads learn the target's own forecasts, at the positions where they will propose.

    The model that is trained, `LongerHeads`, is given what the target has encoded. At the end of the context and after
    each patch of y it says what the target will say of the patches after the next one; mean squared error. As in
    `RolloutLoss`, a target with window normalisation offers one such position per window, drawn at random in training.
    """

    def __init__(self, teacher: nn.Module, rollout: int, covariate: bool = False):
        super().__init__(teacher, 0.0, 0.0, rollout, covariate)

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        count: int = getattr(model, "module", model).count  # type: ignore[assignment]  # without a DDP wrapper
        seen, means = (self.teacher.to_patches(part) for part in y.expand(-1, 2, -1, -1).unbind(dim=1))
        context, step = self.teacher.to_patches(x), torch.arange(self.rollout, device=x.device)
        patches = torch.cat([context, seen[:, :-1]], dim=1)
        later = following(means, 1 + count)[:, :, 1:]  # [B, rollout, count, P, C]
        known = (step[:, None] + torch.arange(1, 1 + count, device=x.device) < self.rollout).expand(later.shape[:3])
        newest = self.rollout
        if not self.teacher.config.causal:
            rows = torch.arange(len(x), device=x.device)
            at = torch.randint(self.rollout, (len(x),), device=x.device) if model.training else rows % self.rollout
            place: Any = rows[:, None], at[:, None]
            patches, newest = patches.unfold(1, context.shape[1], 1)[rows, at].movedim(-1, 1), 1
            later, known = later[place], known[place]
        with torch.no_grad():
            hidden, stats, _ = self.teacher.encode(patches, newest)
        said = stats.denormalise(self.teacher.head_patches(model(hidden)))
        if self.covariate:
            said, later = said[..., -1:], later[..., -1:]
        return F.mse_loss(said[known], later[known])
