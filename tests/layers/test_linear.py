"""Packed weights compute what plain ones compute."""
from types import SimpleNamespace

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from layers import linear
from layers.linear import PackedLinear, can_pack, pack_linears
from utils.speculative_decoder import decode_alone


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(linear, "PACKED_FROM", 0)


def packed_parts(model):
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("changes", [{}, {"norm_mode": "causal", "norm_window": 5}])
def test_a_packed_model_says_what_it_said(everything_is_large, series, changes):
    target, x = tiny_target(**changes), series()
    draft = tiny_draft(target, patches=2)
    for model in (target, draft):
        with torch.inference_mode():
            before = model(x), model.extend(model.start(x, room=0)).mean
            pack_linears(model)
            after = model(x), model.extend(model.start(x, room=0)).mean
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
        # embedding, heads, and per layer four projections and two of the feed-forward
        assert len(packed_parts(model)) == 1 + (1 if model is target else 2) + 2 * 6


def test_a_small_call_is_computed_as_ever():
    weight, bias = torch.randn(32, 64), torch.randn(32)
    for dtype in (torch.float32, torch.bfloat16):
        if not can_pack(dtype):
            continue
        part = PackedLinear(weight, bias, dtype)
        few, many = torch.randn(2, 3, 64), torch.randn(2, 300, 64)
        plain = torch.nn.functional.linear(many, weight, bias)
        with torch.no_grad():
            assert torch.equal(part(few), torch.nn.functional.linear(few, weight, bias))
            made = part(many)
        assert made.dtype == torch.float32
        slope = torch.func.jvp(part, (many,), (torch.ones_like(many),))[1]
        torch.testing.assert_close(slope, weight.sum(1).expand_as(slope), atol=1e-4, rtol=1e-4)
        close = 1e-5 if dtype == torch.float32 else 0.02
        deviation = float((made - plain).square().mean().sqrt() / plain.std())
        assert deviation < close and (dtype == torch.float32 or deviation > 1e-4)
    assert PackedLinear(torch.randn(1024, 1024), None).plain is None  # one row gains too: no second copy


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this processor does not compute in bfloat16")
@pytest.mark.parametrize("changes", [{}, {"norm_mode": "causal", "norm_window": 5}])
def test_half_weights_forecast_nearly_the_same(everything_is_large, series, changes):
    target, x = tiny_target(**changes), series()
    before = decode_alone(target, x, 4 * PATCH)
    pack_linears(target, torch.bfloat16)
    after = decode_alone(target, x, 4 * PATCH)
    deviation = float((after - before).square().mean().sqrt() / before.std())
    assert 1e-5 < deviation < 0.02


@pytest.mark.parametrize("lacking", ["operators", "library"])
def test_a_torch_without_the_operators_computes_unpacked(everything_is_large, series, monkeypatch, lacking):
    if lacking == "operators":
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = tiny_target()
    pack_linears(model)
    assert packed_parts(model) == [] and model(series())[:, -PATCH:].isfinite().all()


def test_a_teacher_with_packed_weights_still_teaches(everything_is_large, series):
    """Distillation runs the loaded target in training mode for its dropout, and the draft's gradient passes by it."""
    from exp.train.losses import DistillationLoss, SupervisedLoss
    teacher, draft, x = tiny_target(), tiny_draft(tiny_target()), series()
    pack_linears(teacher)
    loss = DistillationLoss(teacher, 0.01, 0.05, 0.2, SupervisedLoss(PATCH))(draft.train(), x, x)
    loss.backward()
    assert draft.head_mean.weight.grad.abs().sum() > 0
