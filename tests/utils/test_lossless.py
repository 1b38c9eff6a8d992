"""exact and coupling let out the target's law: against a Gaussian autoregression whose law is known in closed form.

Every p-value is held against LEVEL = 1e-6: a law check computes 10 of them, an acceptance check one. About 400 are
computed, so with other seeds the module as a whole would raise a false alarm with a probability below 5e-4
(Bonferroni). The same checks must refute the published rule and rules that are broken on purpose.
"""
import math

import pytest
import torch
from reference.gaussian_autoregression import C, D, Linear, P, dynamics, path_law
from scipy import stats

from utils import lossless
from utils.acceptance import Simplified
from utils.counter_random import redraws
from utils.errors import NotFinite
from utils.interface import Prediction
from utils.lossless import RESIDUAL_FLOOR, Coupling, Exact, drawn
from utils.proposals import Noise, Proposals
from utils.speculative_decoder import decode_speculative
from utils.target_law import TargetLaw

LEVEL = 1e-6
PATHS, N, SIGMA = 20_000, 9, 0.5
RATIOS, GAPS, KS = (0.25, 0.5, 1.0, 2.0), (0.0, 0.5, 2.0, 8.0), (1, 3, 7)
PROJECTIONS = 8
WHITE = TargetLaw.fixed(SIGMA)


def pair(gap=0.5, ratio=1.0, other_dynamics=0.05, law_sigma=SIGMA, scales=((1.0, 1.0), (1.0, 1.0))):
    """Target and draft whose means lie `gap` target deviations apart, a little more or less by what came before.

    ratio: the draft's sigma over the target's; None: a draft without variance head.
    """
    A, b = dynamics()
    direction = torch.ones(D) / math.sqrt(D)
    disturbed = A + other_dynamics * torch.randn(D, D, generator=torch.Generator().manual_seed(5))
    draft = Linear(disturbed, b + gap * law_sigma * direction, None if ratio is None else ratio * law_sigma, scales[1])
    return Linear(A, b, scale=scales[0]), draft


def sample(target, draft, rule, K, patches=N, spoil=None, repropose="draft"):
    """Contexts [PATHS, P, C] and what is decoded from them; spoil: what to do to the noise before."""
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(PATHS, P, C, generator=generator)
    noise = Noise.draw(context, patches, P, generator)
    noise = spoil(noise) if spoil else noise
    return context, decode_speculative(target, draft, context, patches * P, rule, K, noise, repropose=repropose)


def whitened(target, law, context, decoded):
    """Paths less the mean that the target's law gives each of them, [PATHS, N * D]: should be standard normal."""
    factor = law.factor if law.full else torch.diag(law.factor.expand(P, C).flatten())
    unit = target.scale.expand(P, C).flatten()[:, None] if law.relative else 1.0
    mean, covariance = path_law(target.A, target.b, (unit * factor) @ (unit * factor).T, context.flatten(1), N)
    away = decoded.forecast.flatten(1).double() - mean
    return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), away.T, upper=False).T


def p_values(z):
    """Of mean, covariance (both jointly over all elements) and random projections, were z [S, n] standard normal."""
    count, size = z.shape
    mean = stats.chi2.sf(float(count * z.mean(0).square().sum()), size)
    eye = torch.eye(size, dtype=z.dtype)
    off = ((z.T @ z / count - eye) * math.sqrt(count) / torch.sqrt(1 + eye)).tril()
    covariance = stats.chi2.sf(float(off.square().sum()), size * (size + 1) // 2)
    lines = torch.randn(size, PROJECTIONS, dtype=z.dtype, generator=torch.Generator().manual_seed(9))
    projected = (z @ (lines / lines.norm(dim=0))).numpy()
    return [mean, covariance, *(stats.kstest(column, "norm").pvalue for column in projected.T)]


def keeps_the_law(models, rule, K, law=None, **how):
    context, decoded = sample(*models, rule, K, **how)
    return min(p_values(whitened(models[0], law or WHITE, context, decoded))) > LEVEL, decoded


# --- the law of the paths

@pytest.mark.slow
@pytest.mark.parametrize("i, gap", list(enumerate(GAPS)))
@pytest.mark.parametrize("j, ratio", list(enumerate(RATIOS)))
def test_exact_keeps_the_law_of_the_target(j, ratio, i, gap):
    kept, _ = keeps_the_law(pair(gap, ratio), Exact(WHITE), KS[(i + j) % 3])  # every K with every ratio, every gap
    assert kept


@pytest.mark.slow
@pytest.mark.parametrize("K", KS)
@pytest.mark.parametrize("gap", GAPS)
def test_coupling_keeps_the_law_of_the_target(gap, K):
    assert keeps_the_law(pair(gap), Coupling(WHITE), K)[0]


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Exact, Coupling])
def test_rejections_within_a_round_leave_the_law_as_it_is(rule):
    """Noise of positions behind a rejection is used again: most rounds here end so, and rows differ."""
    kept, decoded = keeps_the_law(pair(gap=1.0), rule(WHITE), 7)
    assert kept
    assert decoded.lengths[1:7].sum() > 0.4 * decoded.lengths.sum()
    assert len(set(decoded.accepted.tolist())) == N - 1  # 0 to 7 of 9 patches


