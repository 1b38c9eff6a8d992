"""The loss on how a draft's answer changes with its context, against passes over whole series, row by row."""
from dataclasses import replace

import pytest
import torch

from exp.train.losses import APART_FLOOR, HINGE, RolloutLoss
from models.config import ModelConfig
from models.timer_xl import Model
from models.timer_xl_draft import Model as DraftModel
from utils.speculative_decoder import decode_alone, decode_parareal

PATCH, CONTEXT, ROLLOUT = 4, 3, 4


def pair(causal, ahead=1, covariate=False):
    norm = {"norm_mode": "causal", "norm_window": CONTEXT} if causal else {}
    config = ModelConfig(PATCH, d_model=16, n_heads=2, d_ff=32, e_layers=1, dropout=0.0, use_norm=True,
                         covariate=covariate, **norm)
    torch.manual_seed(0)
    return Model(config).eval(), DraftModel(replace(config, draft_patches=ahead, draft_stochastic=True)).eval()


def windows(rows, variables=2):
    return torch.randn(rows, CONTEXT * PATCH, variables, generator=torch.Generator().manual_seed(3)).cumsum(dim=1)


def next_patch(model, series):
    """The mean of the patch after a series [1, L, C], by one pass over what the model looks at."""
    seen = series if model.config.causal else series[:, -CONTEXT * PATCH:]
    output = model(seen)
    mean = output[0] if isinstance(output, tuple) else output
    return mean[:, -PATCH:] if mean.dim() == 3 else mean[:, -1, 0]


def rolled(model, window):
    """[1, ROLLOUT * P, C], one patch a pass."""
    series = window
    for _ in range(ROLLOUT):
        series = torch.cat([series, next_patch(model, series)], dim=1)
    return series[:, window.shape[1]:]


def answer_by_hand(target, draft, x, paths, places, last_only=False):
    """The mean over the places of every row, but the first, where both contexts are the same.

    paths: what the draft sees after each window, for its target's forecast.
    """
    terms = []
    for row, window in enumerate(x):
        window = window[None]
        unit = (window.var(dim=1, unbiased=False) + 1e-5).sqrt()
        p, q = paths[row:row + 1], rolled(draft, window)
        for place in places(row):
            if place == 0:
                continue
            before_p, before_q = p[:, :place * PATCH], q[:, :place * PATCH]
            at_p, at_q = torch.cat([window, before_p], dim=1), torch.cat([window, before_q], dim=1)
            gap = (next_patch(draft, at_q) - next_patch(draft, at_p)
                   - next_patch(target, at_q) + next_patch(target, at_p)) / unit
            apart = ((before_q - before_p) / unit).square().mean()
            terms.append((gap[..., -1:] if last_only else gap).square().mean() / (apart + APART_FLOOR))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("causal, ahead, covariate", [(True, 1, False), (True, 3, False), (False, 1, False),
                                                      (False, 3, False), (False, 1, True)])
