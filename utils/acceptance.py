"""Acceptance rules: what is proposed, whether the target accepts it, and what is emitted.

mu_p, sigma_p: target; mu_q, sigma_q: draft; x: proposal; everything in data units. The P * C elements of a patch are
judged together, each row of the batch separately. The protocol is `interface.Rule`; `lossless` has the law-preserving
rules. A new rule is a class and an entry in RULES; the parameter names of its constructor tell the program which
settings apply to it.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from .interface import Prediction, Rule
from .lossless import Coupling, Exact, needed, refuse_emission
from .proposals import Judgement, Proposals
from .target_law import TargetLaw


def unit_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over the elements judged together: [..., P, C] -> [...]."""
    return values.mean(dim=(-2, -1))


class MeanRule:
    """Deterministic: the draft's means are proposed, and every verified patch enters the forecast as the TARGET's mean.

    An accepted proposal stays in the context that later patches were verified against. A subclass defines `name` and
    `judge`.
    """

    random = False

    def propose(self, prediction: Prediction, eps: torch.Tensor | None = None) -> Proposals:
        return Proposals.plain(prediction)

    def accepted_patches(self, proposals: Proposals, prediction: Prediction) -> torch.Tensor:
        return prediction.mean[:, :proposals.mean.shape[1]]

    def own_patch(self, prediction: Prediction, eps: torch.Tensor | None = None, proposals: Proposals | None = None,
                  rejected: torch.Tensor | None = None) -> torch.Tensor:
        return prediction.mean


class Tolerance(MeanRule):
    """Accept while rms((mu_q - mu_p) / s) <= tol, s the standard deviation of the target's window.

    tol: at least 0; 0 is target-only decoding. Raises ValueError for a negative value.
    """

    name = "tolerance"

    def __init__(self, tol: float = 0.15):
        if not tol >= 0:
            raise ValueError(f"tol is {tol}, but must be at least 0")
        self.tol = tol

    def judge(self, proposals: Proposals, prediction: Prediction, uniform: torch.Tensor | None = None) -> Judgement:
        k = proposals.mean.shape[1]
        gap = (proposals.mean - prediction.mean[:, :k]) / prediction.scale[:, :k]
        score = unit_mean(gap.square()).sqrt()
        return Judgement(score <= self.tol, score)


class Simplified:
    """The published criterion: x ~ N(mu_q, sigma_q^2), accepted if u < min(1, bias * exp(log_ratio)) with

        log_ratio = -|x - mu_p|^2 / (2 sigma_p^2) + |x - mu_q|^2 / (2 mean(sigma_q^2)).

    It drops the normalising constants of the densities: NOT lossless. In effect it is a threshold: accept roughly if
    mean((mu_q - mu_p)^2) + mean(sigma_q^2) < sigma_p^2. A rejected patch is drawn from N(mu_p, sigma_p^2).
    emit 'mean': the forecast (and the context) takes mu_q where x was accepted and mu_p elsewhere; x only decides.

    sigma_mode 'adaptive': sigma_p^2 = adapt_c * mean squared gap of the means (own patches: `sigma`).
    mse_tol > 0 also accepts if mean((patch - mu_p)^2) <= mse_tol, where patch is what would enter the forecast.
    temp multiplies both sigmas. A draft without a variance head samples with `sigma`.
    """

    name, random = "simplified", True

    def __init__(self, sigma: float = 0.25, emit: str = "sample", bias: float = 1.0, sigma_mode: str = "fixed",
                 adapt_c: float = 4.0, mse_tol: float = -1.0, temp: float = 1.0):
        refuse_emission(emit)
        if not sigma > 0 or sigma_mode not in ("fixed", "adaptive"):
            raise ValueError(f"sigma is {sigma} and sigma_mode {sigma_mode!r}: a sigma is above 0, the mode 'fixed' or "
                             "'adaptive'")
        self.sigma, self.emit, self.bias = sigma * temp, emit, bias
        self.sigma_mode, self.adapt_c, self.mse_tol, self.temp = sigma_mode, adapt_c, mse_tol, temp

    def _draft_sigma(self, mean: torch.Tensor, logvar: torch.Tensor | None) -> torch.Tensor:
        return torch.full_like(mean, self.sigma) if logvar is None else torch.exp(0.5 * logvar) * self.temp

    def propose(self, prediction: Prediction, eps: torch.Tensor | None) -> Proposals:
        mean = prediction.mean
        x = mean + self._draft_sigma(mean, prediction.logvar) * needed(eps)
        return Proposals(x if self.emit == "sample" else mean, x, mean, prediction.logvar)

    def judge(self, proposals: Proposals, prediction: Prediction, uniform: torch.Tensor | None) -> Judgement:
        k = proposals.mean.shape[1]
        p_mean, x = prediction.mean[:, :k], proposals.judged
        variance_q = unit_mean(self._draft_sigma(proposals.mean, proposals.logvar).square())
        if self.sigma_mode == "adaptive":
            gap = unit_mean((proposals.mean - p_mean).square())
            variance_p = (self.adapt_c * gap * self.temp**2).clamp(min=torch.finfo(gap.dtype).tiny)
        else:
            variance_p = torch.full_like(variance_q, self.sigma**2)
        elements = x.shape[-2] * x.shape[-1]
        to_p, to_q = unit_mean((x - p_mean).square()), unit_mean((x - proposals.mean).square())
        log_ratio = 0.5 * elements * (to_q / variance_q - to_p / variance_p)
        bias = torch.log(torch.as_tensor(self.bias, dtype=log_ratio.dtype))
        accepted = torch.log(needed(uniform)) < log_ratio + bias
        if self.mse_tol > 0:
            accepted |= unit_mean((proposals.patches - p_mean).square()) <= self.mse_tol
        return Judgement(accepted, log_ratio)

    def accepted_patches(self, proposals: Proposals, prediction: Prediction) -> torch.Tensor:
        return proposals.patches

    def own_patch(self, prediction: Prediction, eps: torch.Tensor | None, proposals: Proposals | None = None,
                  rejected: torch.Tensor | None = None) -> torch.Tensor:
        return prediction.mean + self.sigma * needed(eps) if self.emit == "sample" else prediction.mean


class Parareal:
    """The settings of `decode_parareal`, which stands where a rule does, although nothing is judged there.

    passes: target passes of a window at most, None: as many as it takes; tol: a window is done once no proposal is
    further than this from what the target makes of it, as `Tolerance` measures it; 0: `passes` alone decides. law: of
    sampled paths. Raises ValueError for passes below 1 and a negative tolerance.
    """

    name, random = "parareal", False
    constants: Sequence[float] | None = None

    def __init__(self, passes: int | None = None, tol: float = 0.15, law: TargetLaw | None = None):
        if (passes is not None and passes < 1) or not tol >= 0:
            raise ValueError(f"passes is {passes} and tol {tol}, but must be at least 1 and 0")
        self.passes, self.tol, self.law = passes, tol, law


class Certified(Parareal):
    """A window is done once its certificate is at most `tol`: `constants`, one a pass, times the RMS of its gaps.

    The certificate estimates the deviation of the whole forecast; see `fidelity.fit_constants`.
    """

    def __init__(self, constants: Sequence[float], tol: float):
        super().__init__(None, tol)
        self.constants = tuple(constants)


RULES: dict[str, type[Rule]] = {"tolerance": Tolerance, "simplified": Simplified, "exact": Exact, "coupling": Coupling}
WAYS: dict[str, type] = {**RULES, Parareal.name: Parareal}  # by name, all ways to use a draft