@pytest.mark.slow
@pytest.mark.parametrize("rule", [Exact, Coupling])
def test_a_corrected_draft_leaves_the_law_as_it_is(rule):
    kept, decoded = keeps_the_law(pair(gap=2.0), rule(WHITE), 3, repropose="corrected")
    assert kept
    _, plain = sample(*pair(gap=2.0), rule(WHITE), 3)
    assert decoded.accepted.sum() > 1.1 * plain.accepted.sum(), "nothing was corrected"


class WithHeads(Linear):
    """Heads that say of the two patches after the next one what follows from the last one, and miss by `gap` sigmas."""

    heads_ahead = 2

    def __init__(self, A, b, gap):
        super().__init__(A, b)
        self.miss = gap * SIGMA / math.sqrt(D)

    def predict_windows(self, windows):
        mean, _, unit = super().predict_windows(windows)
        said = [mean]
        for _ in range(self.heads_ahead):
            said.append((said[-1].flatten(1) @ self.A.T + self.b).view_as(mean))
        return torch.cat([mean, *(part + self.miss for part in said[1:])], dim=1), None, unit


@pytest.mark.slow
@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("rule", [Exact, Coupling])
def test_a_targets_own_heads_leave_the_law_as_it_is(rule, K):
    """They have not seen the draw of the patch before their first proposal, which the target has."""
    kept, decoded = keeps_the_law((WithHeads(*dynamics(), gap=0.5), None), rule(WHITE), K, repropose=None)
    assert kept
    assert 0.2 < decoded.accepted.sum() / decoded.judged.sum() < 0.9 and not decoded.draft_passes.any()
    assert len(set(decoded.accepted.tolist())) > 3


FULL = 0.4 * torch.tensor([[1, 0, 0, 0], [0.8, 0.6, 0, 0], [0.5, 0.3, 0.7, 0], [-0.4, 0.6, 0.2, 0.9]])


@pytest.mark.parametrize("rule", [Exact, Coupling])
@pytest.mark.parametrize("relative", [False, True])
def test_the_law_may_have_a_full_covariance_and_relative_units(rule, relative):
    law = TargetLaw(FULL, full=True, relative=relative)
    kept, decoded = keeps_the_law(pair(0.3, scales=((0.7, 2.0), (0.7, 2.0))), rule(law), 3, law)
    assert kept
    assert 0.2 < decoded.accepted.sum() / decoded.judged.sum() < 0.95


@pytest.mark.parametrize("rule", [Exact, Coupling])
def test_the_law_is_kept_where_the_units_of_the_two_differ(rule):
    law = TargetLaw(torch.tensor([[0.4], [0.6]]), relative=True)
    models = pair(0.5, ratio=None, scales=((0.7, 2.0), (1.0, 1.5)))
    assert keeps_the_law(models, rule(law), 3, law)[0]


# --- what the checks above must refute

class FromTheTarget(Exact):
    """Redraws from p where the residual is asked for."""

    def replace(self, own, prediction, eps, proposals, rejected):
        return own


