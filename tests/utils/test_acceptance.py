"""The rules element by element, and the laws of what they draw."""
import math
from types import SimpleNamespace

import pytest
import torch

from models.prediction import Prediction
from utils.acceptance import Simplified, Tolerance, make_rule
from utils.proposals import Noise, Proposals
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


def test_mse_tolerance_accepts_by_the_patch_that_would_be_emitted(case):
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


def test_a_draft_without_a_variance_head_samples_with_the_fixed_sigma_and_temperature():
    q = torch.zeros(1, 1, 4, 2)
    patches = Simplified(0.4, temp=0.5).propose(prediction(q), torch.ones_like(q)).patches
    torch.testing.assert_close(patches, torch.full_like(q, 0.2))


def test_a_squared_gap_of_zero_switches_the_threshold_off_and_a_positive_one_only_adds():
    q, target = torch.zeros(1, 1, 4, 2), prediction(torch.zeros(1, 2, 4, 2))
    same = Proposals(q, q, q, torch.zeros_like(q))
    assert not Simplified(1.0, mse_tol=0.0).judge(same, target, torch.ones(1, 1)).accepted.any()
    # far from the mean, but the wide sigma's ratio accepts
    far = Proposals(q + 1, q + 1, q, torch.zeros_like(q))
    assert Simplified(1e3, mse_tol=1e-6).judge(far, target, torch.full((1, 1), 0.5)).accepted.all()


def test_every_flag_of_a_rule_reaches_it():
    args = SimpleNamespace(spec_tol=0.1, spec_sigma=0.2, spec_emit="mean", spec_accept_bias=3.0, spec_temp=0.7,
                           spec_sigma_mode="adaptive", spec_sigma_adapt_c=5.0, spec_accept_mse_tol=0.6)
    expected = Simplified(sigma=0.2, emit="mean", bias=3.0, sigma_mode="adaptive", adapt_c=5.0, mse_tol=0.6, temp=0.7)
    assert vars(make_rule("simplified", args)) == vars(expected)
    assert make_rule("simplified", args, emit="sample").emit == "sample"
    assert make_rule("tolerance", args).tol == 0.1
    for name in ("exact", "coupling"):
        rule = make_rule(name, args)
        assert (rule.name, rule.emit, rule.law.factor.item()) == (name, "mean", pytest.approx(0.2 * 0.7))
        assert make_rule(name, args, "sample").emit == "sample"
        law = TargetLaw.fixed(0.3)
        assert make_rule(name, args, law=law).law is law
    assert make_rule("exact", args).temp == 0.7


def test_a_rule_that_is_registered_without_settings_is_not_taken_for_another():
    args = SimpleNamespace(spec_sigma=0.2, spec_temp=1.0, spec_emit="mean")
    with pytest.raises(ValueError, match="'newest'"):
        make_rule("newest", args)
