"""Metrics summed over uneven batches are those of everything at once; scores of sampled paths against a library,
against sums written out, and against laws that are known; rolling factors against a loop."""
import math

import numpy as np
import pytest
import scoringrules
import torch

from utils.decoded import Decoded
from utils.scores import (
    BANDS,
    PIT_BINS,
    PathMetrics,
    PointMetrics,
    RollingScale,
    SpeculationMetrics,
    crps,
    energy_score,
    quantile,
)

PATCH = 4
C = 2  # variables of the rolling factors


# --- points and passes


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
    for result in (PointMetrics().result, PathMetrics(PATCH).result, PathMetrics(PATCH).pit):
        with pytest.raises(ValueError, match="no window"):
            result()


def decoded(accepted, judged, proposed, target_passes, draft_passes, lengths):
    counts = {"accepted": accepted, "judged": judged, "proposed": proposed, "target_passes": target_passes,
              "draft_passes": draft_passes, "lengths": lengths}
    return Decoded(torch.zeros(len(accepted), 1, 1), **{name: torch.tensor(value) for name, value in counts.items()})


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


def test_shares_of_nothing_are_not_zero():
    metrics = SpeculationMetrics()
    metrics.update(decoded([0, 0], [0, 0], [0, 0], [1, 1], [0, 0], [2]))
    result = metrics.result()
    assert result["acceptance_pct"] is result["used_pct"] is None and result["attempted"] == 0
    metrics.update(decoded([0], [1], [3], [2], [1], [1, 0]))
    assert metrics.result()["acceptance_pct"] == metrics.result()["used_pct"] == 0.0  # measured


def test_passes_of_paths_are_those_of_one_path():
    """Two paths of one window are two forecasts, though their mean is one."""
    of_paths = decoded([1, 0], [2, 1], [2, 1], [2, 4], [2, 1], [1, 1])
    of_paths.paths = torch.zeros(1, 2, 1, 1)
    of_paths.forecast = of_paths.paths.mean(dim=1)
    metrics = SpeculationMetrics()
    metrics.update(of_paths)
    assert (metrics.result()["target_passes"], metrics.result()["draft_passes"]) == (3, 1.5)


def test_the_reference_numbers_are_python_floats():
    """metrics.json must be able to hold them."""
    metrics = PointMetrics()
    metrics.update(torch.ones(1, 2, 1), torch.zeros(1, 2, 1))
    assert all(type(value) is float for value in metrics.result().values())
    assert np.isfinite(list(metrics.result().values())).all()


# --- sampled paths

def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_crps_and_energy_score_are_the_librarys():
    paths, truth = normal(5, 11, 6, 3), normal(5, 6, 3, seed=1)
    expected = scoringrules.crps_ensemble(truth.numpy(), paths.movedim(1, -1).numpy(), estimator="fair")
    np.testing.assert_allclose(crps(paths.sort(dim=1).values, truth), expected, rtol=1e-10)
    expected = scoringrules.es_ensemble(truth.flatten(1).numpy(), paths.flatten(2).numpy(), estimator="fair")
    np.testing.assert_allclose(energy_score(paths, truth), expected, rtol=1e-10)


def test_crps_is_the_sum_that_defines_it():
    x, y = normal(7).tolist(), 0.3
    expected = np.mean([abs(a - y) for a in x]) - sum(abs(a - b) for a in x for b in x) / (2 * 7 * 6)
    assert float(crps(torch.tensor(sorted(x))[None], torch.tensor([y]))) == pytest.approx(expected)


def test_crps_of_many_paths_of_a_gaussian_is_its_closed_form():
    sigma, y = 1.7, normal(40, seed=2)
    z = y / sigma
    cdf, pdf = 0.5 * (1 + torch.erf(z / math.sqrt(2))), torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    expected = sigma * (z * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi))
    found = crps(sigma * normal(40, 20000).sort(dim=1).values, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06)  # 5 standard errors


@pytest.mark.slow
@pytest.mark.parametrize("samples", [39, 50, 200])
def test_a_new_path_is_below_a_quantile_as_often_as_it_says(samples):
    ordered, further = normal(40000, samples).sort(dim=1).values, normal(40000, seed=1)
    for level in (0.025, 0.25, 0.5, 0.9):
        below = (further < quantile(ordered, level)).double().mean()
        # 4 standard errors, and what interpolating between the outermost paths costs
        assert abs(below - level) < 4 * math.sqrt(level * (1 - level) / 40000) + 0.1 / samples


@pytest.mark.parametrize("samples", [2, 5, 39])
def test_quantiles_are_those_of_weibull(samples):
    paths = normal(4, samples, 3)
    for level in (0.0, 0.025, 0.1, 0.5, 0.77, 0.975, 1.0):
        expected = np.quantile(paths.numpy(), level, axis=1, method="weibull")
        np.testing.assert_allclose(quantile(paths.sort(dim=1).values, level), expected, rtol=1e-12, atol=1e-12)


def test_quantiles_beyond_the_paths_are_the_outermost():
    ordered = torch.arange(3.0)[None]
    assert [float(quantile(ordered, level)) for level in (0.01, 0.25, 0.5, 0.625, 0.99)] == [0, 0, 1, 1.5, 2]


def scores(paths, truth, parts=1):
    metrics = PathMetrics(PATCH)
    for some, true in zip(paths.chunk(parts), truth.chunk(parts)):
        metrics.update(some, true)
    return metrics.result()


