"""Packed weights compute what plain ones compute."""
from types import SimpleNamespace

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from layers import linear
from layers.linear import PackedLinear, pack_linears


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


def test_small_weights_are_left_alone():
    model = tiny_target()
    pack_linears(model)
    assert packed_parts(model) == []


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