def test_it_is_the_change_of_answer_relative_to_the_change_of_context(causal, ahead, covariate):
    """Causal: at every place of the rollout. Window: in validation at place row % rollout."""
    target, draft = pair(causal, ahead, covariate)
    x = windows(5)
    y = decode_alone(target, x, ROLLOUT * PATCH).clone()[:, None]
    with torch.no_grad():
        plain = RolloutLoss(target, 0.1, 0.3, ROLLOUT, covariate)(draft, x, y)
        both = RolloutLoss(target, 0.1, 0.3, ROLLOUT, covariate, answer=0.7)(draft, x, y)
        places = (lambda row: range(ROLLOUT)) if causal else (lambda row: [row % ROLLOUT])
        wanted = answer_by_hand(target, draft, x, y[:, 0], places, last_only=covariate)
    assert wanted > 1e-3
    assert both - plain == pytest.approx(0.7 * float(wanted), rel=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_a_large_step_asks_for_the_answers_of_some_windows(causal, monkeypatch):
    """A validation asks for all of them."""
    target, draft = pair(causal)
    x = windows(5)
    y = decode_alone(target, x, ROLLOUT * PATCH).clone()[:, None]
    plain, both = (RolloutLoss(target, 0.0, 0.0, ROLLOUT, answer=weight) for weight in (0.0, 1.0))

    def answers(rows, training):
        draft.train(training)
        found = []
        for loss in (plain, both):
            torch.manual_seed(1)  # the same places
            found.append(loss(draft, x[:rows], y[:rows]))
        return float(found[1] - found[0])
    with torch.no_grad():
        everybody = answers(5, training=False)
        monkeypatch.setattr("exp.train.losses.MOST_ASKED", 2)
        assert answers(5, training=False) == everybody
        if causal:
            assert answers(5, training=True) == pytest.approx(answers(2, training=False), rel=1e-3)
        assert answers(5, training=True) != pytest.approx(everybody, rel=1e-3)


def test_along_a_sampled_path_the_targets_means_are_its_answer():
    target, draft = pair(causal=True)
    x = windows(3)
    path = decode_alone(target, x, ROLLOUT * PATCH) + 0.3
    series = torch.cat([x, path], dim=1)
    with torch.no_grad():
        means = torch.cat([next_patch(target, series[:, :length]) for length in
                           range(CONTEXT * PATCH, (CONTEXT + ROLLOUT) * PATCH, PATCH)], dim=1)
        y = torch.stack([path, means], dim=1)
        plain, both = (RolloutLoss(target, 0.0, 0.0, ROLLOUT, answer=weight)(draft, x, y) for weight in (0.0, 1.0))
        wanted = answer_by_hand(target, draft, x, path, lambda row: range(ROLLOUT))
    assert both - plain == pytest.approx(float(wanted), rel=1e-3)


def test_a_draft_that_is_its_target_loses_nothing():
    """Its proposals are the target's forecast, so no context has changed."""
    target, draft = pair(causal=True)
    with torch.no_grad():
        for name, weights in draft.named_parameters():
            weights.copy_(dict(target.named_parameters())[name.replace("head_mean", "head")]
                          if "logvar" not in name else weights)
        x = windows(3)
        y = decode_alone(target, x, ROLLOUT * PATCH).clone()[:, None]
        plain, both = (RolloutLoss(target, 0.0, 0.0, ROLLOUT, answer=weight)(draft, x, y) for weight in (0.0, 9.0))
    assert both == pytest.approx(float(plain), abs=1e-6)


def beyond_by_hand(target, draft, x, paths, places, tolerance, last_only=False):
    """What first and corrected gaps exceed the tolerance by, each averaged over the places of every row."""
    first, corrected = [], []
    for row, window in enumerate(x):
        window = window[None]
        unit = (window.var(dim=1, unbiased=False) + 1e-5).sqrt()
        p, q = paths[row:row + 1], rolled(draft, window)
        for place in places(row):
            at_p, at_q = (torch.cat([window, path[:, :place * PATCH]], dim=1) for path in (p, q))
            gap = (next_patch(draft, at_p) - next_patch(target, at_p)) / unit
            change = gap - (next_patch(draft, at_q) - next_patch(target, at_q)) / unit
            for part, into in ((gap, first), (change, corrected)):
                rms = (part[..., -1:] if last_only else part).square().mean().sqrt()
                into.append((rms - tolerance).clamp(min=0))
    return torch.stack(first).mean() + torch.stack(corrected).mean()


@pytest.mark.parametrize("causal, ahead, covariate", [(True, 1, False), (True, 3, False), (False, 1, True)])
def test_a_hinge_counts_what_exceeds_the_tolerance_first_and_corrected(causal, ahead, covariate):
    target, draft = pair(causal, ahead, covariate)
    x = windows(5)
    y = decode_alone(target, x, ROLLOUT * PATCH).clone()[:, None]
    with torch.no_grad():
        answer, both = (RolloutLoss(target, 0.1, 0.3, ROLLOUT, covariate, answer=0.7, hinge=hinge)(draft, x, y)
                        for hinge in (0.0, 0.2))
        places = (lambda row: range(ROLLOUT)) if causal else (lambda row: [row % ROLLOUT])
        wanted = beyond_by_hand(target, draft, x, y[:, 0], places, 0.2, last_only=covariate)
        reached = RolloutLoss(target, 0.1, 0.3, ROLLOUT, covariate, answer=0.7, hinge=100.0)(draft, x, y)
    assert wanted > 0.05 and reached == answer
    assert both - answer == pytest.approx(HINGE * float(wanted), rel=1e-3)


@pytest.mark.parametrize("causal", [True, False])
def test_a_hinge_has_a_gradient_where_a_gap_is_nothing(causal, monkeypatch):
    """In a step that asks for the answers of some windows only."""
    monkeypatch.setattr("exp.train.losses.MOST_ASKED", 2)
    target, draft = pair(causal)
    x = windows(3)
    y = decode_alone(target, x, ROLLOUT * PATCH).clone()[:, None]
    RolloutLoss(target, 0.0, 0.0, ROLLOUT, answer=1.0, hinge=1e-9)(draft.train(), x, y).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in draft.parameters())


def test_training_on_it_makes_parareal_contract_faster():
    """Nothing else is learned: the weight is so large that the likelihood does not count."""
    target, draft = pair(causal=True)
    x = windows(64)
    y = decode_alone(target, x, ROLLOUT * PATCH).clone()
    loss = RolloutLoss(target, 0.0, 0.0, ROLLOUT, answer=1e4)
    before = left_after_two_passes(target, draft, x, y)
    optimizer = torch.optim.Adam(draft.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss(draft.train(), x, y[:, None]).backward()
        optimizer.step()
    after = left_after_two_passes(target, draft.eval(), x, y)
    assert all(parameter.grad is None for parameter in target.parameters())
    assert after < 0.5 * before


def left_after_two_passes(target, draft, x, y):
    """The deviation from the target after two passes, in units of that after one."""
    one, two = (decode_parareal(target, draft, x, ROLLOUT * PATCH, passes).forecast - y for passes in (1, 2))
    return float(two.square().mean().sqrt() / one.square().mean().sqrt())
