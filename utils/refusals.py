"""What the decoder refuses: models, rules and values that it cannot decode with."""
from __future__ import annotations

import torch

from .interface import Model, Rule
from .target_law import TargetLaw


def refuse_misfits(target: Model, draft: Model | None, context: torch.Tensor, n: int, passes: int | None, tol: float,
                   law: TargetLaw | None, z: torch.Tensor | None, width: torch.Tensor | None, audit: int) -> None:
    """Raises ValueError for settings of `decode_parareal` that do not fit; `_refuse_pair` for the models."""
    if draft is None:
        raise ValueError("parareal asks its draft again what it says after corrected patches, which a target's own "
                         "heads say in a pass of the target only: give a draft, or use decode_speculative")
    _refuse_pair(target, draft)
    if (passes is not None and (not isinstance(passes, int) or passes < 1)) or not tol >= 0:
        raise ValueError(f"passes is {passes} and tol {tol}, but must be a whole number from 1 on, and at least 0")
    if (law is None) != (z is None):
        raise ValueError("paths need both a law and its noise z, means neither of them")
    if width is not None and law is None:
        raise ValueError("a width is that of a path, and goes with a law and its noise z")
    if z is not None:
        B, _, C = context.shape
        wanted = (B, max(1, z.shape[1]), max(n, z.shape[2]), target.patch_len, C) if z.dim() == 5 else None
        if z.shape != wanted:
            raise ValueError(f"z has the shape {tuple(z.shape)}, where {B} windows, the number of paths, {n} patches "
                             f"or more, {target.patch_len} steps and {C} variables are needed")
    paths = 0 if z is None else z.shape[1]
    if not 0 <= audit <= paths or (audit and tol > 0):
        raise ValueError(f"audit is {audit} and tol {tol}, but 0 to all {paths} paths of a window can be audited, and "
                         "only with tol 0: by a tolerance a path ends by its own noise")


def refuse_misuse(target: Model, draft: Model | None, rule: Rule, max_proposals: int | None, samples: int) -> None:
    """Raises TypeError for what is no model or no rule, with the way to make one, and ValueError for bad values."""
    _refuse_pair(target, target if draft is None else draft)
    if draft is None and not getattr(target, "heads_ahead", 0):
        raise ValueError("the target has no longer heads that could propose: give a draft, or a target with heads")
    if isinstance(rule, type) or not hasattr(rule, "judge"):
        raise TypeError(f"{rule!r} is not a rule: give an instance, such as Tolerance(0.15)")
    if samples < 1 or (max_proposals is not None and max_proposals < 0):
        raise ValueError(f"samples is {samples} and max_proposals {max_proposals}, but must be at least 1 and 0")


def _refuse_pair(target: Model, draft: Model) -> None:
    """Raises TypeError for what is not a model, ValueError for different patches."""
    for model in (target, draft):
        if not hasattr(model, "patch_len"):
            raise TypeError(f"{type(model).__name__} is not a model: wrap a function by FromForward(function, "
                            "patch_len), a model with a cache by FromCache")
    if draft.patch_len != target.patch_len:
        raise ValueError(f"the draft's patch has {draft.patch_len} steps, the target's {target.patch_len}: they must "
                         "be equal")
