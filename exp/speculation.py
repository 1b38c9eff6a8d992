"""The settings of speculative decoding: one section of `exp.settings`, and what depends on the rule."""
from __future__ import annotations

import inspect
from dataclasses import dataclass, fields, replace

from exp.limits import COUNT, LARGEST, NON_NEGATIVE, POSITIVE, PerCent
from exp.section import ONE_WAY, OWN_HEADS, SPECULATION, TEST_WINDOWS, Section
from utils.acceptance import WAYS, Parareal
from utils.calibration import GROWTHS, WIDTHS
from utils.errors import UserError
from utils.limits import Number, OneOf, OrNone, OrWord, Switch, limited
from utils.lossless import EMISSIONS, Lossless
from utils.proposer import REPROPOSALS, source_of

DEFAULT_SIGMA = 0.25
PROMISES = ("audit", "validation")  # kinds, named by what they assume: utils.fidelity
LAW = (*SPECULATION, "num_samples")
PROMISED = ("spec_rms", "spec_budget")
NO_PROMISE = {  # what a promise does not go with
    "do_predict": "needs many windows, some of which the target forecasts too, but --do_predict forecasts one of each "
                  "series",
    "num_samples": "is a promise on the mean forecast, but --num_samples asks for paths",
    "spec_k=auto": "chooses the tolerance after K, but --spec_k auto chooses K for a tolerance",
    "spec_adaptive": "needs forecasts that depend on their own window alone, but --spec_adaptive lets earlier ones "
                     "decide",
    "spec_debug_accept": "forecasts the audited windows by the target alone, where --spec_debug_accept has nothing to "
                         "log"}
CALIBRATED = ("spec_sigma_mode=calibrated", "draft_teacher_noise=calibrated")


