"""The law of the target under a sampling rule: a Gaussian around the mean that the target predicts.

A draft's proposals have a law of the same kind, around the draft's mean.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import torch

LEAST_SIGMA = 1e-4  # a law with zero variance has no density


@dataclass(frozen=True)
class TargetLaw:
    """A patch [P, C] of the target is mu_p + unit * (L z), z standard normal.

    factor: L, either one standard deviation per element ([P, C], or anything that broadcasts to [..., P, C]), or lower
    triangular over all elements of a patch, [P * C, P * C] in the order p * C + c (`full`).
    relative: L is in window-normalised units, and unit [..., 1, C] is the normalisation stdev of the context, fixed
    along the path: recomputing it per window would feed sampled noise back into the scale. Otherwise L is in data
    units and unit is not used.
    widths [M, C], for a relative law: a scale mixture. Each path draws one row w of it before anything else, all with
    the same probability, and its unit is unit * w from then on: so every patch is Gaussian given w, and a rule that
    preserves a Gaussian preserves the mixture.
    """

    factor: torch.Tensor
    full: bool = False
    relative: bool = False
    widths: torch.Tensor | None = None

    @classmethod
    def fixed(cls, sigma: float) -> TargetLaw:
        """White noise of one standard deviation, in data units. Raises ValueError unless it is above 0."""
        if not sigma > 0:
            raise ValueError(f"sigma is {sigma}: a law needs a standard deviation above 0")
        return cls(torch.full((1, 1), float(sigma)))

    def scaled(self, by: float) -> TargetLaw:
        """The same law with its standard deviations multiplied."""
        return replace(self, factor=self.factor * by)

    def plain(self) -> TargetLaw:
        """The Gaussian without `widths`, all of whose paths are equally wide."""
        return replace(self, widths=None)

    def widths_of(self, u: torch.Tensor) -> torch.Tensor | None:
        """Uniform numbers u [...] in [0, 1), one for each path -> its width [..., C]; None for a law without widths."""
        if self.widths is None:
            return None
        row = (u * len(self.widths)).long().clamp(max=len(self.widths) - 1)
        return self.widths.to(u.device)[row]

    def own_unit(self, unit: torch.Tensor, width: torch.Tensor | None) -> torch.Tensor:
        """unit [R, 1, 1, C] of the contexts of R paths -> that of their own laws, which their width [R, C] is part of.

        Raises ValueError where one of law and width is a mixture's and the other is not.
        """
        if (self.widths is None) != (width is None):
            raise ValueError("a law with `widths` needs the width that each path has drawn (`widths_of`), and no other "
                             "law has one")
        return unit if width is None else unit * width[:, None, None].to(unit)

    def on(self, values: torch.Tensor) -> TargetLaw:
        """The same law with its factor where `values` are, in their precision."""
        return replace(self, factor=self._on(values))

    def spread(self, z: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """Standard normal z [..., P, C] -> deviation from the mean, data units."""
        drawn = (z.flatten(-2) @ self._on(z).T).view_as(z) if self.full else z * self._on(z)
        return drawn * unit if self.relative else drawn

    def whiten(self, gap: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """The inverse of `spread`: a gap [..., P, C] in data units -> standard normal z."""
        gap = gap / unit if self.relative else gap
        if not self.full:
            return gap / self._on(gap)
        flat = gap.flatten(-2).flatten(0, -2)
        return torch.linalg.solve_triangular(self._on(gap), flat.T, upper=False).T.reshape(gap.shape)

    def divergence(self, gap: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """Kullback-Leibler divergence, in nats, of two such laws whose means lie `gap` apart: [..., P, C] -> [...]."""
        return 0.5 * self.whiten(gap.double(), unit.double()).square().sum(dim=(-2, -1))

    def log_volume(self, unit: torch.Tensor, patch_len: int) -> torch.Tensor:
        """log |det| of `spread`, over all elements of a patch: unit [..., 1, C] -> [...]."""
        factor = self.factor.to(unit)
        if self.full:
            own = factor.diagonal().log().sum()
        else:  # a draft's factor differs between proposals
            each = torch.broadcast_shapes(factor.shape, (patch_len, unit.shape[-1]))
            own = factor.log().expand(each).sum(dim=(-2, -1))
        units = patch_len * unit.log().sum(dim=(-2, -1))
        return own + units if self.relative else own + torch.zeros_like(units)

    def variance(self, unit: torch.Tensor, patch_len: int) -> torch.Tensor:
        """Variance of each element that `spread` draws: unit [..., 1, C] -> [..., P, C], data units squared."""
        variables, factor = unit.shape[-1], self.factor.to(unit)
        own = factor.square().sum(dim=1).unflatten(0, (patch_len, variables)) if self.full \
            else factor.square().expand(patch_len, variables)
        return own * unit.square() if self.relative else own.expand(*unit.shape[:-2], -1, -1)

    def _on(self, values: torch.Tensor) -> torch.Tensor:
        return self.factor.to(values)
