"""The rules element by element, and the laws of what they draw."""
import math

import pytest
import torch

from utils.acceptance import RULES, MeanRule, Simplified, Tolerance
from utils.interface import Prediction
from utils.lossless import Coupling, Exact
from utils.proposals import Judgement, Noise, Proposals
from utils.target_law import TargetLaw


def prediction(mean, logvar=None, scale=None):
    scale = torch.ones_like(mean[:, :, :1]) if scale is None else scale
    return Prediction(mean, logvar, scale, torch.ones_like(scale[:, :1]))


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    mean_q, mean_p = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    logvar = torch.randn(2, 3, 4, 5, generator=generator) - 1
    x = mean_q + torch.exp(0.5 * logvar) * torch.randn(2, 3, 4, 5, generator=generator)
    bonus = torch.zeros(2, 1, 4, 5)
    return Proposals(x, x, mean_q, logvar), prediction(torch.cat([mean_p, bonus], dim=1))


@pytest.mark.parametrize("temp", [1.0, 0.7])
def test_simplified_score_is_the_published_log_ratio(case, temp):
    proposals, target = case
    score = Simplified(0.8, temp=temp).judge(proposals, target, torch.rand(2, 3)).score
    for b in range(2):
        for j in range(3):
            x, mu_p, mu_q = (t[b, j].double().flatten().tolist()
                             for t in (proposals.judged, target.mean, proposals.mean))
            variance_q = sum(math.exp(v) for v in proposals.logvar[b, j].flatten().tolist()) / len(x) * temp**2
            expected = (-sum((a - m) ** 2 for a, m in zip(x, mu_p)) / (2 * (0.8 * temp) ** 2)
                        + sum((a - m) ** 2 for a, m in zip(x, mu_q)) / (2 * variance_q))
            assert score[b, j].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_simplified_accepts_below_bias_times_the_ratio(case):
    proposals, target = case
    score = Simplified(0.8).judge(proposals, target, torch.full((2, 3), 0.5)).score
    # u half and twice the ratio, which a bias of 4 turns round
    for factor, bias, accepted in ((0.5, 1.0, True), (2.0, 1.0, False), (2.0, 4.0, True), (0.5, 0.25, False)):
        shifted = Simplified(0.8, bias=bias * math.exp(-score[0, 0].item()))
        uniform = torch.full((2, 3), 0.25 * factor)
        rule = Simplified(0.8, bias=0.25 * bias * math.exp(-score[0, 0].item()))
        assert bool(rule.judge(proposals, target, uniform).accepted[0, 0]) is accepted, (factor, bias)
        assert shifted.judge(proposals, target, torch.zeros(2, 3)).accepted[0, 0]


def test_adaptive_sigma_is_c_times_the_squared_gap(case):
    proposals, target = case
    gap = (proposals.mean - target.mean[:, :3]).square().mean((2, 3))
    adaptive = Simplified(9.9, sigma_mode="adaptive", adapt_c=4.0).judge(proposals, target, torch.rand(2, 3)).score
    fixed = Simplified(math.sqrt(4 * gap[1, 2])).judge(proposals, target, torch.rand(2, 3)).score
    assert adaptive[1, 2].item() == pytest.approx(fixed[1, 2].item(), rel=1e-4)


def test_adaptive_sigma_survives_identical_models(case):
    proposals, _ = case
    same = prediction(torch.cat([proposals.mean, proposals.mean[:, :1]], dim=1))
    judged = Simplified(1.0, sigma_mode="adaptive").judge(proposals, same, torch.rand(2, 3))
    assert not judged.score.isnan().any()


def test_mse_tolerance_looks_at_the_patch_that_is_emitted(case):
    proposals, target = case
    error = (proposals.patches - target.mean[:, :3]).square().mean((2, 3))
    limit = error.median().item()
    accepted = Simplified(1e-3, mse_tol=limit).judge(proposals, target, torch.rand(2, 3)).accepted
    assert torch.equal(accepted, error <= limit)
    assert not Simplified(1e-3, mse_tol=0.0).judge(proposals, target, torch.rand(2, 3)).accepted.any()


def test_tolerance_measures_the_gap_in_window_deviations(case):
    proposals, target = case
    scale = torch.rand(2, 4, 1, 5) + 0.5
    judged = Tolerance(1.0).judge(proposals, prediction(target.mean, scale=scale))
    expected = (((proposals.mean - target.mean[:, :3]) / scale[:, :3]) ** 2).mean((2, 3)).sqrt()
    torch.testing.assert_close(judged.score, expected)
    assert torch.equal(judged.accepted, expected <= 1.0)


def test_tolerance_emits_the_targets_mean(case):
    proposals, target = case
    assert torch.equal(Tolerance(9.0).accepted_patches(proposals, target), target.mean[:, :3])


def test_mean_emission_draws_nothing_into_the_forecast(case):
    proposals, target = case
    rule = Simplified(0.5, emit="mean")
    drawn = rule.propose(prediction(proposals.mean, proposals.logvar), torch.ones_like(proposals.mean))
    assert torch.equal(drawn.patches, proposals.mean) and not torch.equal(drawn.judged, proposals.mean)
    assert torch.equal(rule.own_patch(target, torch.ones_like(target.mean)), target.mean)


