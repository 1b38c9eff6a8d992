"""The grid of a sweep: which cells there are, and values that lie where the rules of these very models change over."""
import math

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_series, tiny_target

from exp.report.results import DRAFT, TARGET
from exp.speculation import SpecSettings
from exp.sweep.gaps import Gaps, measure_gaps, spaced
from exp.sweep.grid import ALL, Cell, columns_of, make_cells
from utils.acceptance import WAYS, Simplified, Tolerance
from utils.errors import UserError
from utils.interface import Prediction
from utils.lossless import Coupling
from utils.proposals import Proposals
from utils.speculative_decoder import decode_speculative
from utils.target_law import TargetLaw

GRID = {"rule": ["simplified"], "emit": ["mean"], "sigma": [0.1, 0.5], "bias": [1.0, 9.0], "tol": [0.1, 0.2, 0.3],
        "k": [1, 2]}


def cells(grid, given=(), patches=8):
    return make_cells(SpecSettings(), set(), GRID | grid, set(given), patches)


@pytest.mark.parametrize("patches, count", [(8, 80), (4, 48), (2, 16)])
def test_the_published_grid_is_that_of_the_first_versions(patches, count):
    got = make_cells(SpecSettings(), set(), columns_of("published", {}, {}), set(), patches)
    assert got[:2] == [Cell(TARGET), Cell(DRAFT)] and len(got) == len(set(got)) == 2 + count
    assert set(got[2:]) == {Cell("simplified", "mean", sigma, bias, None, min(k, patches - 1))
                            for sigma in (0.1, 0.25, 0.5, 1.0) for bias in (1.0, 2.0, 5.0, 10.0) for k in range(1, 6)}


@pytest.mark.parametrize("patches, ks", [(2, {1}), (3, {1, 2}), (4, {1, 3}), (8, {1, 3, 7})])
def test_the_default_grid_has_every_rule_and_no_cell_twice(patches, ks):
    got = make_cells(SpecSettings(), set(), columns_of("gap", {}, {}), set(), patches)
    assert len(got) == len(set(got)) == 2 + 30 * len(ks) + 6
    assert {cell.k for cell in got[2:] if cell.rule != "parareal"} == ks
    assert {(cell.rule, cell.emit) for cell in got[2:]} == {
        ("simplified", "mean"), ("simplified", "sample"), ("exact", "sample"), ("coupling", "sample"),
        ("tolerance", "mean"), ("parareal", "mean")}
    assert [cell for cell in got if cell.rule == "parareal"] == [
        Cell("parareal", "mean", tol=float(value)) for value in range(1, 7)]


def test_a_parameter_without_meaning_makes_no_cells_and_no_value():
    got = cells({"rule": ["simplified", "tolerance"], "emit": ["mean", "sample"]})
    simplified, tolerance = ([cell for cell in got if cell.rule == name] for name in ("simplified", "tolerance"))
    assert len(simplified) == 2 * 2 * 2 * 2 and {cell.tol for cell in simplified} == {None}
    assert len(set(tolerance)) == len(tolerance) == 3 * 2
    assert {(cell.emit, cell.sigma, cell.bias) for cell in tolerance} == {("mean", None, None)}


def test_every_rule_of_the_program_can_be_swept():
    got = cells({"rule": sorted(WAYS)})
    assert {cell.rule for cell in got} == {TARGET, DRAFT, *WAYS}


def test_all_is_the_number_of_proposals_that_a_forecast_has_room_for():
    assert [cell.k for cell in cells({"sigma": [0.1], "bias": [1.0], "k": [ALL, 2, 9]}, patches=5)[2:]] == [4, 2]


@pytest.mark.parametrize("grid, given, word", [
    ({"rule": ["tolerance"]}, {"sigma"}, "--sigma"), ({"rule": ["tolerance"]}, {"bias", "tol"}, "--bias"),
    ({"rule": ["tolerance"], "emit": ["sample"]}, {"emit"}, "--emit"), ({}, {"tol"}, "--tol")])
def test_a_list_that_no_rule_has_a_use_for_is_refused(grid, given, word):
    with pytest.raises(UserError, match=f"{word} .* does not apply to --rule"):
        cells(grid, given)


@pytest.mark.parametrize("shared, left", [
    ({}, ["simplified", "exact", "coupling", "tolerance", "parareal"]),
    ({"temp": 2.0}, ["simplified", "exact", "coupling"]),
    ({"sigma_mode": "calibrated"}, ["exact", "coupling"]), ({"sigma_mode": "adaptive"}, ["simplified"]),
    ({"repropose": "target"}, ["tolerance"])])
def test_a_grid_keeps_the_rules_that_all_settings_apply_to(shared, left):
    assert columns_of("gap", {}, shared)["rule"] == left
    assert columns_of("gap", {"rule": ["exact"]}, shared)["rule"] == ["exact"]  # the user's are left alone


