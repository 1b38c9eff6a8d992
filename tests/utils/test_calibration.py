"""Calibration: the fit against a known law, the file against damage and mix-ups, rolling factors against a loop."""
import pickle
from types import SimpleNamespace

import pytest
import torch
from conftest import PATCH, tiny_target

from utils.calibration import (
    BANDS,
    MOST_WIDENING,
    Calibration,
    RollingScale,
    apart,
    file_beside,
    fit,
    forget,
    identity,
    load,
    next_patch_residuals,
    save,
    stretches,
)
from utils.errors import UserError
from utils.target_law import TargetLaw

P, C = 4, 2


def residuals(windows=4000, factor=None, seed=0):
    z = torch.randn(windows, P * C, generator=torch.Generator().manual_seed(seed))
    return (z @ (torch.eye(P * C) if factor is None else factor).T).unflatten(1, (P, C))


def known_factor():
    generator = torch.Generator().manual_seed(5)
    return torch.diag(torch.linspace(0.3, 1.5, P * C)) @ (
        torch.eye(P * C) + 0.6 * torch.randn(P * C, P * C, generator=generator).tril(-1))


# --- the fit

@pytest.mark.parametrize("windows", [3 * P, 6 * P, 8 * P + 1, 71, 100, 997])
def test_every_window_is_held_out_once_from_a_fit_that_overlaps_none_of_its_patches(windows):
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
    calibration = fit(residuals() * sigma, 1, full=False)
    torch.testing.assert_close(calibration.law.factor, sigma, rtol=0.07, atol=0)  # 6 standard errors of 4000 windows
    assert calibration.law.relative and not calibration.law.full
    for band in BANDS:  # of 32,000 elements
        assert calibration.held_out[f"coverage_{band}_pct"] == pytest.approx(band, abs=1.5)
    assert calibration.held_out["windows"] == 4000


def test_the_fit_recovers_a_known_covariance():
    factor = known_factor()
    calibration = fit(residuals(20000, factor), 1, full=True)
    found = calibration.law.factor @ calibration.law.factor.T
    expected = factor @ factor.T
    deviation = expected.diagonal().sqrt()
    assert ((found - expected).abs() < 0.07 * torch.outer(deviation, deviation)).all()
    assert calibration.law.full and calibration.law.relative and not calibration.law.factor.triu(1).any()
    assert 0 < calibration.held_out["shrinkage"] < 0.1


def test_correlations_of_few_windows_are_shrunk_and_the_deviations_are_not():
    few = residuals(60, known_factor())
    full, diag = fit(few, 1, full=True), fit(few, 1, full=False)
    assert full.held_out["shrinkage"] > 0.1
    variances = (full.law.factor @ full.law.factor.T).diagonal()
    torch.testing.assert_close(variances.sqrt().view(P, C), diag.law.factor)


def test_a_bias_counts_as_spread():
    calibration = fit(0.5 * residuals() + 2, 1, full=False)
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
    calibration = fit(errors.flatten(0, 1), series, full=False)
    torch.testing.assert_close(calibration.law.factor, sigma.float())
    assert calibration.held_out["coverage_95_pct"] == pytest.approx(float(inside))
    assert (sigma > 1.05 * errors.square().mean(dim=(0, 1)).sqrt()).all()


def test_held_out_windows_do_not_touch_the_law_that_judges_them():
    errors = residuals(400)
    errors[:50] *= 100  # a stretch of its own: its law is that of the others
    calibration = fit(errors, 1, full=False)
    assert calibration.held_out["coverage_95_pct"] == pytest.approx(100 * 350 / 400, abs=2)


def test_a_variable_that_moved_in_one_stretch_only_widens_the_law_of_the_others_by_no_more_than_the_limit():
    errors = residuals(400)
    errors[50:, :, 0] = 0
    mean_square = errors[..., 1].double().square().mean(dim=0)
    torch.testing.assert_close(fit(errors, 1, full=False).law.factor[:, 1].double(), (2 * mean_square).sqrt())