@dataclass(frozen=True)
class SpecSettings(Section):
    """Speculative decoding: the rule and its parameters, the number of proposals, and the law of sampled paths.

    rule 'parareal' judges nothing: passes and tol end it, and k and repropose do not apply. k: most proposals per
    round, 'auto': chosen by measurement, None: all remaining patches, 3 for simplified. repropose: None: the best for
    the rule, see `utils.proposer.source_of`. emit: None: 'mean' where a rule has no other, else 'sample'.
    sigma, sigma_mode: None: not given, see `filled`. rms, budget: how far forecasts may be from those of the target
    alone; tol and passes are then chosen; promise: what that choice rests on. budget is a share, 0.005 for 0.5 %.
    width: None: chosen on validation windows. growth: None: rollouts where the validation part has them.
    """

    rule: str = limited("tolerance", OneOf(WAYS), "acceptance rule; parareal judges nothing, but corrects the draft by "
                        "the error that the target has found, again and again", flag="spec_accept_rule",
                        needs=SPECULATION, free=True, not_with=ONE_WAY)
    k: int | str | None = limited(None, OrNone(OrWord(COUNT, "auto")), "maximum proposals per round, or 'auto': chosen "
                                  "by measurement, plain decoding if nothing is faster (default: all remaining "
                                  "patches, 3 for simplified)", flag="spec_k", needs=SPECULATION, free=True)
    repropose: str | None = limited(None, OrNone(OneOf(REPROPOSALS)), "source of proposals after a rejection: the "
                                    "draft, the target's last pass (tolerance only), or the draft shifted by the gap "
                                    "found in that pass (default: corrected for exact and coupling, else draft)",
                                    flag="spec_repropose", needs=SPECULATION, free=True, not_with=OWN_HEADS)
    tol: float = limited(0.15, NON_NEGATIVE, "tolerance, parareal: maximum RMS gap, in window standard deviations",
                         flag="spec_tol", needs=SPECULATION, free=True)
    passes: int | None = limited(None, OrNone(COUNT), "parareal: at most so many target passes per window (default: "
                                 "until no gap is above --spec_tol)", flag="spec_passes", needs=SPECULATION, free=True)
    emit: str | None = limited(None, OrNone(OneOf(EMISSIONS)), "emit samples or means (default: mean for tolerance "
                               "and parareal, else sample); means of exact and coupling preserve no law",
                               flag="spec_emit", needs=SPECULATION, free=True, not_with=ONE_WAY)
    sigma: float | None = limited(None, OrNone(POSITIVE), "simplified, exact, coupling: the target's sigma, "
                                  "standardised units; in forecasts beyond the end, standard deviations of the context "
                                  f"(default: {DEFAULT_SIGMA})", flag="spec_sigma", needs=LAW, free=True)
    sigma_mode: str | None = limited(None, OrNone(OneOf(("fixed", "adaptive", "calibrated"))), "fixed (the default); "
                                     "from spec_sigma_adapt_c * mean squared gap (simplified); or fitted to the "
                                     "target's errors on the validation part, kept beside its checkpoint (exact, "
                                     "coupling, and --num_samples of the target alone)", flag="spec_sigma_mode",
                                     needs=LAW, free=True)
    covariance: str = limited("diag", OneOf(("diag", "full")), "calibrated: the elements of a patch independent, or "
                              "with their correlations, which gives smooth paths", flag="spec_covariance",
                              needs=CALIBRATED)
    width: str | None = limited(None, OrNone(OneOf(WIDTHS)), "calibrated: the noise of all paths equally wide (one), "
                                "or that of each path as wide as the errors in a validation window drawn for it "
                                "(mixture; default: whichever has the lower CRPS on the newest validation windows)",
                                flag="spec_width", needs=("spec_sigma_mode=calibrated",), free=True)
    growth: str | None = limited(None, OrNone(OneOf((*GROWTHS, "auto"))), "calibrated: rollouts: spread finished "
                                 "paths about their mean by a factor for every patch, fitted to forecasts of "
                                 "validation windows over the whole horizon; none: leave them; auto: rollouts if that "
                                 "lowers the CRPS of the newer half of those windows (default: rollouts, if there are "
                                 "such windows)", flag="spec_growth",
                                 needs=("spec_sigma_mode=calibrated",), free=True, not_with=TEST_WINDOWS)
    adapt_c: float = limited(4.0, POSITIVE, "adaptive: sigma squared is this factor times the mean squared gap",
                             flag="spec_sigma_adapt_c", needs=("spec_sigma_mode=adaptive",), free=True)
    bias: float = limited(1.0, POSITIVE, "simplified: factor on the acceptance ratio", flag="spec_accept_bias",
                          needs=SPECULATION, free=True)
    mse_tol: float = limited(-1.0, Number(-LARGEST, LARGEST), "simplified: also accept where the mean squared gap to "
                             "the target's mean is at most this (<= 0: off)", flag="spec_accept_mse_tol",
                             needs=SPECULATION, free=True)
    temp: float = limited(1.0, POSITIVE, "simplified, exact, coupling: factor on the sigmas", flag="spec_temp",
                          needs=LAW, free=True)
    adaptive: bool = limited(False, Switch(), "adapt K to the acceptance of earlier batches, up to --spec_k",
                             flag="spec_adaptive", needs=SPECULATION, free=True, not_with=TEST_WINDOWS | {
        "ddp": "learns from one batch after another, which --ddp gives to several processes: test without torchrun"})
    rms: float | None = limited(None, OrNone(POSITIVE), "tolerance, parareal: choose the cheapest setting whose "
                                "forecasts deviate by at most this from those of the target alone (RMS in window "
                                "standard deviations), and promise that, see --spec_promise", flag="spec_rms",
                                needs=("use_speculative",), free=True, not_with=ONE_WAY | NO_PROMISE | {
        "spec_budget": "and --spec_budget are two ways to say how far forecasts may deviate"})
    budget: float | None = limited(None, OrNone(PerCent()), "as --spec_rms, but for a deviation that can change the "
                                   "MSE by at most this share of the target's own on validation windows, such as 0.5%",
                                   flag="spec_budget", needs=("use_speculative",), free=True,
                                   not_with=ONE_WAY | NO_PROMISE)
    promise: str = limited("audit", OneOf(PROMISES), "what the promise rests on: an audit of some of the windows to "
                           "be forecast (assumes nothing), or blocks of validation windows (assumes that the next "
                           "block is like them)", flag="spec_promise", needs=PROMISED, free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k == "auto" and self.adaptive:
            raise UserError("`k` auto chooses K by measurement, but `adaptive` changes it: leave one of them out")

    def filled(self) -> SpecSettings:
        """With what depends on the rule, and a sigma of DEFAULT_SIGMA, fixed, where they were not given."""
        return replace(self, sigma=DEFAULT_SIGMA if self.sigma is None else self.sigma,
                       sigma_mode=self.sigma_mode or "fixed", repropose=source_of(WAYS[self.rule], self.repropose))

    @property
    def promises(self) -> bool:
        return self.rms is not None or self.budget is not None

    @property
    def emission(self) -> str:
        return self.emit or ("sample" if "emit" in parameters_of(self.rule) else "mean")

    def refuse_contradictions(self, given: set[str]) -> None:
        """Raises UserError for fields that do not fit the rule. given: the fields that were set explicitly."""
        if self.rule == Parareal.name and given & {"k", "repropose", "adaptive"}:
            raise UserError(f"`{min(given & {'k', 'repropose', 'adaptive'})}` does not apply to `rule` parareal, which "
                            "proposes all later patches in every pass: leave it out")
        if self.promises:
            self._refuse_promise(given)
        for name in sorted(given & RULE_FIELDS):
            meant = [rule for rule in WAYS if name in parameters_of(rule)]
            if self.rule not in meant:
                raise UserError(f"`{name}` does not apply to `rule` {self.rule}: use {' or '.join(meant)}, or leave "
                                "it out")
        if "adapt_c" in given and self.sigma_mode != "adaptive":
            raise UserError("`adapt_c` has no effect without `sigma_mode` adaptive: set it, or leave this one out")
        if self.rule in (*LOSSLESS, Parareal.name) and self.sigma_mode == "adaptive":
            raise UserError("`sigma_mode` adaptive takes the target's sigma from the proposal, so there is no fixed "
                            f"law for `rule` {self.rule} to sample from: use fixed, or simplified")
        if self.repropose == "target" and self.rule != "tolerance":
            raise UserError(f"`repropose` target gives `rule` {self.rule} no law to sample from: use corrected, "
                            "or tolerance")
        if "emit" not in parameters_of(self.rule) and self.emit == "sample":
            raise UserError(f"`emit` sample does not apply to `rule` {self.rule}, which emits means: leave it out")

    def _refuse_promise(self, given: set[str]) -> None:
        name = "rms" if self.rms is not None else "budget"
        if self.rule not in ("tolerance", Parareal.name):
            raise UserError(f"`{name}` does not apply to `rule` {self.rule}, whose forecasts deviate by chance: use "
                            "tolerance or parareal, or leave it out")
        chosen = given & {"tol", "passes"}
        if chosen:
            raise UserError(f"`{name}` chooses the setting that keeps its promise, so that `{min(chosen)}` has no "
                            "effect: leave one of them out")

    def refuse_simplified_calibrated(self) -> None:
        if self.sigma_mode == "calibrated" and self.rule == "simplified":
            raise UserError("`sigma_mode` calibrated has one sigma per element of a patch, but the rule simplified "
                            "needs a single one: use exact or coupling, or `sigma`")

    def set_fields(self) -> set[str]:
        """The fields that differ from their defaults; in Python these count as given."""
        return {own.name for own in fields(self) if getattr(self, own.name) != own.default}


LAW_FIELDS = {"sigma", "sigma_mode", "temp"}  # settings behind the `law` of a rule


def parameters_of(rule: str) -> set[str]:
    """The fields of SpecSettings that apply to a rule: the parameters of its constructor."""
    taken = set(inspect.signature(WAYS[rule]).parameters)
    return (taken - {"law"}) | (LAW_FIELDS if "law" in taken else set())


LOSSLESS = tuple(rule for rule, kind in WAYS.items() if issubclass(kind, Lossless))
RULE_FIELDS = set().union(*map(parameters_of, WAYS)) - {"emit"}
