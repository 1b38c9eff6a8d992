"""Scores of sampled paths against a library, against sums written out, and against laws that are known."""
import math

import numpy as np
import pytest
import scoringrules
import torch

from utils.probabilistic import BANDS, PIT_BINS, PathMetrics, crps, energy_score, quantile

PATCH = 4


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


@pytest.mark.parametrize("samples", [39, 50, 200])
def test_a_further_path_is_below_a_quantile_as_often_as_its_level_says(samples):
    ordered, further = normal(40000, samples).sort(dim=1).values, normal(40000, seed=1)
    for level in (0.025, 0.25, 0.5, 0.9):
        below = (further < quantile(ordered, level)).double().mean()
        # 4 standard errors, and what interpolating between the outermost paths costs
        assert abs(below - level) < 4 * math.sqrt(level * (1 - level) / 40000) + 0.1 / samples


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