def test_coverage_counts_what_lies_in_the_band():
    paths = torch.arange(1.0, 40.0).view(1, 39, 1, 1).expand(1, 39, 8, 1)  # quantile p lies at 40 p
    truth = torch.tensor([20.0, 30.0, 30.1, 36.0, 36.1, 1.0, 0.9, 39.1]).view(1, 8, 1)
    got = scores(paths, truth)
    assert [got[f"coverage_{band}_pct"] for band in BANDS] == [100 * 2 / 8, 100 * 4 / 8, 100 * 6 / 8]
    assert got["by_patch"]["coverage_50_pct"] == [50.0, 0.0]
    assert [got[f"width_{band}"] for band in BANDS] == pytest.approx([20, 32, 38])
    assert got["quantiles"]["0.75"]["below_pct"] == 100 * 3 / 8  # 20, 1 and 0.9


def test_the_quantile_loss_is_the_pinball():
    paths = torch.arange(1.0, 40.0).view(1, 39, 1, 1)
    above, below = (scores(paths, torch.full((1, 1, 1), value))["quantiles"]["0.9"]["loss"] for value in (46.0, 26.0))
    assert (above, below) == pytest.approx((0.9 * 10, 0.1 * 10))


def test_batches_add_up_and_a_cut_patch_counts_by_its_elements():
    paths, truth = normal(9, 20, 10, 2), normal(9, 10, 2, seed=1)
    whole, parts = scores(paths, truth), scores(paths, truth, parts=4)
    torch.testing.assert_close(torch.tensor(parts["pit"]), torch.tensor(whole["pit"]))
    for name in ("crps", "energy_score", "coverage_80_pct", "mse_of_mean"):
        assert parts[name] == pytest.approx(whole[name])
    patches = torch.tensor(whole["by_patch"]["crps"])
    assert whole["crps"] == pytest.approx(float(patches @ torch.tensor([4.0, 4, 2]) / 10))


# level 1e-6 for the statistic of 20 bins that 6000 independent truths fill: chi-squared, 19 degrees of freedom
LIMIT = 63.2


def unevenness(paths, truth):
    pit = torch.tensor(scores(paths, truth)["pit"])
    assert len(pit) == PIT_BINS and pit.mean() == pytest.approx(1)
    return float((pit - 1).square().sum()) * truth.numel() / PIT_BINS


@pytest.mark.parametrize("samples", [50, 99])
def test_the_pit_is_level_for_the_right_law_and_for_no_other(samples):
    truth = normal(100, 20, 3, seed=1)
    assert unevenness(normal(100, samples, 20, 3), truth) < LIMIT
    for wrong in (0.8 * normal(100, samples, 20, 3), 1.25 * normal(100, samples, 20, 3),
                  normal(100, samples, 20, 3) + 0.2):
        assert unevenness(wrong, truth) > LIMIT


def test_the_pit_says_on_which_side_the_truths_lie():
    pit = scores(normal(50, 40, 8, 2) - 5, normal(50, 8, 2, seed=1))["pit"]
    assert pit[-1] > 0.95 * PIT_BINS and pit[0] == 0


# --- rolling factors

def factors_by_hand(paths, truth, rows, windows, span, prior):
    horizon, result = truth.shape[1], torch.ones(truth.shape)
    for i, row in enumerate(rows):
        for step in range(horizon):
            first = step // PATCH * PATCH
            last = min(first + PATCH, horizon)
            seen = []
            for k, before in enumerate(rows):
                same_series = before // windows == row // windows
                if same_series and before + last <= row and before + last > row - span:
                    gap = (truth[k] - paths[k].mean(dim=0)).square() / (paths[k].var(dim=0) * (1 + 1 / len(paths[k])))
                    seen.append(gap[first:last].mean(dim=0))
            total = torch.stack(seen).sum(dim=0) if seen else 0.0
            result[i, step] = ((prior + total) / (prior + len(seen)) * torch.ones(truth.shape[2])).sqrt()
    return result


def test_rolling_factors_are_those_of_a_loop_over_the_past():
    generator = torch.Generator().manual_seed(0)
    rows = [0, 2, 3, 7, 9, 14, 15, 22, 30, 31, 36]  # two series of 20 windows
    paths = torch.randn(len(rows), 6, 10, C, generator=generator)
    truth = 3 * torch.randn(len(rows), 10, C, generator=generator)
    expected = factors_by_hand(paths, truth, rows, 20, 9, 0.5)
    assert (expected != 1).any(dim=2).sum() > 20
    for parts in (1, 4):
        rolling = RollingScale(PATCH, 9, torch.tensor([0, 20]), 0.5)
        found = torch.cat([rolling.factors(*batch) for batch in zip(
            paths.chunk(parts), truth.chunk(parts), torch.tensor(rows).chunk(parts))])
        torch.testing.assert_close(found, expected)
    changed = truth.clone()
    changed[4:] += 100
    found = RollingScale(PATCH, 9, torch.tensor([0, 20]), 0.5).factors(paths, changed, torch.tensor(rows))
    torch.testing.assert_close(found[:5], expected[:5])  # row 4 is not known before row 13


def test_paths_that_are_twice_too_narrow_are_widened_twice():
    generator = torch.Generator().manual_seed(0)
    paths = torch.randn(400, 40, PATCH, C, generator=generator)
    truth = 2 * torch.randn(400, PATCH, C, generator=generator)
    found = RollingScale(PATCH, 200, torch.tensor([0]), 1.0).factors(paths, truth, torch.arange(400))
    assert (found[:PATCH] == 1).all()
    assert found[-1].mean() == pytest.approx(2, rel=0.1)
