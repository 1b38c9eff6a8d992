"""Calibration: the fit against a known law, against loops and against scikit-learn."""
import pytest
import torch
from helpers import PATCH, tiny_target
from sklearn.covariance import LedoitWolf

from utils.calibration import (
    BANDS,
    MOST_WIDENING,
    apart,
    fit_law,
    half_width,
    ledoit_wolf,
    mixture_crps,
    next_patch_residuals,
    stretches,
    variance_of,
)
from utils.scores import crps

P, C = 4, 2


def residuals(windows=4000, factor=None, seed=0):
    z = torch.randn(windows, P * C, generator=torch.Generator().manual_seed(seed))
    return (z @ (torch.eye(P * C) if factor is None else factor).T).unflatten(1, (P, C))


def known_factor():
    generator = torch.Generator().manual_seed(5)
    return torch.diag(torch.linspace(0.3, 1.5, P * C)) @ (
        torch.eye(P * C) + 0.6 * torch.randn(P * C, P * C, generator=generator).tril(-1))


@pytest.mark.parametrize("windows", [3 * P, 6 * P, 8 * P + 1, 71, 100, 997])
def test_every_window_is_held_out_once_and_apart_from_its_fit(windows):
    steps, parts = torch.arange(windows), stretches(windows, P)
    assert [parts[0][0], *(end for _, end in parts)] == [*(start for start, _ in parts), windows]
    assert len(parts) == min(8, max(2, windows // (2 * P)))
    for start, end in parts:
        far = torch.stack([(steps - i).abs() for i in range(start, end)]).min(dim=0).values >= P
        assert torch.equal(apart(steps, (start, end), P), far) and far.any()
        for other in parts if len(parts) > 2 else []:  # a fit that holds out a second stretch has something left too
            assert (far & apart(steps, other, P)).any()


def test_the_fit_recovers_a_known_diagonal_and_its_coverage():
    sigma = torch.linspace(0.3, 2.0, P * C).view(P, C)
    calibration = fit_law(residuals() * sigma, 1, full=False)
    torch.testing.assert_close(calibration.law.factor, sigma, rtol=0.07, atol=0)  # 6 standard errors of 4000 windows
    assert calibration.law.relative and not calibration.law.full
    for band in BANDS:  # of 32,000 elements
        assert calibration.held_out[f"one_coverage_{band}_pct"] == pytest.approx(band, abs=1.5)
    assert calibration.held_out["windows"] == 4000


def test_the_fit_recovers_a_known_covariance():
    factor = known_factor()
    calibration = fit_law(residuals(20000, factor), 1, full=True)
    found = calibration.law.factor @ calibration.law.factor.T
    expected = factor @ factor.T
    deviation = expected.diagonal().sqrt()
    assert ((found - expected).abs() < 0.07 * torch.outer(deviation, deviation)).all()
    assert calibration.law.full and calibration.law.relative and not calibration.law.factor.triu(1).any()
    assert 0 < calibration.held_out["shrinkage"] < 0.1


def test_few_windows_shrink_correlations_but_not_deviations():
    few = residuals(60, known_factor())
    full, diag = fit_law(few, 1, full=True), fit_law(few, 1, full=False)
    assert full.held_out["shrinkage"] > 0.1
    variances = (full.law.factor @ full.law.factor.T).diagonal()
    torch.testing.assert_close(variances.sqrt().view(P, C), diag.law.factor)


def test_a_bias_counts_as_spread():
    calibration = fit_law(0.5 * residuals() + 2, 1, full=False)
    torch.testing.assert_close(calibration.law.factor, torch.full((P, C), 4.25**0.5), rtol=0.05, atol=0)


def by_hand(errors, series):
    """sigma and coverage of the 95 % band, window by window in loops; errors [series, W, P, C]."""
    W, parts = errors.shape[1], stretches(errors.shape[1], P)

    def sigma_of(windows):
        ratios = []
        for start, end in parts:
            judged = [w for w in windows if start <= w < end]
            others = [w for w in windows if w <= start - P or w >= end - 1 + P]
            if judged and others:
                mean = errors[:, others].square().mean(dim=(0, 1))
                ratios += [(errors[:, w].square() / mean).mean() for w in judged]
        widening = torch.stack(ratios).mean().clamp(1, MOST_WIDENING)
        return (errors[:, list(windows)].square().mean(dim=(0, 1)) * widening).sqrt()

    inside = []
    for start, end in parts:
        sigma = sigma_of([w for w in range(W) if w <= start - P or w >= end - 1 + P])
        inside.append((errors[:, start:end].abs() <= BANDS[95] * sigma).double().flatten())
    return sigma_of(range(W)), 100 * torch.cat(inside).mean()


@pytest.mark.parametrize("series", [1, 3])
def test_spells_of_large_errors_widen_the_law_as_by_hand(series):
    errors = residuals(series * 90, seed=3).double().unflatten(0, (series, -1))
    errors *= torch.tensor([0.5, 1.6, 0.8]).repeat_interleave(30)[:, None, None]  # spells of 30 windows
    sigma, inside = by_hand(errors, series)
    calibration = fit_law(errors.flatten(0, 1), series, full=False)
    torch.testing.assert_close(calibration.law.factor, sigma.float())
    assert calibration.held_out["one_coverage_95_pct"] == pytest.approx(float(inside))
    assert (sigma > 1.05 * errors.square().mean(dim=(0, 1)).sqrt()).all()


def test_held_out_windows_do_not_touch_the_law_that_judges_them():
    errors = residuals(400)
    errors[:50] *= 100  # a stretch of its own: its law is that of the others
    calibration = fit_law(errors, 1, full=False)
    assert calibration.held_out["one_coverage_95_pct"] == pytest.approx(100 * 350 / 400, abs=2)


def test_a_stretch_widens_the_other_laws_up_to_the_limit():
    errors = residuals(400)
    errors[50:, :, 0] = 0
    mean_square = errors[..., 1].double().square().mean(dim=0)
    torch.testing.assert_close(fit_law(errors, 1, full=False).law.factor[:, 1].double(), (2 * mean_square).sqrt())


def test_a_model_without_error_still_has_a_law():
    assert (fit_law(torch.zeros(60, P, C), 1, full=False).law.factor > 0).all()


@pytest.mark.parametrize("changes", [{}, {"norm_mode": "causal", "norm_window": 3}], ids=["window", "causal"])
def test_residuals_are_those_of_the_last_token_in_its_unit(changes, series):
    model = tiny_target(**changes)
    span = series(length=6 * PATCH)
    x, y = span[:, :-PATCH], span[:, PATCH:]
    found = next_patch_residuals(model, [(x[:2], y[:2]), (x[2:], y[2:])], torch.device("cpu"))
    seen = x[:, -3 * PATCH:] if changes else x
    with torch.no_grad():
        gap = span[:, -PATCH:] - model(x)[:, -PATCH:]
    expected = gap / (seen.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("windows, elements", [(500, 8), (40, 40), (12, 60), (2, 30), (200, 1)])
@pytest.mark.parametrize("kind", ["independent", "correlated", "repeated"])
def test_ledoit_wolf_is_that_of_scikit_learn(windows, elements, kind):
    """Also for more elements than windows, where the sample covariance is singular."""
    generator = torch.Generator().manual_seed(windows)
    samples = torch.randn(windows, elements, generator=generator, dtype=torch.float64)
    if kind == "correlated":
        samples = samples @ torch.randn(elements, elements, generator=generator, dtype=torch.float64)
    elif kind == "repeated":
        samples = samples[:, :1].repeat(1, elements)
    expected = LedoitWolf(assume_centered=True).fit(samples.numpy())
    covariance, shrinkage = ledoit_wolf(samples)
    torch.testing.assert_close(covariance, torch.from_numpy(expected.covariance_), rtol=1e-10, atol=1e-10)
    assert shrinkage == pytest.approx(expected.shrinkage_, rel=1e-10, abs=1e-10)


def test_samples_without_spread_are_not_shrunk():
    covariance, shrinkage = ledoit_wolf(torch.zeros(5, 3, dtype=torch.float64))
    assert shrinkage == 0 and not covariance.any()


# --- widths

def spells(windows=4000, seed=0):
    """Residuals [windows, P, C] of two kinds of windows, 0.5 and 2 wide, in spells, and the width of each."""
    width = torch.where(torch.arange(windows) // 50 % 2 == 0, 0.5, 2.0)
    return residuals(windows, seed=seed) * width[:, None, None], width


def test_windows_of_two_widths_are_seen_as_such():
    calibration = fit_law(spells()[0], 1, full=False)
    for band in BANDS:
        assert calibration.held_out[f"mixture_coverage_{band}_pct"] == pytest.approx(band, abs=2)
    assert calibration.held_out["one_coverage_50_pct"] > 57  # one width for both: too wide for most errors
    assert calibration.best == "mixture" and calibration.law_of() is calibration.law
    one = calibration.law_of("one")
    assert one.widths is None and torch.equal(one.factor, calibration.law.factor)
    wide = (calibration.law.widths * calibration.law.factor.square().mean(dim=0).sqrt()).flatten()
    # the rms of 4 errors of a window scatters about its width
    assert 0.3 < float(wide.quantile(0.25)) < 0.6 and 1.5 < float(wide.quantile(0.75)) < 2.4
    assert "a mixture of widths, by CRPS" in calibration.describe()
    assert "one width, as asked" in calibration.describe("one")
    assert "the NEXT patch" in calibration.describe()


def test_windows_that_are_all_alike_keep_one_width():
    calibration = fit_law(residuals(), 1, full=False)
    assert calibration.best == "one" and calibration.law_of().widths is None
    assert calibration.held_out["one_crps"] == pytest.approx(0.5642, abs=0.03)  # of a standard normal: 1/sqrt(pi)


def test_a_few_spikes_do_not_widen_every_band():
    """One error in 49 is 100 times larger: an rms then says nothing of the others."""
    errors = residuals()
    errors.view(-1)[::49] *= 100
    held_out = fit_law(errors, 1, full=False).held_out
    assert held_out["one_coverage_50_pct"] > 95
    for band in BANDS:
        assert held_out[f"mixture_coverage_{band}_pct"] == pytest.approx(band, abs=12)


@pytest.mark.parametrize("series", [1, 300])
def test_widths_are_those_of_windows_spread_over_all(series, monkeypatch):
    monkeypatch.setattr("utils.calibration.MOST_WIDTHS", 10)
    errors = residuals(series * 30)
    law = fit_law(errors, series, full=False).law
    kept = torch.linspace(0, series * 30 - 1, 10, dtype=torch.float64).long()
    by_series = errors.unflatten(0, (series, 30))
    relative = (errors / by_series.square().mean(dim=(0, 1)).sqrt()).square().mean(dim=1).sqrt()[kept]
    ratio = law.widths / relative  # one number for all
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-4, atol=0)


def test_the_newest_windows_judge_laws_of_the_older_ones():
    """By hand for one width, whose law is that of all windows that share no step with the newest quarter."""
    errors, _ = spells(400)
    errors[300:] *= 3
    sigma = variance_of(errors.double().square(), torch.arange(400) < 301 - P).sqrt()
    t = errors[300:].double() / sigma
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = sigma * (t * (2 * normal.cdf(t) - 1) + 2 * normal.log_prob(t).exp() - torch.pi**-0.5)
    held_out = fit_law(errors, 1, full=False).held_out
    assert held_out["one_crps"] == pytest.approx(float(expected.mean()), rel=1e-5)


def test_half_widths_and_crps_of_a_mixture_are_those_of_many_draws():
    widths = torch.tensor([[0.3, 1.0], [1.0, 1.0], [4.0, 1.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400_000, 2, dtype=torch.float64, generator=generator)
    draws = widths[torch.randint(3, (len(z),), generator=generator)] * z
    for band, width in BANDS.items():
        half = half_width(widths, band / 100)
        assert ((draws.abs() <= half).double().mean(dim=0) * 100).tolist() == pytest.approx([band] * 2, abs=0.5)
        assert float(half[1]) == pytest.approx(width, abs=1e-4)
    truth = torch.tensor([[0.0, 0.5], [-2.0, 3.0]], dtype=torch.float64)
    expected = crps(draws.sort(dim=0).values.expand(2, -1, -1), truth)
    torch.testing.assert_close(mixture_crps(truth, widths), expected, atol=0.01, rtol=0)
