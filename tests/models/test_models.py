"""Target and draft compute what the public implementation computes."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import PATCH, TINY, public_outputs, tiny_draft, tiny_target
from reference.timer_xl import reference_forward

from layers.normalisation import PatchStats
from models import timer_xl, timer_xl_draft
from models.config import ModelConfig
from utils.speculative_decoder import decode_alone


def excite(model):
    """Random biases everywhere: at their initial zeros a mistake in them would not show."""
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("changes", [{}, {"use_norm": False, "activation": "gelu"}, {"covariate": True},
                                     {"n_heads": 4}, {"norm_mode": "causal", "norm_window": 5},
                                     {"norm_mode": "causal", "norm_window": 2},
                                     {"norm_mode": "causal", "norm_window": 3, "covariate": True}])
def test_target_agrees_with_the_slow_reference(series, changes):
    model, x = excite(tiny_target(**changes)), series(rows=2)
    with torch.no_grad():
        fast = model(x)
    slow = np.stack([reference_forward(model, window)[0].reshape(window.shape) for window in x.double().numpy()])
    np.testing.assert_allclose(fast.numpy(), slow, atol=1e-5)


def test_stochastic_draft_agrees_with_the_slow_reference(series):
    draft, x = excite(tiny_draft(tiny_target())), series(rows=2)
    with torch.no_grad():
        fast = draft(x)
    slow = [reference_forward(draft, window, ("head_mean", "head_logvar")) for window in x.double().numpy()]
    for part in (0, 1):
        np.testing.assert_allclose(fast[part].numpy(), np.stack([s[part] for s in slow]).reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"norm_mode": "causal", "norm_window": 3}])
def test_heads_of_several_patches_agree_with_the_reference(series, changes):
    draft, x = excite(tiny_draft(tiny_target(**changes), patches=3)), series(rows=2)
    with torch.no_grad():
        fast = draft(x)
    for part, head in enumerate(("head_mean", "head_logvar")):
        slow = np.stack([reference_forward(draft, window, (head,))[0] for window in x.double().numpy()])
        assert fast[part].shape == (2, 5, 3, PATCH, 3)
        np.testing.assert_allclose(fast[part].flatten(2, 3).numpy(), slow, atol=1e-5)


def test_causal_statistics_stay_exact_far_from_zero(series):
    """Level 1000 beside a spread of 0.1: sums of squares would lose the spread in float32."""
    x = 1000 + 0.1 * series(rows=2)
    patches = x.unflatten(1, (-1, PATCH))
    stats = PatchStats.causal_of(patches, window=3)
    for t in range(5):
        part = x[:, max(0, t - 2) * PATCH:(t + 1) * PATCH].double()
        torch.testing.assert_close(stats.mean[:, t, 0].double(), part.mean(1), rtol=1e-6, atol=0)
        expected = torch.sqrt(part.var(1, unbiased=False) + 1e-5)
        torch.testing.assert_close(stats.stdev[:, t, 0].double(), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["timer_xl_multivariate", "timer_xl_no_norm", "timer_xl_draft_stochastic"])
def test_public_outputs_are_reproduced(name):
    saved = public_outputs(name)
    config = ModelConfig.from_mapping(json.loads(str(saved["config"])))
    model = (timer_xl_draft if "draft" in name else timer_xl).Model(config).eval()
    model.load_state_dict({key[6:]: torch.from_numpy(saved[key]) for key in saved.files if key.startswith("state/")})
    with torch.no_grad():
        outputs = model(torch.from_numpy(saved["x"]))
    outputs = dict(zip(("mean", "logvar"), outputs)) if isinstance(outputs, tuple) else {"y": outputs}
    for key, output in outputs.items():
        np.testing.assert_allclose(output.numpy(), saved[key], atol=1e-5)


@pytest.mark.parametrize("covariate", [False, True])
def test_the_newest_patch_alone_is_the_last_of_forward(series, covariate):
    target, x = excite(tiny_target(covariate=covariate)), series()
    draft = excite(tiny_draft(target))
    with torch.no_grad():
        got = target.extend(target.start(x, room=0))
        torch.testing.assert_close(got.mean[:, 0], target(x)[:, -PATCH:], atol=1e-5, rtol=0)
        assert got.logvar is None
        torch.testing.assert_close(got.scale[:, 0], torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5))
        got = draft.extend(draft.start(x, room=0))
        torch.testing.assert_close(got.mean[:, 0], draft(x)[0][:, -PATCH:], atol=1e-5, rtol=0)
        torch.testing.assert_close(got.logvar[:, 0], draft(x)[1][:, -PATCH:], atol=1e-5, rtol=0)


def test_fused_and_explicit_attention_agree(series):
    fused, x = excite(tiny_target()), series()
    explicit = tiny_target(flash_attention=False)
    explicit.load_state_dict(fused.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fused(x), explicit(x), atol=1e-5, rtol=0)
        weights = fused.attention(x)
    assert len(weights) == fused.config.e_layers
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(weights[0].shape[:-1]))


@pytest.mark.parametrize("changes", [{"use_norm": False}, {"norm_mode": "causal", "norm_window": 2}])
def test_a_later_patch_changes_no_earlier_output(series, changes):
    model, x = excite(tiny_target(**changes)), series()
    changed = x.clone()
    changed[:, 3 * PATCH:] += 1
    with torch.no_grad():
        before, after = model(x), model(changed)
    torch.testing.assert_close(before[:, :3 * PATCH], after[:, :3 * PATCH])
    assert not torch.allclose(before[:, 3 * PATCH:], after[:, 3 * PATCH:])


def test_training_works_after_a_forecast_in_inference_mode(series):
    """Token layouts are kept between calls: one made in inference mode must not poison a later training."""
    model, x = tiny_target(), series(variables=4)
    with torch.inference_mode():
        model.extend(model.start(x, room=0))
    model(x).sum().backward()


@pytest.mark.parametrize("changes", [{}, {"norm_mode": "causal", "norm_window": 3}])
def test_a_model_wholly_in_bfloat16_forecasts_nearly_the_same(series, changes, monkeypatch):
    """As `halve` leaves it on a GPU; on this device it is slower."""
    target, x = tiny_target(**changes), series()
    draft = tiny_draft(target)
    before = [decode_alone(model, x, 4 * PATCH) for model in (target, draft)]
    for model, expected in zip((target, draft), before):
        monkeypatch.setattr(model, "parameters", lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
        model.halve()
        assert {parameter.dtype for _, parameter in model.named_parameters()} == {torch.bfloat16}
        deviation = float((decode_alone(model, x, 4 * PATCH) - expected).square().mean().sqrt() / expected.std())
        assert 1e-5 < deviation < 0.02
        assert decode_alone(model, x, 4 * PATCH).dtype == torch.float32


def test_log_variance_starts_at_minus_two_and_is_clamped(series):
    config = replace(TINY, draft_stochastic=True, use_norm=False)
    draft = timer_xl_draft.Model(config).eval()
    assert torch.all(draft.head_logvar.bias == -2)
    with torch.no_grad():
        draft.head_logvar.bias.fill_(50)
        assert torch.all(draft(series())[1] == 10)
        draft.head_logvar.bias.fill_(-50)
        assert torch.all(draft(series())[1] == -10)


def test_log_variance_is_clamped_in_normalised_units(series):
    draft, x = tiny_draft(tiny_target()), 1e3 * series()
    stdev = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    with torch.no_grad():
        draft.head_logvar.bias.fill_(50)
        torch.testing.assert_close(draft(x)[1], (10 + 2 * stdev.log()).expand_as(x))


def test_dropout_acts_on_attention_and_thrice_in_a_layer(series):
    model, calls = tiny_target(dropout=0.5).train(), []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
            module.register_forward_hook(lambda *_: calls.append(1))
    assert not torch.equal(model(series()), model(series()))  # by the attention weights alone
    assert len(calls) == 2 * 3 * model.config.e_layers
