"""Long passes and wide windows are worked through in parts: the result is that of one pass, the memory is linear."""
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target
from torch.utils._python_dispatch import TorchDispatchMode

from layers import attention
from layers.attention import TokenLayout
from models import cache_state
from utils import window_state
from utils.acceptance import Tolerance
from utils.lossless import Coupling
from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_speculative
from utils.target_law import TargetLaw

CAUSAL = {"norm_mode": "causal", "norm_window": 4}
PATCHES = 16
NEVER, ALWAYS = 10**9, 0


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, torch.Tensor):  # a view of few numbers that repeats them takes no memory
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return result


def limit(monkeypatch, block=10**9, pairs=2**40, copy=NEVER):
    monkeypatch.setattr(cache_state, "BLOCK_PATCHES", block)
    monkeypatch.setattr(cache_state, "WORTH_A_COPY", copy)
    monkeypatch.setattr(attention, "MOST_PAIRS", pairs)
    TokenLayout.of_window.cache_clear()


@pytest.fixture(autouse=True)
def forget_layouts():
    yield
    TokenLayout.of_window.cache_clear()


def speculate(target, draft, context, rule):
    noise = Noise.draw(context, PATCHES, PATCH, torch.Generator().manual_seed(3))
    return decode_speculative(target, draft, context, PATCHES * PATCH, rule, None, noise)


@pytest.mark.parametrize("rule", [Tolerance(0.3), Coupling(TargetLaw.fixed(0.4))])
@pytest.mark.parametrize("limits", [{"block": 1}, {"block": 2}, {"block": 5}, {"block": 5, "copy": ALWAYS},
                                    {"block": 1, "copy": ALWAYS}, {"copy": ALWAYS}, {"pairs": 300}, {"pairs": 1},
                                    {"block": 3, "pairs": 100, "copy": ALWAYS}],
                         ids=lambda limits: ",".join(f"{name} {value}" for name, value in limits.items()))
def test_a_forecast_does_not_depend_on_the_parts_it_is_made_in(series, monkeypatch, rule, limits):
    target, context = tiny_target(**CAUSAL), series(rows=5)
    draft = tiny_draft(target, distance=0.05, patches=3)
    limit(monkeypatch)
    whole, alone = speculate(target, draft, context, rule), decode_alone(target, context, PATCHES * PATCH)
    limit(monkeypatch, **limits)
    parts = speculate(target, draft, context, rule)
    torch.testing.assert_close(parts.forecast, whole.forecast, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(decode_alone(target, context, PATCHES * PATCH), alone, atol=1e-4, rtol=1e-5)
    assert torch.equal(parts.origin, whole.origin)
    assert torch.equal(parts.accepted, whole.accepted)
    assert 0 < int(whole.accepted.sum()) < int(whole.judged.sum())
    assert len(set(whole.target_passes.tolist())) > 1  # rows differ in length


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("settings", [{}, CAUSAL, {"covariate": True}])
def test_a_window_does_not_depend_on_the_parts_of_its_attention(series, monkeypatch, settings, fused):
    model, x = tiny_target(flash_attention=fused, **settings), series(rows=3)
    limit(monkeypatch)
    whole = model(x)
    limit(monkeypatch, pairs=40)  # two or three of 15 queries at a time; fewer where the rows count
    torch.testing.assert_close(model(x), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(x, newest=2), whole[:, -2 * PATCH:], atol=1e-5, rtol=0)


def test_a_cache_with_frozen_statistics_is_worked_through_in_blocks(series, monkeypatch):
    model, x = tiny_target(), series(rows=2, length=9 * PATCH)
    model.rolling = "cache"
    new = x[:, 5 * PATCH:].unflatten(1, (4, PATCH))

    def predicted():
        with torch.inference_mode():
            return model.extend(model.start(x[:, :5 * PATCH], room=4), new)
    limit(monkeypatch)
    whole = predicted()
    limit(monkeypatch, block=2)
    torch.testing.assert_close(predicted().mean, whole.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(predicted().scale, whole.scale)


def test_the_tokens_of_a_block_are_limited_for_the_whole_batch(series, monkeypatch):
    model, x = tiny_target(**CAUSAL), series(rows=5, length=8 * PATCH)
    monkeypatch.setattr(cache_state, "BLOCK_TOKENS", 2 * 5 * 3 + 1)  # two patches of 5 rows and 3 variables
    lengths, embed = [], model.embed
    monkeypatch.setattr(model, "embed",
                        lambda patches, stats: lengths.append(patches.shape[1]) or embed(patches, stats))
    decode_alone(model, x[:, :5 * PATCH], PATCH)
    assert lengths == [2, 2, 1]


@pytest.mark.parametrize("tolerance", [1e9, pytest.param(0.02, marks=pytest.mark.slow)])
def test_memory_grows_with_the_horizon_not_with_its_square(series, monkeypatch, tolerance):
    target = tiny_target(**CAUSAL)
    draft, context = tiny_draft(target), series(rows=2)
    monkeypatch.setattr(cache_state, "BLOCK_PATCHES", 4)
    monkeypatch.setattr(attention, "MOST_PAIRS", 2**10)
    largest = []
    for patches in (20, 80):
        with Largest() as seen:
            decode_speculative(target, draft, context, patches * PATCH, Tolerance(tolerance))
        largest.append(seen.elements)
    assert largest[1] < 4.5 * largest[0]


def test_windows_are_cut_when_their_turn_comes(series, monkeypatch):
    """Together they hold the series as often as a window has patches."""
    model, context = tiny_target(), series(rows=2)
    monkeypatch.setattr(window_state, "CPU_TOKENS", 5 * 3)  # one window at a time
    largest = []
    for patches in (5, 40):
        new = context[:, :PATCH, None].transpose(1, 2).expand(-1, patches, -1, -1)
        with torch.inference_mode(), Largest() as seen:
            model.extend(model.start(context, room=patches), new)
        largest.append(seen.elements)
    series_elements = 2 * (5 + 40) * PATCH * 3
    assert largest[1] <= max(largest[0], series_elements)
