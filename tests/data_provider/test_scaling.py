"""The scale of a context: its own mean and deviation, whatever the unit, without loss of digits."""
import warnings

import numpy as np
import pytest
import torch

from data_provider.scaling import OwnScale, too_far


def windows(seed=0, shape=(5, 40, 3)):
    return np.random.default_rng(seed).normal(size=shape) * np.array([1.0, 30.0, 0.02]) + np.array([0.0, -400.0, 7.0])


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_it_is_mean_and_deviation_of_the_window():
    values = windows()
    mean, deviation = values.mean(axis=1, keepdims=True), values.std(axis=1, keepdims=True)
    scale = OwnScale.of(values)
    scaled = scale.apply(values)
    assert scaled.dtype == torch.float32
    np.testing.assert_allclose(scaled, (values - mean) / deviation, rtol=1e-5, atol=1e-6)
    later = windows(1, (5, 8, 3))  # of other rows too
    np.testing.assert_allclose(scale.apply(later), (later - mean) / deviation, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scale.back(np.full((5, 8, 3), 2.0)), np.broadcast_to(mean + 2 * deviation, (5, 8, 3)))


@pytest.mark.parametrize("factor", [1e-300, 1e-6, -1e-6, 1e6, 1e300, 1e305])
def test_the_unit_does_not_matter(factor):
    """Not even where squares overflow, or vanish."""
    values = windows()
    expected, scale = OwnScale.of(values).apply(values), OwnScale.of(factor * values)
    torch.testing.assert_close(scale.apply(factor * values), np.sign(factor) * expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scale.back(np.sign(factor) * expected.double().numpy()), factor * values, rtol=1e-6)
    assert not scale.constant.any()


@pytest.mark.parametrize("offset", [1e3, -1e6, 1e9, 1e12])
def test_an_offset_costs_no_more_than_the_digits_of_the_values(offset):
    values = windows()[..., :1]
    expected, moved = OwnScale.of(values).apply(values), values + offset
    scale = OwnScale.of(moved)
    resolution = max(3e-7, 4 * abs(offset) * np.finfo(float).eps)
    torch.testing.assert_close(scale.apply(moved), expected, rtol=0, atol=resolution)
    np.testing.assert_allclose(scale.back(scale.apply(moved).double().numpy()), moved, rtol=0, atol=4 * resolution)


def test_the_largest_numbers_have_a_scale():
    values = 1.7e308 * np.sin(np.arange(40.0))[:, None]
    scale = OwnScale.of(values)
    np.testing.assert_allclose(scale.back(scale.apply(values).double().numpy()), values, rtol=1e-5, atol=1e302)
    assert np.isinf(scale.back(np.array([[9.0]]))).all()


@pytest.mark.parametrize("value", [0.0, 5.0, -0.3, 1e9, 1e300, 1e-320])
def test_a_constant_is_zero_and_comes_back_exactly(value):
    for values in (np.full((40, 1), value), np.where(np.arange(40)[:, None] % 3 > 0, value, np.nextafter(value, 9))):
        if abs(value) < 1e-300 and values[0] != value:
            continue  # the smallest numbers have few digits: their steps are no rounding
        scale = OwnScale.of(values)
        assert scale.constant.all() and not scale.apply(values).any()
        assert (scale.back(np.array([[-3.0], [1e30]])) == values[-1]).all()


def test_a_small_change_of_a_large_number_is_no_rounding():
    values = np.full((40, 1), 1e9)
    values[20:] += 1e-5
    assert not OwnScale.of(values).constant.any()


def test_what_float32_cannot_square_is_too_far():
    values = windows()[0]
    scale = OwnScale.of(values)
    values[0, 1], values[3, 2] = 1e60, -1e25
    assert too_far(scale.apply(values)).tolist() == [False, True, True]
    assert not too_far(scale.apply(windows()[0] * 1e10)).any()