class Unreflected(Coupling):
    """Moves the rejected proposal to the target's mean as it is."""

    def replace(self, own, prediction, eps, proposals, rejected):
        return torch.where(rejected[:, None, None, None], drawn(self.law, prediction, proposals.judged), own)


class FreshDraw(Coupling):
    """Replaces a rejected proposal by a draw of the target's that knows nothing of it."""

    def replace(self, own, prediction, eps, proposals, rejected):
        return own


class Mistaken(Exact):
    """Takes the draft's deviation for half of what it is when it judges."""

    def weigh(self, proposals, gap, unit):
        shrunk = Proposals(proposals.patches, proposals.judged, proposals.mean, proposals.logvar - 2 * math.log(2))
        return super().weigh(shrunk, gap, unit)


@pytest.mark.slow
@pytest.mark.parametrize("rule, ratio", [
    (Simplified(SIGMA), 0.5), (Simplified(SIGMA), 1.0), (FromTheTarget(WHITE), 0.5), (Mistaken(WHITE), 1.0),
    (Unreflected(WHITE), 1.0), (FreshDraw(WHITE), 1.0)])
def test_the_published_rule_and_broken_ones_are_refuted(rule, ratio):
    assert not keeps_the_law(pair(2.0, ratio), rule, 3)[0]


