"""Arguments that the library cannot use: an error that names the value, never a wrong result."""
import pytest
import torch
from helpers import PATCH, tiny_target

from utils import Coupling, Simplified, TargetLaw, decode_alone, decode_speculative, fit_law, sample_alone
from utils.acceptance import Tolerance

CONTEXT = torch.zeros(2, 5 * PATCH, 3)


@pytest.mark.parametrize("horizon", [0, -3])
def test_a_horizon_below_one_step_is_refused(horizon):
    target, law = tiny_target(), TargetLaw.fixed(1.0)
    calls = (lambda: decode_alone(target, CONTEXT, horizon),
             lambda: decode_speculative(target, target, CONTEXT, horizon, Tolerance(1.0)),
             lambda: sample_alone(target, CONTEXT, horizon, law, torch.zeros(2, 1, 1, PATCH, 3)))
    for call in calls:
        with pytest.raises(ValueError, match=f"horizon is {horizon}"):
            call()


def test_what_is_no_model_or_no_rule_is_told_how_to_be_one():
    target = tiny_target()
    for arguments, words in (((torch.sin, target, Tolerance(1.0)), "FromForward"),
                             ((target, torch.sin, Tolerance(1.0)), "FromForward"),
                             ((target, target, "tolerance"), "Tolerance"), ((target, target, Tolerance), "instance")):
        with pytest.raises(TypeError, match=words):
            decode_speculative(*arguments[:2], CONTEXT, PATCH, arguments[2])


def test_noise_of_too_few_patches_is_refused():
    with pytest.raises(ValueError, match="z has 1 patches, but 2 are needed"):
        sample_alone(tiny_target(), CONTEXT, PATCH + 1, TargetLaw.fixed(1.0), torch.zeros(2, 4, 1, PATCH, 3))


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_law_without_width_is_refused(sigma):
    for make in (TargetLaw.fixed, Simplified, lambda value: Coupling(TargetLaw.fixed(value))):
        with pytest.raises(ValueError, match="sigma is"):
            make(sigma)


def test_an_unknown_way_to_choose_sigma_is_refused():
    with pytest.raises(ValueError, match="'calibratd'"):
        Simplified(0.25, sigma_mode="calibratd")


def test_a_law_of_too_few_windows_is_refused():
    with pytest.raises(ValueError, match="2 windows per series are too few for a law: 24 are needed"):
        fit_law(torch.randn(6, PATCH, 1), n_series=3, full=False)
