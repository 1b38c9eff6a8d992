"""Whether what models said is finite: told on the device, and asked for once, at the end of a decode."""
from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch

from .errors import NotFinite
from .interface import Model

NO_NUMBER = "its output is not finite"
NOT_JUDGED = "its output is not finite, or too large to be judged"


def is_finite(patches: torch.Tensor) -> torch.Tensor:
    """[B, n, P, C] -> [B, n], True where all of a patch is finite."""
    return (patches * 0).sum(dim=(2, 3)) == 0  # a tenth of the time of isfinite, which is felt by small models


def has_sigma(sigma: torch.Tensor, sampled: bool, first: int) -> torch.Tensor:
    """[B, n, P, C] -> [B, n], True where the standard deviations are usable, and after the `first` patches.

    sampled: proposals are drawn with them, so that 0, which has no density, is of no use either.
    """
    usable = is_finite(sigma)
    if sampled:
        usable &= sigma.amin(dim=(2, 3)) > 0
    usable[:, first:] = True
    return usable


def refuse_not_finite(model: Model, role: str, context: torch.Tensor, patches: torch.Tensor,
                      logvars: list[torch.Tensor]) -> None:
    """Raises NotFinite, for the first window and its first patch, if what a model said is not finite.

    context [B, L, C]; patches [b, n, P, C], with the rows of a window adjacent; logvars: their log-variances in
    consecutive parts, none for a model without. One host synchronisation.
    """
    finite = is_finite(patches)
    if logvars:
        finite &= is_finite(torch.cat(logvars, dim=1))
    if not finite.all():
        row, patch = (~finite).nonzero()[0].tolist()
        window = row // (len(finite) // len(context))
        refuse(model, role, context[window], window, patch, patches.shape[2])


def refuse(model: Model, role: str, context: torch.Tensor, window: int, patch: int, patch_len: int,
           what: str = NO_NUMBER) -> NoReturn:
    """Raises NotFinite, which names the model by its `label`, else its class; ValueError if the context is to blame.

    context [L, C]: of the window.
    """
    if not torch.isfinite(context).all():
        raise ValueError(f"the context of window {window} holds NaN or infinity: correct it")
    raise NotFinite(f"the {role} ({getattr(model, 'label', None) or type(model).__name__})", what, window, patch,
                    patch_len)


def refuse_pair(finite: torch.Tensor, target: Model, draft: Model | None, context: torch.Tensor, samples: int,
                alone: Callable[[Model, torch.Tensor, int], tuple[torch.Tensor, object]]) -> None:
    """Raises NotFinite, which names the model to blame, unless all of `finite` [2, B, n] is True.

    finite: the forecast's patches, and the squares of the draft's predictions of them, or where it is None of those of
    the target's longer heads. context [B, L, C], with the
    `samples` rows of a window adjacent; alone: (model, context, n) -> its n patches [B, n, P, C] without a draft, and
    more. One host synchronisation.
    """
    if finite.all():
        return
    row = int((~finite).any(dim=2).any(dim=0).nonzero()[0])
    # the number of finite patches before the first other one
    forecast, proposals = finite[:, row].long().cumprod(dim=1).sum(dim=1).tolist()
    own, window = context[row], row // samples
    patches, _ = alone(target, own[None], finite.shape[2])
    patch_len = patches.shape[2]
    source, role = (target, "target's longer heads") if draft is None else (draft, "draft")
    if proposals <= forecast:
        refuse(source, role, own, window, proposals, patch_len, NOT_JUDGED)
    if not torch.isfinite(patches).all():
        refuse(target, "target", own, window, forecast, patch_len)
    # a pass reads all proposals at once: behind a mask, one that overflows in it can still spoil the patch before
    refuse(source, role, own, window, forecast, patch_len,
           "its proposals overflow in the target, whose output is then not finite")