SPOILT = {
    "one uniform number for all positions": lambda noise: Noise(
        noise.proposal, noise.target, noise.uniform[:, :1].expand_as(noise.uniform)),
    "one proposal for all positions": lambda noise: Noise(
        noise.proposal[:, :1].expand_as(noise.proposal), noise.target, noise.uniform),
    "a bonus that is the next proposal": lambda noise: Noise(
        noise.proposal, noise.proposal.roll(-1, dims=1), noise.uniform),
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", SPOILT)
def test_noise_that_does_not_belong_to_one_position_is_refuted(spoil):
    assert not keeps_the_law(pair(2.0), Exact(WHITE), 3, spoil=SPOILT[spoil])[0]


# --- acceptance

def exact_acceptance(ratio, gap, c=1 - RESIDUAL_FLOOR):
    """Integral of min(q, c p) for N(gap e, ratio^2) and N(0, 1) in D dimensions; 1 - TV with c = 1.

    log(c p/q) is Gaussian for equal deviations; else a |x - m e|^2 + constant, whose law is a non-central chi-square.
    """
    if ratio == 1.0:
        if gap == 0:
            return c
        sure, middle = math.log(c) / gap, gap / 2
        return stats.norm.cdf(sure - middle) + c * stats.norm.cdf(-sure - middle)
    a = 0.5 * (1 / ratio**2 - 1)
    m = gap / (2 * a * ratio**2)
    radius = m**2 - (gap**2 / (2 * ratio**2) + D * math.log(ratio) + math.log(c)) / a
    # x is accepted for sure outside that radius (a > 0), or inside
    q_inside = stats.ncx2.cdf(radius / ratio**2, D, (gap - m)**2 / ratio**2)
    p_inside = stats.ncx2.cdf(radius, D, m**2)
    return 1 - q_inside + c * p_inside if a > 0 else q_inside + c * (1 - p_inside)


def measured_acceptance(rule, gap, ratio=1.0):
    """Accepted of 20,000 independent proposals, all at the same gap."""
    _, decoded = sample(*pair(gap, ratio, other_dynamics=0.0), rule, 1, patches=2)
    assert decoded.judged.sum() == PATHS
    return int(decoded.accepted.sum())


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_exact_accepts_one_minus_the_total_variation(ratio, gap):
    expected = exact_acceptance(ratio, gap)
    assert stats.binomtest(measured_acceptance(Exact(WHITE), gap, ratio), PATHS, expected).pvalue > LEVEL
    most = exact_acceptance(ratio, gap, 1.0)
    assert (1 - RESIDUAL_FLOOR) * most - 1e-12 <= expected <= most + 1e-12


@pytest.mark.parametrize("gap", GAPS)
def test_coupling_accepts_the_most_possible(gap):
    expected = 2 * stats.norm.cdf(-gap / 2)
    assert stats.binomtest(measured_acceptance(Coupling(WHITE), gap), PATHS, min(1.0, expected)).pvalue > LEVEL
    assert expected == pytest.approx(exact_acceptance(1.0, gap, 1.0))


@pytest.mark.slow
def test_coupling_says_how_much_can_be_accepted():
    """Over rounds of unequal length: what is judged depends on what was accepted, and still the sums agree."""
    _, decoded = sample(*pair(gap=1.0), Coupling(WHITE), 7)
    surplus = (decoded.accepted - decoded.most).double()  # of each row, mean zero
    assert abs(float(surplus.mean() / (surplus.std() / PATHS**0.5))) < 4.9  # two-sided 1e-6
    assert decoded.most.sum() < 0.9 * decoded.judged.sum()
    gapless, far = (sample(*pair(gap, other_dynamics=0.0), Coupling(WHITE), 1, 2)[1] for gap in (0.0, 8.0))
    torch.testing.assert_close(gapless.most, torch.ones(PATHS, dtype=torch.float64))
    torch.testing.assert_close(far.most, torch.full((PATHS,), 2 * stats.norm.cdf(-4.0), dtype=torch.float64), rtol=1e-4,
                               atol=0)
    assert sample(*pair(), Exact(WHITE), 1)[1].most is None


def test_overflow_behind_a_rejection_leaves_no_trace():
    target, draft = pair()
    draft.A = 1e15 * draft.A  # the third proposal overflows; the first can be judged
    _, decoded = sample(target, draft, Coupling(WHITE), 3)
    assert decoded.forecast.isfinite().all() and decoded.accepted.sum() == 0
    assert decoded.most.isfinite().all()


def test_the_published_rule_is_refuted_by_its_acceptance_too():
    accepted = measured_acceptance(Simplified(SIGMA), 0.5, 0.5)
    assert stats.binomtest(accepted, PATHS, exact_acceptance(0.5, 0.5)).pvalue < LEVEL


@pytest.mark.parametrize("gap, ratio", [(0.0, None), (0.5, 1.0), (8.0, 0.5)])
def test_exact_draws_again_once_a_proposal_on_average(monkeypatch, gap, ratio):
    """Whatever the models; blocks double in size, so that up to about twice as many are made."""
    made = []

    def counted(seeds, first, count, shape):
        made.append(len(seeds) * count)
        return redraws(seeds, first, count, shape)
    monkeypatch.setattr(lossless, "redraws", counted)
    measured_acceptance(Exact(WHITE), gap, ratio)
    assert 0.7 * PATHS < sum(made) < 3 * PATHS


# --- very many elements, models nearly equal and far apart

BIG = (96, 21)


def judged(rule, gap, rows=64, uniform=0.5):
    """A judgement of proposals whose mean lies gap * SIGMA from the target's in every element, in float32."""
    z = torch.randn(rows, 1, *BIG, generator=torch.Generator().manual_seed(0))
    mean = torch.zeros(rows, 2, *BIG)
    target = Prediction(mean, None, torch.ones(rows, 2, 1, BIG[1]), torch.ones(rows, 1, 1, BIG[1]))
    draft = Prediction(mean[:, :1] + gap * SIGMA, None, target.scale[:, :1], target.unit)
    proposals = rule.propose(draft, z)
    assert proposals.patches.dtype == torch.float32
    return proposals, target, rule.judge(proposals, target, torch.full((rows, 1), uniform))


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 0.01, 1.0, 1e3])
@pytest.mark.parametrize("rule", [Exact(WHITE), Coupling(WHITE)], ids=lambda rule: rule.name)
def test_thousands_of_elements_are_judged_to_the_last_digits(rule, gap):
    proposals, _, judgement = judged(rule, gap)
    exact_gap = proposals.mean.double() / SIGMA
    expected = -(exact_gap * (proposals.judged + exact_gap / 2)).sum((2, 3))
    expected += math.log1p(-RESIDUAL_FLOOR) if rule.name == "exact" else 0
    torch.testing.assert_close(judgement.score, expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(judgement.accepted, expected > math.log(0.5))
    assert judgement.accepted.all() if gap <= 1e-6 else gap < 1 or not judgement.accepted.any()


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1.0, 1e3])
@pytest.mark.parametrize("rule", [Exact(WHITE), Coupling(WHITE)], ids=lambda rule: rule.name)
def test_a_replacement_is_finite_and_of_the_targets_size(rule, gap):
    proposals, target, _ = judged(rule, gap, rows=2)
    eps = torch.randn(2, 1, *BIG, generator=torch.Generator().manual_seed(1))
    own = rule.own_patch(target.first(1), eps, proposals, torch.ones(2, dtype=torch.bool))
    assert own.isfinite().all()
    # 4032 squares of standard normals: 6 standard errors of their mean, a false alarm in 5e8
    assert (own / SIGMA).square().mean().item() == pytest.approx(1, abs=6 * math.sqrt(2 / own.numel()))


