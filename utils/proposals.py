"""Data exchanged between the speculative loop and the acceptance rules: noise, proposals, judgements."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from .interface import Prediction
from .target_law import TargetLaw


@dataclass
class Noise:
    """All randomness of a batch of forecasts, fixed before decoding: it belongs to a position, not to a round.

    So a row's forecast depends neither on the other rows nor on the size of the batch. A position that is proposed
    again after an earlier rejection reuses its noise. Its law is still correct: every decision up to then used the
    noise of EARLIER positions only. The old proposal at this position was drawn but not judged; it enters neither the
    target's prediction for the rejected position nor, with repropose 'corrected', the correction at this position,
    which is a gap found after earlier patches. It may enter the correction of later positions: for them it is past.
    `target` is used at most once per position, where the target's own patch ends a round; a rule that needs more draws
    there seeds them with it (`utils.counter_random`).
    proposal, target [B, n, P, C] standard normal; uniform [B, n] in [0, 1); width [B, C], of a law with `widths`: what
    each row has drawn of them.
    """

    proposal: torch.Tensor
    target: torch.Tensor
    uniform: torch.Tensor
    width: torch.Tensor | None = None

    @classmethod
    def draw(cls, context: torch.Tensor, patches: int, patch_len: int,
             generator: torch.Generator | None = None, law: TargetLaw | None = None) -> Noise:
        """For context [B, L, C], B rows of `patches` patches; generator: on the CPU, None: torch's global one.

        law: that of the rule, of whose `widths` each row draws one.

        Row after row: the numbers of a row are adjacent in the generator's stream, so n rows drawn at once have the
        noise of n rows drawn one by one. `torch.randn` lacks this property, so pairs of uniform numbers are turned into
        pairs of normal ones by the transformation of Box and Muller (1958).
        """
        rows, C = context.shape[0], context.shape[2]
        sizes = cls._sizes(C, patches, patch_len, law)
        numbers = torch.rand(rows, sum(sizes), generator=generator)
        place, uniform, first, second = (part.contiguous() for part in numbers.split(sizes, dim=1))
        radius, angle = (-2 * torch.log1p(-first)).sqrt(), 2 * torch.pi * second

        def normal(side: torch.Tensor) -> torch.Tensor:
            values = (radius * side).view(rows, patches, patch_len, C)
            return values.to(context.device, non_blocking=True)
        width = law.widths_of(place[:, 0].to(context.device)) if law is not None and sizes[0] else None
        return cls(normal(angle.cos()), normal(angle.sin()), uniform.to(context.device, non_blocking=True), width)

    @classmethod
    def skip(cls, rows: int, variables: int, patches: int, patch_len: int, generator: torch.Generator | None = None,
             law: TargetLaw | None = None) -> None:
        """Leaves the generator as `draw` would for so many rows, which another process forecasts."""
        torch.rand(rows, sum(cls._sizes(variables, patches, patch_len, law)), generator=generator)

    @staticmethod
    def _sizes(variables: int, patches: int, patch_len: int, law: TargetLaw | None) -> list[int]:
        """How many numbers of a row make up its width, its uniform numbers, and either half of its normal ones."""
        elements = patches * patch_len * variables
        return [int(law is not None and law.widths is not None), patches, elements, elements]

    def at(self, rows: torch.Tensor, first: torch.Tensor, length: int) -> Noise:
        """The noise of positions first .. first + length - 1 of some rows; positions past the end repeat the last."""
        last = self.uniform.shape[1] - 1
        position = (first[:, None] + torch.arange(length, device=first.device)).clamp(max=last)
        rows = rows[:, None]
        return Noise(self.proposal[rows, position], self.target[rows, position], self.uniform[rows, position])


@dataclass
class Proposals:
    """k proposals of b rows, each field [b, k, P, C].

    patches: enter the context (and the forecast); judged: the values that the rule judges; mean, logvar (or None): the
    draft's prediction.
    """

    patches: torch.Tensor
    judged: torch.Tensor
    mean: torch.Tensor
    logvar: torch.Tensor | None

    @classmethod
    def join(cls, parts: list[Proposals]) -> Proposals:
        def cat(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values, dim=1)
        return cls(*(cat(field.name) for field in fields(cls)))

    @classmethod
    def of_mean(cls, mean: torch.Tensor) -> Proposals:
        """Proposals [b, k, P, C] without a law."""
        return cls(mean, mean, mean, None)

    @classmethod
    def plain(cls, prediction: Prediction) -> Proposals:
        """The draft's means, for rules that draw nothing."""
        return cls(prediction.mean, prediction.mean, prediction.mean, prediction.logvar)

    def at(self, rows: torch.Tensor, position: torch.Tensor | int) -> Proposals:
        """One proposal for each of some rows [r]."""
        def pick(part: torch.Tensor) -> torch.Tensor:
            return part[rows, position][:, None]
        return Proposals(pick(self.patches), pick(self.judged), pick(self.mean),
                         None if self.logvar is None else pick(self.logvar))

    def where(self, rows: torch.Tensor, other: Proposals) -> Proposals:
        """These proposals where `rows` [b] is True, elsewhere `other`, which have no law."""
        rows = rows[:, None, None, None]
        mean = torch.where(rows, self.mean, other.mean)
        unknown = torch.full_like(mean, float("nan"))
        return Proposals(mean, mean, mean, None if self.logvar is None else torch.where(rows, self.logvar, unknown))


@dataclass
class Judgement:
    """accepted [b, k] bool; score [b, k]: the rule's own measure, which it compares with its threshold.

    most [b, k]: the acceptance probability of an optimal law-preserving rule for these means and this patch alone, if
    the rule knows it (draft and target share a covariance), else None.
    """

    accepted: torch.Tensor
    score: torch.Tensor
    most: torch.Tensor | None = None
