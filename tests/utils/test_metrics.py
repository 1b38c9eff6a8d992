"""Metrics summed over uneven batches are those of everything at once."""
import numpy as np
import pytest
import torch

from utils.metrics import PointMetrics, SpeculationMetrics
from utils.speculative_decoder import Decoded


def test_uneven_batches_give_the_metrics_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    forecast, truth = (torch.randn(10, 6, 3, generator=generator) for _ in range(2))
    truth[4, 2, 1] = 0.0
    metrics = PointMetrics()
    for part in (slice(0, 7), slice(7, 10)):
        metrics.update(forecast[part], truth[part])
    f, y = forecast.double().numpy(), truth.double().numpy()
    error, kept = f - y, y != 0
    expected = {"mse": (error**2).mean(), "mae": abs(error).mean(), "rmse": (error**2).mean() ** 0.5,
                "mape": abs(error[kept] / y[kept]).mean(), "mspe": ((error[kept] / y[kept]) ** 2).mean(),
                "smape": (2 * abs(error) / (abs(f) + abs(y))).mean()}
    assert metrics.result() == pytest.approx(expected, rel=1e-9)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        PointMetrics().update(torch.zeros(2, 3, 1), torch.zeros(2, 3, 2))


def test_no_window_has_no_metrics():
    with pytest.raises(ValueError, match="no window"):
        PointMetrics().result()


def decoded(accepted, judged, proposed, target_passes, draft_passes, lengths):
    tensors = [torch.tensor(v) for v in (accepted, judged, proposed, target_passes, draft_passes, lengths)]
    return Decoded(None, None, None, None, *tensors)


def test_speculation_is_summed_over_windows():
    metrics = SpeculationMetrics()
    metrics.update(decoded([3, 1], [3, 2], [3, 4], [1, 3], [3, 5], [2, 1, 0, 1]))
    metrics.update(decoded([0], [1], [1], [2], [1], [2, 0]))
    result = metrics.result()
    assert (result["accepted"], result["attempted"], result["proposed"]) == (4, 6, 8)
    assert result["acceptance_pct"] == pytest.approx(100 * 4 / 6) and result["used_pct"] == pytest.approx(50)
    assert result["accepted_length_histogram"] == [4, 1, 0, 1]
    assert result["mean_accepted_length"] == pytest.approx(4 / 6)
    assert (result["target_passes"], result["draft_passes"]) == (pytest.approx(2), pytest.approx(3))
    assert "most_pct" not in result
    for most in ([1.5, 0.25], [0.5, 0.5]):
        one = decoded([1, 0], [2, 1], [2, 1], [1, 1], [1, 1], [1, 1])
        one.most = torch.tensor(most)
        metrics.update(one)
    assert metrics.result()["most_pct"] == pytest.approx(100 * 2.75 / 12)


def test_the_reference_numbers_are_python_floats():
    """metrics.json must be able to hold them."""
    metrics = PointMetrics()
    metrics.update(torch.ones(1, 2, 1), torch.zeros(1, 2, 1))
    assert all(type(value) is float for value in metrics.result().values())
    assert np.isfinite(list(metrics.result().values())).all()
