"""Acceptance rules: what is proposed, whether the target accepts it, and what leaves the decoder.

mu_p, sigma_p: target; mu_q, sigma_q: draft; x: proposal; everything in the units the models see (standardised
series). The unit judged is one row of the batch: the P * C elements of a patch together.

A rule offers
    name, random                                 as in --spec_accept_rule; does it need `Noise`?
    propose(prediction, eps) -> Proposals        from the draft's prediction at one position
    judge(proposals, prediction, uniform)        -> Judgement of k proposals by the target's k + 1 predictions
    accepted_patches(proposals, prediction)      what an accepted proposal puts into the forecast [b, k, P, C]
    own_patch(prediction, eps, proposals, rejected)
        the target's own patch [b, 1, P, C], which ends a round: in place of the proposals [b, 1] that were rejected
        ([b] bool), and where nothing was rejected the bonus, a patch as the target alone would give it. Without
        proposals it is the bonus everywhere.
eps is standard normal, uniform in [0, 1): see `Noise`. The rules with a guarantee are in `utils.lossless`.
"""
import torch

from models.prediction import Prediction
from utils.lossless import Coupling, Exact
from utils.proposals import Judgement, Proposals
from utils.target_law import TargetLaw


def unit_mean(values: torch.Tensor) -> torch.Tensor:
    """Mean over the elements judged together: [..., P, C] -> [...]."""
    return values.mean(dim=(-2, -1))


class Tolerance:
    """Deterministic mean decoding: accept while rms((mu_q - mu_p) / s) <= tol, s the target window's stdev.

    Every verified patch enters the forecast as the TARGET's mean; an accepted proposal stays in the context that
    later patches were verified against. tol = 0 is target-only decoding.
    """

    name, random = "tolerance", False

    def __init__(self, tol: float):
        self.tol = tol

    def propose(self, prediction: Prediction, eps=None) -> Proposals:
        return Proposals.plain(prediction)

    def judge(self, proposals: Proposals, prediction: Prediction, uniform=None) -> Judgement:
        k = proposals.mean.shape[1]
        gap = (proposals.mean - prediction.mean[:, :k]) / prediction.scale[:, :k]
        score = unit_mean(gap.square()).sqrt()
        return Judgement(score <= self.tol, score)

    def accepted_patches(self, proposals: Proposals, prediction: Prediction) -> torch.Tensor:
        return prediction.mean[:, :proposals.mean.shape[1]]

    def own_patch(self, prediction: Prediction, eps=None, proposals=None, rejected=None) -> torch.Tensor:
        return prediction.mean


class Simplified:
    """The published criterion: x ~ N(mu_q, sigma_q^2), accepted if u < min(1, bias * exp(log_ratio)) with

        log_ratio = -|x - mu_p|^2 / (2 sigma_p^2) + |x - mu_q|^2 / (2 mean(sigma_q^2)).

    It drops the normalising constants of the densities: NOT lossless. In effect it is a threshold: accept about where
    mean((mu_q - mu_p)^2) + mean(sigma_q^2) < sigma_p^2. A rejected patch is drawn from N(mu_p, sigma_p^2).
    emit 'mean': the forecast (and the context) takes mu_q where x was accepted and mu_p elsewhere; x only decides.

    sigma_mode 'adaptive': sigma_p^2 = adapt_c * mean squared gap of the means (own patches: `sigma`).
    mse_tol > 0 also accepts where mean((patch - mu_p)^2) <= mse_tol, patch being what would enter the forecast.
    temp multiplies both sigmas. A draft without a variance head samples with `sigma`.
    """

    name, random = "simplified", True

    def __init__(self, sigma: float, emit: str = "sample", bias: float = 1.0, sigma_mode: str = "fixed",
                 adapt_c: float = 4.0, mse_tol: float = -1.0, temp: float = 1.0):
        self.sigma, self.emit, self.bias = sigma * temp, emit, bias
        self.sigma_mode, self.adapt_c, self.mse_tol, self.temp = sigma_mode, adapt_c, mse_tol, temp

    def _draft_sigma(self, mean: torch.Tensor, logvar: torch.Tensor | None) -> torch.Tensor:
        return torch.full_like(mean, self.sigma) if logvar is None else torch.exp(0.5 * logvar) * self.temp

    def propose(self, prediction: Prediction, eps: torch.Tensor) -> Proposals:
        mean = prediction.mean
        x = mean + self._draft_sigma(mean, prediction.logvar) * eps
        return Proposals(x if self.emit == "sample" else mean, x, mean, prediction.logvar)

    def judge(self, proposals: Proposals, prediction: Prediction, uniform: torch.Tensor) -> Judgement:
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
        accepted = torch.log(uniform) < log_ratio + bias
        if self.mse_tol > 0:
            accepted |= unit_mean((proposals.patches - p_mean).square()) <= self.mse_tol
        return Judgement(accepted, log_ratio)

    def accepted_patches(self, proposals: Proposals, prediction: Prediction) -> torch.Tensor:
        return proposals.patches

    def own_patch(self, prediction: Prediction, eps: torch.Tensor, proposals=None, rejected=None) -> torch.Tensor:
        return prediction.mean + self.sigma * eps if self.emit == "sample" else prediction.mean


RULES = {rule.name: rule for rule in (Tolerance, Simplified, Exact, Coupling)}


def make_rule(name: str, args, emit: str | None = None, law: TargetLaw | None = None):
    """The rule `name` with the settings of the flags; law: the target's, for `exact` and `coupling`, if not
    white noise of --spec_sigma."""
    emit = emit or args.spec_emit
    if name == "tolerance":
        return Tolerance(args.spec_tol)
    if name == "simplified":
        return Simplified(args.spec_sigma, emit, args.spec_accept_bias, args.spec_sigma_mode, args.spec_sigma_adapt_c,
                          args.spec_accept_mse_tol, args.spec_temp)
    law = law or TargetLaw.fixed(args.spec_sigma * args.spec_temp)
    if name == "exact":
        return Exact(law, emit, args.spec_temp)
    if name == "coupling":
        return Coupling(law, emit)
    raise ValueError(f"rule {name!r} is in RULES, but make_rule does not know its settings")