def test_a_model_without_error_still_has_a_law():
    assert (fit(torch.zeros(60, P, C), 1, full=False).law.factor > 0).all()


@pytest.mark.parametrize("changes", [{}, {"norm_mode": "causal", "norm_window": 3}], ids=["window", "causal"])
def test_residuals_are_those_of_the_last_token_in_the_units_of_its_window(changes, series):
    model = tiny_target(**changes)
    span = series(length=6 * PATCH)
    x, y = span[:, :-PATCH], span[:, PATCH:]
    found = next_patch_residuals(model, [(x[:2], y[:2]), (x[2:], y[2:])], torch.device("cpu"))
    seen = x[:, -3 * PATCH:] if changes else x
    with torch.no_grad():
        gap = span[:, -PATCH:] - model(x)[:, -PATCH:]
    expected = gap / (seen.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# --- the file

@pytest.fixture
def kept(tmp_path):
    """A checkpoint, what its calibration depends on, and the file of the calibration."""
    (tmp_path / "checkpoint.pth").write_bytes(b"weights")
    dataset = SimpleNamespace(values=torch.arange(6.0).view(3, 2), patch_len=P)

    def made_for(covariance="diag", **changes):
        other = SimpleNamespace(**vars(dataset) | changes)
        return identity(tmp_path / "checkpoint.pth", other, 48, covariance, "window")
    path = file_beside(tmp_path / "checkpoint.pth", "x/ETTh1.csv", 48, "diag")
    calibration = fit(residuals(200), 1, full=False)
    save(path, calibration, made_for())
    return SimpleNamespace(folder=tmp_path, path=path, made_for=made_for, calibration=calibration)


def test_a_calibration_comes_back_as_it_was(kept):
    found = load(kept.path, kept.made_for(), P, C)
    assert torch.equal(found.law.factor, kept.calibration.law.factor) and found.law.relative
    assert found.held_out == kept.calibration.held_out
    assert [path.name for path in kept.folder.iterdir() if path != kept.path] == ["checkpoint.pth"]
    assert kept.path.name == "checkpoint_calibration_ETTh1_48_diag.pth"


def test_a_full_calibration_comes_back_as_it_was(kept):
    calibration = fit(residuals(200, known_factor()), 1, full=True)
    save(kept.path, calibration, kept.made_for("full"))
    found = load(kept.path, kept.made_for("full"), P, C)
    assert torch.equal(found.law.factor, calibration.law.factor) and found.law.full


def test_a_calibration_for_anything_else_is_refused(kept):
    def refused(made_for, word, values=(P, C)):
        with pytest.raises(UserError, match=rf"{kept.path.name} was calibrated for other {word} .*delete it"):
            load(kept.path, made_for, *values)
    refused(kept.made_for(values=torch.zeros(3, 2)), "data")
    refused(kept.made_for(patch_len=8), "patch")
    refused(kept.made_for("full"), "covariance")
    refused(kept.made_for() | {"context": 96}, "context")
    refused(kept.made_for() | {"rolling": "cache"}, "rolling")
    (kept.folder / "checkpoint.pth").write_bytes(b"other weights")
    refused(kept.made_for(), "weights")


class Payload:
    def __reduce__(self):
        return open, ("executed", "w")


def test_a_damaged_calibration_is_refused(kept, monkeypatch):
    monkeypatch.chdir(kept.folder)
    whole, good = kept.path.read_bytes(), torch.load(kept.path, weights_only=True)
    contents = [whole[:len(whole) // 2], b"", pickle.dumps(Payload())]
    negative = good["factor"].clone()
    negative[0, 0] = -1
    for change in ({"factor": torch.full((P, C), torch.nan)}, {"factor": negative}, {"factor": torch.ones(P, C + 1)},
                   {"factor": good["factor"].double()}, {"factor": [1.0]}, {"held_out": {}}, {"held_out": None},
                   {"identity": "ETTh1"}, {"factor": torch.zeros(P, C)}):
        torch.save(good | change, kept.path)
        contents.append(kept.path.read_bytes())
    torch.save([1], kept.path)
    contents.append(kept.path.read_bytes())
    for content in contents:
        kept.path.write_bytes(content)
        with pytest.raises(UserError, match=f"{kept.path.name} is damaged.*delete it") as caught:
            load(kept.path, kept.made_for(), P, C)
        assert "\n" not in str(caught.value)
    assert not (kept.folder / "executed").exists()


def test_a_calibration_of_another_version_is_not_called_damaged(kept):
    content = torch.load(kept.path, weights_only=True)
    for form in ({}, {"form": 1}):
        identity_of_then = {name: value for name, value in content["identity"].items() if name != "form"} | form
        torch.save(content | {"identity": identity_of_then}, kept.path)
        with pytest.raises(UserError, match="another version.*delete it"):
            load(kept.path, kept.made_for(), P, C)


def test_a_full_factor_must_be_lower_triangular(kept):
    made_for = kept.made_for("full")
    save(kept.path, Calibration(TargetLaw(torch.ones(P * C, P * C), full=True), kept.calibration.held_out), made_for)
    with pytest.raises(UserError, match="is damaged"):
        load(kept.path, made_for, P, C)


def test_new_weights_forget_what_was_calibrated_for_the_old_ones(kept):
    other = kept.folder / "other_calibration_ETTh1_48_diag.pth"
    other.touch()
    forget(kept.folder / "checkpoint.pth")
    assert not kept.path.exists() and other.exists() and (kept.folder / "checkpoint.pth").exists()


# --- rolling factors

def factors_by_hand(paths, truth, rows, windows, span, prior):
    horizon, result = truth.shape[1], torch.ones(truth.shape)
    for i, row in enumerate(rows):
        for step in range(horizon):
            first = step // P * P
            last = min(first + P, horizon)
            seen = []
            for k, before in enumerate(rows):
                same_series = before // windows == row // windows
                if same_series and before + last <= row and before + last > row - span:
                    gap = (truth[k] - paths[k].mean(dim=0)).square() / (paths[k].var(dim=0) * (1 + 1 / len(paths[k])))
                    seen.append(gap[first:last].mean(dim=0))
            total = torch.stack(seen).sum(dim=0) if seen else 0.0
            result[i, step] = ((prior + total) / (prior + len(seen)) * torch.ones(truth.shape[2])).sqrt()
    return result


def test_rolling_factors_are_those_of_a_loop_and_look_at_nothing_later():
    generator = torch.Generator().manual_seed(0)
    rows = [0, 2, 3, 7, 9, 14, 15, 22, 30, 31, 36]  # two series of 20 windows
    paths = torch.randn(len(rows), 6, 10, C, generator=generator)
    truth = 3 * torch.randn(len(rows), 10, C, generator=generator)
    expected = factors_by_hand(paths, truth, rows, 20, 9, 0.5)
    assert (expected != 1).any(dim=2).sum() > 20
    for parts in (1, 4):
        rolling = RollingScale(P, 9, 20, 0.5)
        found = torch.cat([rolling.factors(*batch) for batch in zip(
            paths.chunk(parts), truth.chunk(parts), torch.tensor(rows).chunk(parts))])
        torch.testing.assert_close(found, expected)
    changed = truth.clone()
    changed[4:] += 100
    found = RollingScale(P, 9, 20, 0.5).factors(paths, changed, torch.tensor(rows))
    torch.testing.assert_close(found[:5], expected[:5])  # row 4 is not known before row 13


def test_paths_that_are_twice_too_narrow_are_widened_twice():
    generator = torch.Generator().manual_seed(0)
    paths, truth = torch.randn(400, 40, P, C, generator=generator), 2 * torch.randn(400, P, C, generator=generator)
    found = RollingScale(P, 200, 400, 1.0).factors(paths, truth, torch.arange(400))
    assert (found[:P] == 1).all()
    assert found[-1].mean() == pytest.approx(2, rel=0.1)
