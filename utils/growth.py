"""Growth with the lead: a factor on the spread of finished paths, patch by patch, from windows whose future is known.

Noise fitted to the next patch need not add up to the errors of later ones, above all where they are slow: white noise
averages out within a patch before the model sees a level. The factors change finished paths, not the law that they are
drawn from, so no way to sample them, speculative or plain, is concerned.
"""
from __future__ import annotations

import torch

from .scores import BANDS, quantile

STEP, STEPS = 0.05, 80  # of the factors tried: from 1 to 5


def widened(paths: torch.Tensor, growth: torch.Tensor, patch_len: int) -> torch.Tensor:
    """paths [B, S, H, C], spread about their mean by growth [n], a factor for every patch; factor 1 changes no bit."""
    factor = growth.to(paths).repeat_interleave(patch_len)[:paths.shape[2], None]
    mean = paths.double().mean(dim=1, keepdim=True).to(paths.dtype)
    return torch.where(factor == 1, paths, mean + factor * (paths - mean))


def fit_growth(paths: torch.Tensor, truth: torch.Tensor, patch_len: int) -> torch.Tensor:
    """The factor of every patch, at least 1, that brings the bands of paths [B, S, H, C] closest to their shares.

    It has the least sum of squared deviations of their coverage of truth [B, H, C]; one for all variables, since the
    errors of few windows tell no more. Returns growth [n]. Raises ValueError without a window.
    """
    if not len(truth):
        raise ValueError("there is no window to fit the growth to")
    tried = 1 + STEP * torch.arange(STEPS + 1, device=paths.device)
    wanted, factors = torch.tensor(sorted(BANDS), device=paths.device) / 100, []
    mean = paths.double().mean(dim=1).to(paths.dtype)
    for p, y, m in zip(*(part.split(patch_len, dim=dim) for part, dim in ((paths, 2), (truth, 1), (mean, 1)))):
        ordered = p.sort(dim=1).values
        held = torch.stack([_held(ordered, y, m, band, tried) for band in sorted(BANDS)])
        factors.append(tried[(held - wanted[:, None]).square().sum(dim=0).argmin()])
    return torch.stack(factors).cpu()


def _held(ordered: torch.Tensor, truth: torch.Tensor, mean: torch.Tensor, band: int,
          factors: torch.Tensor) -> torch.Tensor:
    """Share of the truths [B, P, C] within the band of ascending paths [B, S, P, C], spread by each of the factors."""
    low, high = (quantile(ordered, 0.5 + sign * band / 200) - mean for sign in (-1, 1))
    away = truth - mean
    return torch.stack([((factor * low <= away) & (away <= factor * high)).double().mean() for factor in factors])