def test_settings_that_apply_to_no_rule_of_the_grid_are_refused():
    with pytest.raises(UserError, match="`sigma_mode` calibrated .* simplified"):
        columns_of("published", {}, {"sigma_mode": "calibrated"})


ROWS, SHAPE = 4000, (1, 24, 2)  # rows of one proposal of 48 elements


def one_round(gap, sigma_q):
    """Proposals and predictions of ROWS rows whose means differ by an RMS of `gap`; sigma_q: None for a plain draft."""
    generator = torch.Generator().manual_seed(1)
    offset = torch.randn(1, *SHAPE, generator=generator)
    offset *= gap / offset.square().mean().sqrt()
    mean, one = torch.zeros(ROWS, *SHAPE), torch.ones(ROWS, 1, 1, SHAPE[-1])
    logvar = None if sigma_q is None else torch.full_like(mean, 2 * math.log(sigma_q))
    draft = Prediction(mean + offset, logvar, one, one)
    target = Prediction(mean, None, one, one)
    return draft, target, torch.randn(mean.shape, generator=generator), torch.rand(ROWS, 1, generator=generator)


def rate(rule, gap, sigma_q):
    draft, target, eps, uniform = one_round(gap, sigma_q)
    proposals: Proposals = rule.propose(draft, eps)
    return float(rule.judge(proposals, target, uniform).accepted.double().mean())


def sigma_at(rule, gap, sigma_q, temp=1.0):
    one = torch.tensor([gap], dtype=torch.float64)
    variance = None if sigma_q is None else torch.tensor([sigma_q**2], dtype=torch.float64)
    return float(Gaps(one, one, variance, 48, 1).indifferent_sigmas(rule, temp)[0])


# 4000 draws: the standard error of a rate is below 0.008
@pytest.mark.parametrize("temp", [1.0, 2.0])
@pytest.mark.parametrize("gap, sigma_q", [(0.3, 0.1), (0.1, 0.2), (0.2, 0.2)])
def test_at_its_sigma_the_published_rule_accepts_about_half(gap, sigma_q, temp):
    sigma = sigma_at("simplified", gap, sigma_q, temp)
    rates = [rate(Simplified(sigma=factor * sigma, temp=temp), gap, sigma_q) for factor in (0.5, 1.0, 2.0)]
    assert rates[0] < 0.03 and 0.3 < rates[1] < 0.75 and rates[2] > 0.97


@pytest.mark.parametrize("temp", [1.0, 2.0])
@pytest.mark.parametrize("gap", [0.02, 0.3])
def test_with_the_targets_sigma_half_of_the_proposals_pass(gap, temp):
    sigma = sigma_at("coupling", gap, 0.2, temp)
    assert rate(Coupling(TargetLaw.fixed(sigma).scaled(temp)), gap, 0.2) == pytest.approx(0.5, abs=0.035)
    plain = sigma_at("simplified", gap, None, temp)  # a draft without a variance head: the same
    assert plain == sigma
    assert rate(Simplified(sigma=plain, temp=temp), gap, None) == pytest.approx(0.5, abs=0.035)


def test_spaced_values_go_from_the_5th_to_the_95th_percentile_in_two_digits():
    values = torch.logspace(-2, 1, 1001, dtype=torch.float64)
    assert spaced(values.flip(0)) == [0.014, 0.049, 0.17, 0.59, 2.0, 7.1]  # 10^-1.85 ... 10^0.85
    assert spaced(torch.full((9,), 0.12345, dtype=torch.float64)) == [0.12]  # no value twice


def test_the_gaps_are_those_that_a_tolerance_judges():
    target = tiny_target()
    draft, context = tiny_draft(target), torch.from_numpy(tiny_series(4 * PATCH)).float()[None]
    (gap,) = set(measure_gaps(target, draft, [context], 2 * PATCH, 2).relative.tolist())  # one proposal, judged twice
    for factor, accepted in ((1.001, 1), (0.999, 0)):
        decoded = decode_speculative(target, draft, context, 2 * PATCH, Tolerance(factor * gap), 1)
        assert int(decoded.accepted) == accepted
    gaps = measure_gaps(target, draft, [context, context + 1], 4 * PATCH, 4)
    assert gaps.windows == 2 and len(gaps.relative) == len(gaps.standardised) == 2 * 2 * 3
    assert gaps.elements == PATCH * context.shape[2]


def test_the_two_units_differ_by_the_deviation_of_the_window():
    target = tiny_target()
    draft, context = tiny_draft(target), torch.from_numpy(tiny_series(4 * PATCH)).float()[None]
    once, tenfold = (measure_gaps(target, draft, [factor * context], 2 * PATCH, 2) for factor in (1, 10))
    assert tenfold.relative.tolist() == pytest.approx(once.relative.tolist(), rel=1e-3)
    assert tenfold.standardised.tolist() == pytest.approx((10 * once.standardised).tolist(), rel=1e-3)
