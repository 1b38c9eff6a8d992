"""The library asks a model and its states for the interface, and for nothing else."""
import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from utils.acceptance import Simplified, Tolerance
from utils.calibration import next_patch_residuals
from utils.interface import Prediction
from utils.planner import make_plan
from utils.proposals import Noise
from utils.speculative_decoder import decode_alone, decode_speculative, sample_alone
from utils.target_law import TargetLaw

HORIZON = 4 * PATCH + 3
CAUSAL = {"norm_mode": "causal", "norm_window": 3}


class OnlyState:
    """A state with the four things that the library may use."""

    def __init__(self, state):
        self.whole = lambda: state

    @property
    def unit(self):
        return self.whole().unit

    @unit.setter
    def unit(self, unit):
        self.whole().unit = unit

    def append(self, patches):
        self.whole().append(patches)

    def rollback(self, lengths):
        self.whole().rollback(lengths)

    def select(self, rows):
        self.whole().select(rows)


class OnlyModel:
    def __init__(self, model):
        self.patch_len, self.patches_ahead, self.whole = model.patch_len, model.patches_ahead, lambda: model

    def start(self, context, room):
        return OnlyState(self.whole().start(context, room))

    def extend(self, state, patches=None):
        return self.whole().extend(state.whole(), patches)

    def fan_out(self, state, samples):
        self.whole().fan_out(state.whole(), samples)


@pytest.fixture(params=[{}, CAUSAL], ids=["window", "cache"])
def pair(request):
    target = tiny_target(**request.param)
    return target, tiny_draft(target, patches=2)


def test_a_model_is_decoded_and_sampled_by_its_interface(pair, series):
    target, context = pair[0], series()
    assert torch.equal(decode_alone(OnlyModel(target), context, HORIZON), decode_alone(target, context, HORIZON))
    z = torch.randn(6, 3, 5, PATCH, 3, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(sample_alone(OnlyModel(target), context, HORIZON, TargetLaw.fixed(0.3), z),
                               sample_alone(target, context, HORIZON, TargetLaw.fixed(0.3), z)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("rule, samples", [(Tolerance(0.3), 1), (Simplified(0.45), 1), (Simplified(0.45), 2)])
@pytest.mark.parametrize("repropose", ["draft", "corrected"])
def test_a_pair_is_decoded_by_its_interface(pair, series, rule, samples, repropose):
    context = series()
    noise = Noise.draw(context.repeat_interleave(samples, dim=0), 5, PATCH, torch.Generator().manual_seed(0))

    def decoded(target, draft):
        return decode_speculative(target, draft, context, HORIZON, rule, 3, noise, repropose=repropose, samples=samples)
    found, expected = decoded(*map(OnlyModel, pair)), decoded(*pair)
    assert torch.equal(found.forecast, expected.forecast) and torch.equal(found.origin, expected.origin)


def test_planner_and_calibration_need_the_interface_alone(pair, series):
    context = series()
    plan = make_plan(*map(OnlyModel, pair), context, HORIZON, Tolerance(0.3), seed=0)
    assert plan.acceptance == make_plan(*pair, context, HORIZON, Tolerance(0.3), seed=0).acceptance
    batches = [(context[:, :-PATCH], context[:, PATCH:])]
    cpu = torch.device("cpu")
    assert torch.equal(next_patch_residuals(OnlyModel(pair[0]), batches, cpu),
                       next_patch_residuals(pair[0], batches, cpu))


# --- predictions

def heads(positions, ahead):
    """Numbered means and logvars [2, n, J, P, C] and stdevs [2, n, 1, C]."""
    mean = torch.arange(2.0 * positions * ahead * 4 * 3).view(2, positions, ahead, 4, 3)
    return mean, -mean, torch.arange(2.0 * positions * 3).view(2, positions, 1, 3) + 1


@pytest.mark.parametrize("ahead", [1, 3])
def test_one_position_predicts_all_patches_of_its_heads(ahead):
    mean, logvar, stdev = heads(1, ahead)
    found = Prediction.of_heads(mean, logvar, stdev, stdev)
    assert torch.equal(found.mean, mean[:, 0]) and torch.equal(found.logvar, logvar[:, 0])
    assert torch.equal(found.scale, stdev.expand(2, ahead, 1, 3))


def test_of_several_positions_each_predicts_its_next_patch():
    mean, logvar, stdev = heads(4, 3)
    found = Prediction.of_heads(mean, logvar, stdev, stdev[:, :1])
    assert torch.equal(found.mean, mean[:, :, 0]) and torch.equal(found.logvar, logvar[:, :, 0])
    assert torch.equal(found.scale, stdev)
    assert Prediction.of_heads(mean, None, stdev, stdev[:, :1]).logvar is None


def test_parts_of_a_prediction_keep_their_scale_and_unit():
    mean, logvar, stdev = heads(4, 1)
    whole = Prediction.of_heads(mean, logvar, stdev, stdev[:, :1])
    two = whole.first(2)
    assert torch.equal(two.mean, whole.mean[:, :2]) and torch.equal(two.scale, stdev[:, :2])
    assert torch.equal(whole.first(9).mean, whole.mean)
    one = whole.at(torch.tensor([1, 0]), torch.tensor([3, 2]))
    for name in ("mean", "logvar", "scale"):
        part = getattr(whole, name)
        assert torch.equal(getattr(one, name), torch.stack([part[1, 3], part[0, 2]])[:, None])
    assert torch.equal(one.unit, whole.unit[[1, 0]])
    moved = whole.shifted(torch.ones(()))
    assert torch.equal(moved.mean, whole.mean + 1) and moved.scale is whole.scale