@pytest.mark.parametrize("rule", [Exact(WHITE), Coupling(WHITE)], ids=lambda rule: rule.name)
def test_a_uniform_number_of_zero_accepts_nothing_hopeless(rule):
    assert not judged(rule, 1e3, uniform=0.0)[2].accepted.any()
    assert judged(rule, 0.0, uniform=0.0)[2].accepted.all()


def test_a_draft_with_its_own_deviation_is_judged_in_full():
    """The score is the log ratio of the full densities of torch."""
    generator = torch.Generator().manual_seed(0)
    logvar, gap, z = (torch.randn(5, 3, 8, 2, generator=generator) for _ in range(3))
    law = TargetLaw(torch.rand(8, 2, generator=generator) + 0.5)
    unit = torch.ones(5, 1, 1, 2)
    draft = Prediction(gap, logvar, torch.ones(5, 3, 1, 2), unit)
    target = Prediction(torch.zeros(5, 4, 8, 2), None, torch.ones(5, 4, 1, 2), unit)
    proposals = Exact(law).propose(draft, z)
    x = proposals.patches.double()
    p = torch.distributions.Normal(0.0, law.factor.double()).log_prob(x)
    q = torch.distributions.Normal(gap.double(), torch.exp(0.5 * logvar.double())).log_prob(x)
    score = Exact(law).judge(proposals, target, torch.rand(5, 3)).score
    torch.testing.assert_close(score, (p - q).sum((2, 3)) + math.log1p(-RESIDUAL_FLOOR), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("rule", [Exact, Coupling])
def test_mean_emission_lets_the_proposal_decide_and_nothing_else(rule):
    sampled, mean = rule(WHITE), rule(WHITE, "mean")
    (drawn_ones, target, decided), (means, _, too) = judged(sampled, 0.03), judged(mean, 0.03)
    assert torch.equal(decided.accepted, too.accepted) and 0 < decided.accepted.sum() < 64
    assert torch.equal(means.patches, means.mean) and not torch.equal(drawn_ones.patches, means.patches)
    assert torch.equal(mean.accepted_patches(means, target), target.mean[:, :1])
    assert torch.equal(sampled.accepted_patches(drawn_ones, target), drawn_ones.patches)
    rejected = ~too.accepted[:, 0]
    assert torch.equal(mean.own_patch(target.first(1), torch.ones(64, 1, *BIG), means, rejected), target.mean[:, :1])


# --- models that overflow

SIGMAS = {"draft's sigma": float("inf"), "draft's NaN": float("nan")}


@pytest.mark.parametrize("broken", ["target's mean", "draft's mean", "draft's sigma", "draft's NaN"])
def test_exact_ends_where_a_model_is_not_a_number(broken, monkeypatch):
    def few_redraws(*args):
        calls.append(args)
        assert len(calls) < 40, "exact searches for ever"
        return redraws(*args)
    calls: list = []
    monkeypatch.setattr(lossless, "redraws", few_redraws)
    (A, b), nan = dynamics(), torch.full((D,), float("nan"))
    target = Linear(A, nan if broken == "target's mean" else b)
    draft = Linear(A, nan if broken == "draft's mean" else b, sigma=SIGMAS.get(broken, 0.3))
    noise = Noise.draw(torch.zeros(5, P, C), 4, P, torch.Generator().manual_seed(0))
    with pytest.raises(NotFinite, match=f"the {broken.split(chr(39))[0]} "):
        decode_speculative(target, draft, torch.zeros(5, P, C), 4 * P, Exact(TargetLaw.fixed(0.25)), 3, noise)