@pytest.mark.parametrize("stochastic", [True, False])
def test_proposals_and_own_patches_have_the_stated_law(stochastic):
    """Mean and standard deviation of 40,000 draws within 5 standard errors: false alarms below 1 in 100,000."""
    mean, sigma, draws = torch.tensor(1.5), 0.4, 40_000
    shape = (draws, 1, 1, 1)
    logvar = torch.full(shape, 2 * math.log(0.7)) if stochastic else None
    eps = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    rule = Simplified(sigma)
    x = rule.propose(prediction(mean.expand(shape), logvar), eps).patches
    own = rule.own_patch(prediction(mean.expand(shape)), eps)
    for sample, deviation in ((x, 0.7 if stochastic else sigma), (own, sigma)):
        assert abs(sample.mean() - mean) < 5 * deviation / math.sqrt(draws)
        assert abs(sample.std() - deviation) < 5 * deviation / math.sqrt(2 * draws)


def test_noise_belongs_to_a_position():
    context = torch.zeros(3, 8, 2)
    noise = Noise.draw(context, 4, 8, torch.Generator().manual_seed(0))
    part = noise.at(torch.tensor([2, 0]), torch.tensor([1, 3]), 3)
    assert torch.equal(part.proposal[0], noise.proposal[2, 1:4])
    assert torch.equal(part.uniform[0], noise.uniform[2, 1:4])
    # past the end nothing is needed; the last position stands in
    assert torch.equal(part.target[1], noise.target[0, [3, 3, 3]])
    assert not torch.equal(noise.proposal, noise.target)


def test_a_gap_of_exactly_the_tolerance_is_accepted():
    half = torch.full((1, 1, 4, 2), 0.5)
    judgement = Tolerance(0.5).judge(Proposals.of_mean(half), prediction(torch.zeros(1, 2, 4, 2)))
    assert judgement.accepted.all() and judgement.score.item() == 0.5


def test_temperature_scales_the_adaptive_variance_too(case):
    proposals, target = case
    proposals = Proposals(proposals.patches, proposals.judged, proposals.mean, torch.zeros_like(proposals.mean))
    scores = [Simplified(1.0, sigma_mode="adaptive", temp=temp).judge(proposals, target, torch.rand(2, 3)).score
              for temp in (1.0, 0.5)]
    torch.testing.assert_close(scores[1], 4 * scores[0])


def test_a_draft_without_variance_samples_with_the_fixed_sigma():
    q = torch.zeros(1, 1, 4, 2)
    patches = Simplified(0.4, temp=0.5).propose(prediction(q), torch.ones_like(q)).patches
    torch.testing.assert_close(patches, torch.full_like(q, 0.2))


def test_a_gap_limit_of_zero_is_off_and_a_positive_one_adds():
    q, target = torch.zeros(1, 1, 4, 2), prediction(torch.zeros(1, 2, 4, 2))
    same = Proposals(q, q, q, torch.zeros_like(q))
    assert not Simplified(1.0, mse_tol=0.0).judge(same, target, torch.ones(1, 1)).accepted.any()
    # far from the mean, but the wide sigma's ratio accepts
    far = Proposals(q + 1, q + 1, q, torch.zeros_like(q))
    assert Simplified(1e3, mse_tol=1e-6).judge(far, target, torch.full((1, 1), 0.5)).accepted.all()


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_listed_by_its_own_name(name):
    assert RULES[name].name == name


@pytest.mark.parametrize("tol", [-1e-9, -1.0, float("nan")])
def test_a_tolerance_below_zero_is_refused(tol):
    with pytest.raises(ValueError, match="at least 0"):
        Tolerance(tol)


@pytest.mark.parametrize("make", [lambda emit: Simplified(emit=emit), lambda emit: Exact(TargetLaw.fixed(1.0), emit),
                                  lambda emit: Coupling(TargetLaw.fixed(1.0), emit)],
                         ids=["simplified", "exact", "coupling"])
def test_an_unknown_emission_is_refused(make):
    with pytest.raises(ValueError, match="sample, mean, not 'median'"):
        make("median")


@pytest.mark.parametrize("rule", [Simplified(), Exact(TargetLaw.fixed(1.0)), Coupling(TargetLaw.fixed(1.0))],
                         ids=lambda rule: rule.name)
def test_a_random_rule_without_its_numbers_says_so(case, rule):
    proposals, target = case
    for step in (lambda: rule.propose(target, None), lambda: rule.judge(proposals, target, None),
                 lambda: rule.own_patch(target.first(1), None)):
        with pytest.raises(ValueError, match="give it noise"):
            step()


# --- a rule of one's own

class Largest(MeanRule):
    """Accepts where no element is further from the target's mean than `limit`."""

    name = "largest"

    def __init__(self, limit):
        self.limit = limit

    def judge(self, proposals, prediction, uniform=None):
        score = (proposals.mean - prediction.mean[:, :proposals.mean.shape[1]]).abs().amax(dim=(2, 3))
        return Judgement(score <= self.limit, score)


def test_a_mean_rule_proposes_the_drafts_means_and_draws_nothing(case):
    proposals, _ = case
    drafted = prediction(proposals.mean, proposals.logvar)
    made = Largest(1.0).propose(drafted)
    assert not Largest.random
    for part in (made.patches, made.judged, made.mean):
        assert torch.equal(part, proposals.mean)
    assert torch.equal(made.logvar, proposals.logvar)


def test_a_mean_rule_lets_out_the_targets_means_alone(case):
    proposals, target = case
    rule, rejected = Largest(1.0), torch.tensor([True, False])
    assert torch.equal(rule.accepted_patches(proposals, target), target.mean[:, :3])
    assert torch.equal(rule.own_patch(target.first(1)), target.mean[:, :1])
    instead = rule.own_patch(target.first(1), None, proposals.at(torch.arange(2), 0), rejected)
    assert torch.equal(instead, target.mean[:, :1])
