"""Growth of finished paths with the lead: what it changes and what not, and the factors that are fitted."""
import pytest
import torch

from utils.growth import STEP, STEPS, fit_growth, widened
from utils.scores import BANDS, PathMetrics

P, N, H = 4, 3, 10  # the last patch is cut


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_growth_moves_paths_away_from_their_mean_and_leaves_it():
    paths, growth = 100 + normal(5, 40, H, 2), torch.tensor([1.5, 1.0, 3.0])
    wide = widened(paths, growth, P)
    torch.testing.assert_close(wide.double().mean(dim=1), paths.double().mean(dim=1), atol=1e-5, rtol=0)
    for patch, factor in enumerate(growth):
        part = slice(patch * P, (patch + 1) * P)
        spread = paths[:, :, part].std(dim=1)
        torch.testing.assert_close(wide[:, :, part].std(dim=1), factor * spread, rtol=1e-4, atol=0)


def test_factor_one_changes_no_bit():
    paths = normal(5, 7, H, 2) * 1e3 + 0.1
    assert torch.equal(widened(paths, torch.ones(N), P), paths)
    assert torch.equal(widened(paths, torch.tensor([2.0, 1.0, 1.5]), P)[:, :, P:2 * P], paths[:, :, P:2 * P])


def test_the_fit_finds_how_much_wider_the_errors_are():
    """Of 4,000 windows: a standard error of about 0.01; the last patch is narrower, and stays as it is."""
    wider = torch.tensor([1.0, 1.7, 0.6]).repeat_interleave(P)[:H, None]
    paths, truth = normal(4000, 79, H, 2), normal(4000, H, 2, seed=1) * wider
    growth = fit_growth(paths, truth, P)
    torch.testing.assert_close(growth, torch.tensor([1.0, 1.7, 1.0]), atol=0.06, rtol=0)
    metrics = PathMetrics(P)
    metrics.update(widened(paths, growth, P), truth)
    for band in BANDS:
        assert metrics.result()["by_patch"][f"coverage_{band}_pct"][1] == pytest.approx(band, abs=2)


def test_the_fit_counts_what_the_scores_count():
    """Against every factor tried by itself, on paths that are neither Gaussian nor symmetric."""
    paths, truth = normal(30, 21, P, 2).exp(), 3 * normal(30, P, 2, seed=1)

    def badness(factor):
        metrics = PathMetrics(P)
        metrics.update(widened(paths, torch.tensor([factor]), P), truth)
        return sum((metrics.result()[f"coverage_{band}_pct"] - band)**2 for band in BANDS)
    found = float(fit_growth(paths, truth, P))
    assert badness(found) <= min(badness(1 + STEP * step) for step in range(STEPS + 1)) + 1e-6


def test_no_window_is_refused():
    with pytest.raises(ValueError, match="no window"):
        fit_growth(normal(0, 5, H, 2), normal(0, H, 2), P)
