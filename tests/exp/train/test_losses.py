"""Objectives against torch's own distributions and against sums written out."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from exp.train.losses import DistillationLoss, RolloutLoss, SupervisedLoss, SupervisedNLL, dropout_rate, gaussian_nll
from layers.normalisation import PatchStats
from models.config import ModelConfig
from models.timer_xl import Model
from models.timer_xl_draft import Model as DraftModel
from utils.speculative_decoder import decode_alone
from utils.target_law import TargetLaw

PATCH = 4


class Says(nn.Module):
    """A model that answers what it was told to, whatever it is asked."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = answers

    def forward(self, x):
        return self.answers[0] if len(self.answers) == 1 else self.answers

    def to_patches(self, series):
        return series[:, None]  # all steps are one patch

    def stats_of(self, patches):
        return PatchStats.identity(patches)


@pytest.fixture
def gaussians():
    generator = torch.Generator().manual_seed(0)
    mean, logvar, y = (torch.randn(5, 12, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    return mean, logvar, y


def draw(shape=(5, 12, 3), seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def teacher(dropout=0.1):
    torch.manual_seed(0)
    return Model(ModelConfig(PATCH, 16, 2, 32, e_layers=2, dropout=dropout, use_norm=True)).eval()


def plain():
    return SupervisedLoss(PATCH)


# --- the Gaussian negative log likelihood

def test_nll_equals_torchs_gaussian_nll(gaussians):
    mean, logvar, y = gaussians
    assert torch.allclose(gaussian_nll(mean, logvar, y), nn.GaussianNLLLoss(eps=0)(mean, y, logvar.exp()))


def test_nll_equals_the_density_up_to_its_constant(gaussians):
    mean, logvar, y = gaussians
    log_prob = torch.distributions.Normal(mean, torch.exp(0.5 * logvar)).log_prob(y)
    assert torch.allclose(gaussian_nll(mean, logvar, y) + 0.5 * math.log(2 * math.pi), -log_prob.mean())


def test_the_regularisation_pushes_low_log_variances_up():
    logvar = torch.tensor([-9.0, -6.0, -5.0, 0.0], requires_grad=True)
    with_reg, without = (gaussian_nll(torch.zeros(4), logvar, torch.zeros(4), reg) for reg in (0.3, 0.0))
    assert (with_reg - without).item() == pytest.approx(0.3 * (4 + 1 + 0 + 0) / 4)
    (with_reg - without).backward()
    assert logvar.grad.tolist() == pytest.approx([-0.075, -0.075, 0, 0])


def test_supervised_nll_is_of_the_data_with_its_regularisation(gaussians):
    mean, logvar, y = gaussians
    logvar = logvar - 6
    got = SupervisedNLL(0.2, patch_len=PATCH)(Says(mean, logvar), None, y)
    assert torch.allclose(got, gaussian_nll(mean, logvar, y, 0.2))
    assert not torch.allclose(got, gaussian_nll(mean, logvar, y, 0.0))


# --- what counts

@pytest.mark.parametrize("covariate", [False, True])
@pytest.mark.parametrize("training, last_token, valid_last, only_last", [
    (True, True, False, True), (True, False, True, False), (False, True, False, False), (False, False, True, True)])
def test_last_token_counts_in_training_valid_last_in_validation(covariate, training, last_token, valid_last,
                                                                only_last):
    output, y = draw(seed=1), draw(seed=2)
    loss = SupervisedLoss(PATCH, covariate, last_token, valid_last)(Says(output).train(training), None, y)
    error = (output - y).numpy() ** 2
    error = error[:, -PATCH:] if only_last else error
    error = error[..., -1:] if covariate else error
    assert loss.item() == pytest.approx(error.mean(), rel=1e-6)


def test_where_the_error_counts_a_draft_is_judged_by_its_mean():
    mean, y = draw(seed=1), draw(seed=2)
    assert plain()(Says(mean, torch.zeros_like(mean)), None, y).item() == pytest.approx(((mean - y)**2).mean().item())


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_distillation_selects_the_same_part_of_teacher_and_draft(stochastic, training):
    mean, logvar, taught = draw(seed=1), draw(seed=2), draw(seed=4)
    selection = SupervisedLoss(PATCH, covariate=True, last_token=True, valid_last=True)
    draft = Says(mean, logvar) if stochastic else Says(mean)
    loss = DistillationLoss(Says(taught), 0.0, 0.0, 0.0, selection)(draft.train(training), mean, None)
    part = (slice(None), slice(-PATCH, None), slice(-1, None))
    expected = gaussian_nll(mean[part], logvar[part], taught[part]) if stochastic \
        else (mean[part] - taught[part]).square().mean()
    assert loss.item() == pytest.approx(expected.item())


# --- distillation

def test_the_draft_learns_the_teachers_output_and_not_the_data():
    mean, taught = draw(seed=1), draw(seed=2)
    loss = DistillationLoss(Says(taught), 0.0, 0.0, 0.0, plain())
    assert loss(Says(mean).train(), mean, draw(seed=5)).item() \
        == pytest.approx((mean - taught).square().mean().item())


def test_distillation_applies_the_variance_regularisation():
    mean, logvar, taught = draw(seed=1), draw(seed=2) - 8, draw(seed=4)
    got = DistillationLoss(Says(taught), 0.4, 0.0, 0.0, plain())(Says(mean, logvar).train(), mean, None)
    assert got.item() == pytest.approx(gaussian_nll(mean, logvar, taught, 0.4).item())


def test_teacher_noise_has_the_asked_size_and_no_bias():
    zeros = torch.zeros(100, 50, 40)
    torch.manual_seed(0)
    at_zero, at_half, at_minus_half = (
        DistillationLoss(Says(zeros), 0.0, 0.3, 0.0, plain())(Says(zeros + level).train(), zeros, None).item()
        for level in (0.0, 0.5, -0.5))
    # E (level - noise)^2 = level^2 + 0.3^2; 200,000 draws give it to about 0.5 %
    assert at_zero == pytest.approx(0.09, rel=0.02)
    assert at_half == pytest.approx(0.34, rel=0.02) and at_minus_half == pytest.approx(0.34, rel=0.02)


def test_teacher_noise_is_new_in_every_step_and_absent_in_validation():
    mean, logvar, taught = draw(seed=1), draw(seed=2), draw(seed=4)
    loss, draft = DistillationLoss(Says(taught), 0.0, 0.3, 0.0, plain()), Says(mean, logvar)
    draft.train()
    assert loss(draft, mean, None) != loss(draft, mean, None)
    draft.eval()
    assert loss(draft, mean, None) == loss(draft, mean, None)


def test_the_validation_form_is_the_expectation_of_the_noisy_loss():
    mean, logvar, taught = draw(seed=1), draw(seed=2), draw(seed=4)
    loss, draft = DistillationLoss(Says(taught), 0.1, 0.7, 0.0, plain()), Says(mean, logvar)
    torch.manual_seed(0)
    noisy = np.array([loss(draft.train(), mean, None).item() for _ in range(3000)])
    expected = loss(draft.eval(), mean, None).item()
    standard_error = noisy.std() / math.sqrt(len(noisy))
    assert abs(noisy.mean() - expected) < 5 * standard_error
    # without the noise's variance it would be far off: the test can tell
    assert abs(noisy.mean() - gaussian_nll(mean, logvar, taught, 0.1).item()) > 20 * standard_error


def test_teacher_dropout_changes_its_output_in_training_only():
    x = draw((2, 3 * PATCH, 2))
    with torch.no_grad():
        calm = teacher()(x)
    loss = DistillationLoss(teacher(), 0.0, 0.0, 0.5, plain())
    draft = Says(calm)
    torch.manual_seed(0)
    first, second = (loss(draft.train(), x, None).item() for _ in range(2))
    assert first > 1e-3 and second > 1e-3 and first != second
    assert loss(draft.eval(), x, None).item() == pytest.approx(0, abs=1e-12)


def test_without_its_dropout_the_teacher_answers_as_in_testing():
    x = draw((2, 3 * PATCH, 2))
    with torch.no_grad():
        calm = teacher(0.3)(x)
    loss = DistillationLoss(teacher(0.3).train(), 0.0, 0.0, 0.0, plain())
    assert loss(Says(calm).train(), x, None).item() == pytest.approx(0, abs=1e-12)


def rates_of(model):
    return [m.p for m in model.modules() if isinstance(m, nn.Dropout)] \
        + [layer.attention.inner_attention.dropout for layer in model.blocks.attn_layers]


def test_teacher_dropout_reaches_every_dropout_and_is_undone():
    model = teacher(0.1)
    model.blocks.attn_layers[0].dropout.p = 0.25  # rates need not be equal
    before = rates_of(model)
    with dropout_rate(model, 0.5):
        assert model.training and rates_of(model) == [0.5] * 4
    assert rates_of(model) == before and 0.25 in before
    assert not model.training
    with pytest.raises(RuntimeError), dropout_rate(model, 0.5):
        raise RuntimeError("out of memory")
    assert rates_of(model) == before and not model.training


def test_the_rates_of_the_teacher_are_restored_after_a_step():
    model = teacher(0.1)
    DistillationLoss(model, 0.0, 0.0, 0.5, plain())(Says(draw((2, 8, 2))).train(), draw((2, 8, 2)), None)
    assert rates_of(model) == [0.1] * 4 and not any(m.training for m in model.modules())


def test_the_teacher_gets_no_gradient():
    model = teacher()
    answer = draw((2, 8, 2)).requires_grad_()
    DistillationLoss(model, 0.0, 0.1, 0.2, plain())(Says(answer).train(), draw((2, 8, 2)), None).backward()
    assert answer.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_skipped_patches_do_not_count():
    y = draw()
    answer = y.clone()
    answer[:, :2 * PATCH] += 100
    assert SupervisedLoss(PATCH, skip=2)(Says(answer), None, y) == 0
    assert SupervisedLoss(PATCH, skip=1)(Says(answer), None, y) > 0


# --- on-policy distillation

def pair(causal, ahead, stochastic=True):
    norm = {"norm_mode": "causal", "norm_window": 3} if causal else {}
    config = ModelConfig(PATCH, d_model=16, n_heads=2, d_ff=32, e_layers=1, dropout=0.0, use_norm=True, **norm)
    torch.manual_seed(0)
    target = Model(config).eval()
    draft = DraftModel(replace(config, draft_patches=ahead, draft_stochastic=stochastic)).eval()
    return target, draft


def forecast(target, x, patches):
    return decode_alone(target, x, patches * PATCH).clone()[:, None]


def rollout_by_hand(target, draft, x, rollout, ahead, places):
    """(mean, logvar, taught) of every patch that counts: `places` are the steps of the rollout to predict from."""
    parts = []
    for row, window in enumerate(x):
        history = window
        for _ in range(rollout):
            seen = history if target.config.causal else history[-len(window):]
            history = torch.cat([history, target(seen[None])[0, -PATCH:]])
        for place in places(row):
            start = len(window) + place * PATCH
            seen = history[:start] if draft.config.causal else history[start - len(window):start]
            mean, logvar = (part[0, -1] if ahead > 1 else part[0, -PATCH:][None] for part in draft(seen[None]))
            for j in range(min(ahead, rollout - place)):
                parts.append((mean[j], logvar[j], history[start + j * PATCH:start + (j + 1) * PATCH]))
    return (torch.stack(column) for column in zip(*parts))


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_the_draft_is_held_against_the_targets_own_forecast(causal, ahead):
    """Causal: at every place of the rollout. Window: in validation at place row % rollout."""
    target, draft = pair(causal, ahead)
    x, rollout = draw((5, 3 * PATCH, 2)), 4
    with torch.no_grad():
        got = RolloutLoss(target, 0.1, 0.3, rollout)(draft, x, forecast(target, x, rollout))
        places = (lambda row: range(rollout)) if causal else (lambda row: [row % rollout])
        mean, logvar, taught = rollout_by_hand(target, draft, x, rollout, ahead, places)
        # the noise that training would add enters a validation by its variance
        nll = 0.5 * (logvar + ((mean - taught) ** 2 + 0.3**2) / logvar.exp()).mean()
        assert got == pytest.approx(float(nll + 0.1 * torch.relu(-5 - logvar).mean()), rel=1e-4)


@pytest.mark.parametrize("causal, ahead, stochastic", [(True, 1, True), (True, 3, True), (False, 1, True),
                                                       (False, 1, False)])
def test_the_real_window_is_learned_beside_the_forecast(causal, ahead, stochastic):
    """As much as by a distillation on real windows alone; heads for later patches learn nothing there."""
    target, draft = pair(causal, ahead, stochastic=stochastic)
    x, selection = draw((5, 3 * PATCH, 2)), SupervisedLoss(PATCH)
    with torch.no_grad():
        y = torch.cat([target(x)[:, None], forecast(target, x, 4)], dim=2)
        after = RolloutLoss(target, 0.1, 0.3, 4)(draft, x, y[:, :, 3 * PATCH:])
        first = draft if ahead == 1 else Says(*(part[:, :, 0].flatten(1, 2) for part in draft(x, 3))).eval()
        within = DistillationLoss(target, 0.1, 0.3, 0.0, selection)(first, x, x)
        both = RolloutLoss(target, 0.1, 0.3, 4, along=0.7)(draft, x, y)
    assert both == pytest.approx(float(after + 0.7 * within), rel=1e-5) and within > 0


@pytest.mark.parametrize("causal", [True, False])
def test_on_policy_training_reaches_the_draft_and_adds_noise(causal):
    target, draft = pair(causal, 3)
    x = draw((5, 3 * PATCH, 2))
    losses = []
    for noise in (0.0, 0.0, 0.7):
        torch.manual_seed(1)
        losses.append(RolloutLoss(target, 0.0, noise, 4)(draft.train(), x, forecast(target, x, 4)))
    assert losses[0] == losses[1] != losses[2]
    losses[0].backward()
    assert draft.head_mean.weight.grad.abs().sum() > 0 and target.head.weight.grad is None


def test_a_deterministic_draft_learns_the_forecast_by_squared_error():
    target, draft = pair(True, 1, stochastic=False)
    x = draw((2, 3 * PATCH, 2))
    with torch.no_grad():
        series = torch.cat([x, forecast(target, x, 2)[:, 0]], dim=1)
        expected = (draft(series[:, :-PATCH])[:, -2 * PATCH:] - series[:, -2 * PATCH:]).square().mean()
        loss = RolloutLoss(target, 0.0, 0.0, 2)(draft, x, forecast(target, x, 2))
        assert loss == pytest.approx(float(expected), rel=1e-4)


# --- noise by the law of a calibrated target

LEADS = torch.linspace(0.2, 1.4, PATCH * 2).view(PATCH, 2)
CALIBRATED = TargetLaw(LEADS, relative=True)


def stdevs(target, series, ends):
    """The stdev that a window or a trailing window of 3 patches ending at each of `ends` gives: [B, len(ends), C]."""
    length = (3 if target.config.causal else series.shape[1] // PATCH) * PATCH
    parts = [series[:, max(0, end - length):end] for end in ends]
    return torch.stack([(part.var(dim=1, unbiased=False) + 1e-5).sqrt() for part in parts], dim=1)


def taught_by(loss, x, training=False):
    """What a draft learns of every element of x, and the variance around it: read from the gradients of its NLL."""
    mean, logvar = (torch.zeros(x.shape, requires_grad=True) for _ in range(2))
    loss(Says(mean, logvar).train(training), x, None).backward()
    taught = -x.numel() * mean.grad  # of (mean - taught)^2 / 2
    squares = 1 - 2 * x.numel() * logvar.grad  # of (logvar + squares / exp(logvar)) / 2
    return taught, squares - taught.square()


@pytest.mark.parametrize("causal", [True, False])
def test_calibrated_noise_is_in_the_units_of_each_prediction(causal):
    target, _ = pair(causal, 1)
    x = draw((3, 4 * PATCH, 2)) * torch.tensor([1.0, 20.0])
    (taught, variance), (calm, nothing) = (
        taught_by(DistillationLoss(target, 0.0, noise, 0.0, plain()), x) for noise in (CALIBRATED, 0.0))
    torch.testing.assert_close(taught, calm)  # a validation learns the mean, the noise is in the variance
    torch.testing.assert_close(calm, target(x).detach())
    assert (nothing.abs() < 1e-4 * calm.square().clamp(min=1)).all()
    ends = [(t + 1) * PATCH if causal else 4 * PATCH for t in range(4)]
    expected = (stdevs(target, x, ends)[:, :, None] * LEADS).square()
    torch.testing.assert_close(variance.unflatten(1, (4, PATCH)), expected, rtol=1e-4, atol=0)
    torch.manual_seed(0)
    loss = DistillationLoss(target, 0.0, CALIBRATED, 0.0, plain())
    noisy, _ = taught_by(loss, x.repeat(4000, 1, 1), training=True)
    noisy = noisy.unflatten(0, (4000, 3))
    torch.testing.assert_close(noisy.var(dim=0), variance, rtol=0.12, atol=0)  # 5.4 standard errors of each of 96


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_calibrated_noise_of_a_rollout_is_in_the_contexts_unit(causal, ahead, monkeypatch):
    target, draft = pair(causal, ahead)
    x, rollout, units, variance = draw((5, 3 * PATCH, 2)), 4, [], TargetLaw.variance
    monkeypatch.setattr(TargetLaw, "variance", lambda law, unit, P: units.append(unit) or variance(law, unit, P))
    loss = RolloutLoss(target, 0.0, CALIBRATED, rollout)
    with torch.no_grad():
        y = forecast(target, x, rollout)
        calm = loss(draft.eval(), x, y)
        torch.testing.assert_close(units, [stdevs(target, x, [3 * PATCH])[:, :, None]])
        torch.manual_seed(0)
        draft.train()
        noisy = torch.stack([loss(draft, x.repeat(40, 1, 1), y.repeat(40, 1, 1, 1)) for _ in range(20)])
    if causal:  # otherwise training draws the place at random and validation does not
        assert abs(noisy.mean() - calm) < 5 * noisy.std() / 20**0.5
        assert abs(noisy.mean() - RolloutLoss(target, 0.0, 0.0, rollout)(draft.eval(), x, y)) > noisy.std()


@pytest.mark.parametrize("causal", [True, False])
def test_a_draft_sees_sampled_paths_and_learns_the_targets_means(causal):
    target, draft = pair(causal, 1, stochastic=False)
    x = draw((4, 3 * PATCH, 2))
    path, said = forecast(target, x, 2) + 0.5, torch.randn(4, 1, 2 * PATCH, 2)
    series = torch.cat([x, path[:, 0]], dim=1)
    errors = []
    for row in range(4):
        for place in range(2) if causal else [row % 2]:
            seen = series[row:row + 1, (0 if causal else place * PATCH):(3 + place) * PATCH]
            with torch.no_grad():
                errors.append(draft(seen)[0, -PATCH:] - said[row, 0, place * PATCH:(place + 1) * PATCH])
    with torch.no_grad():
        loss = RolloutLoss(target, 0.0, 0.0, 2)(draft, x, torch.cat([path, said], dim=1))
    assert loss == pytest.approx(float(torch.stack(errors).square().mean()), rel=1e-4)
