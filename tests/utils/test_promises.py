"""The promise: exact tails against enumeration, violation rates, blocks, certificates, the controller's bound."""
import itertools
import math

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from utils.acceptance import Certified
from utils.fidelity import (
    Controller,
    audit_allows,
    blocks_allow,
    blocks_of,
    deviations,
    draw_audit,
    failing_blocks,
    fit_constants,
    hypergeometric_tail,
    least_audit,
    longest_safe,
    mse_change,
    passes_until,
    rms_for_change,
    rms_of_gaps,
)
from utils.speculative_decoder import decode_alone, decode_parareal

# a rate above this is found by chance with a probability below 1e-6, whatever the true rate below `limit`
Z = 4.9


def at_most(limit, trials):
    return limit + Z * math.sqrt(limit * (1 - limit) / trials) + 1 / trials


# --- deviations

def test_deviations_are_rms_in_units_of_each_window_and_variable():
    forecast, reference = torch.zeros(2, 4, 2), torch.zeros(2, 4, 2)
    forecast[0, :, 0], forecast[1, 0] = 3.0, 2.0
    unit = torch.tensor([[[1.5, 4.0]], [[0.5, 1.0]]])
    assert deviations(forecast, reference, unit).tolist() == pytest.approx([math.sqrt(4 / 2), math.sqrt((16 + 4) / 8)])
    assert deviations(forecast, reference).tolist() == pytest.approx([math.sqrt(9 / 2), math.sqrt(8 / 8)])


def test_a_variable_that_is_constant_in_its_window_does_not_count():
    forecast, reference = torch.ones(2, 4, 2), torch.zeros(2, 4, 2)
    flat = 1e-5 ** 0.5
    unit = torch.tensor([[[2.0, flat]], [[flat, flat]]])
    assert deviations(forecast, reference, unit).tolist() == [0.5, 0]


def test_the_mse_changes_by_no_more_than_the_deviation_allows():
    generator = torch.Generator().manual_seed(0)
    truth, own = torch.randn(2, 300, generator=generator).double()
    for scale in (0.001, 0.1, 3.0):
        changes = []
        for way in (torch.randn(300, generator=generator).double(), own - truth, truth - own):  # the last two the worst
            gap = scale * way
            mse, rms = (own - truth).square().mean(), float(gap.square().mean().sqrt())
            changes.append(float(((own + gap - truth).square().mean() - mse).abs()) / mse_change(rms, float(mse)))
        assert max(changes) <= 1 + 1e-12 and changes[1] == pytest.approx(1)
    assert mse_change(rms_for_change(0.005, 0.4375), 0.4375) == pytest.approx(0.005 * 0.4375)


# --- audit

def test_the_tail_is_that_of_all_draws():
    for population, bad, drawn in ((7, 3, 4), (8, 0, 3), (8, 8, 3), (6, 5, 4), (5, 2, 0), (5, 2, 5)):
        draws = list(itertools.combinations(range(population), drawn))
        for observed in range(-1, drawn + 1):
            wanted = sum(sum(number < bad for number in draw) <= observed for draw in draws) / len(draws)
            assert hypergeometric_tail(observed, population, bad, drawn) == pytest.approx(wanted, abs=1e-15)


def test_the_tail_of_large_numbers_is_exact():
    population, bad, drawn, observed = 20_000, 2_001, 700, 50
    wanted = sum(math.comb(bad, x) * math.comb(population - bad, drawn - x) for x in range(observed + 1))
    assert hypergeometric_tail(observed, population, bad, drawn) == wanted / math.comb(population, drawn)
    with pytest.raises(ValueError, match="no draw"):
        hypergeometric_tail(0, 5, 6, 2)
    with pytest.raises(ValueError, match="no draw"):
        hypergeometric_tail(0, 5, 2, 6)


@pytest.mark.parametrize("windows, share, level", [(40, 0.1, 0.05), (192, 0.05, 0.1), (500, 0.1, 0.025), (9, 0.5, 0.2)])
def test_an_audit_allows_what_its_tail_allows(windows, share, level):
    bad = math.floor(share * windows) + 1
    least = least_audit(windows, share, level)
    for drawn in (1, least - 1, least, min(windows, 2 * least), windows):
        allowed = audit_allows(windows, drawn, share, level)
        passing = [x for x in range(drawn + 1) if hypergeometric_tail(x, windows, bad, drawn) <= level]
        assert allowed == max(passing, default=-1)
        assert (allowed >= 0) == (drawn >= least)
    assert audit_allows(windows, windows, share, level) == bad - 1  # all of them: the failures are known


def test_many_windows_need_as_many_audits_as_independent_ones():
    assert least_audit(10**6, 0.05, 0.05) == 59 and least_audit(10**6, 0.05, 0.1) == 45
    assert least_audit(10**6, 0.1, 0.05) == math.ceil(math.log(0.05) / math.log(0.9))
    with pytest.raises(ValueError, match="share 1.0"):
        least_audit(100, 1.0, 0.1)


def test_audits_are_drawn_without_replacement_and_evenly():
    drawn = [draw_audit(30, 6, seed) for seed in range(3000)]
    assert all(len(set(each.tolist())) == 6 and each.tolist() == sorted(each.tolist()) for each in drawn)
    counts = torch.bincount(torch.cat(drawn), minlength=30).double()
    chi = float(((counts - 600).square() / 600).sum()) / (24 / 29)  # of draws without replacement
    assert chi < 29 + 5.5 * math.sqrt(2 * 29)  # false alarm: below 1e-5
    assert draw_audit(30, 6, 1).tolist() == draw_audit(30, 6, 1).tolist() != draw_audit(30, 6, 2).tolist()


def test_testing_ends_at_the_first_setting_that_does_not_pass():
    asked = iter([0, 2, 1, 3, 0, 0])
    assert longest_safe(asked, 2) == 3 and list(asked) == [0, 0]  # the rest is not measured
    assert longest_safe([], 2) == 0 and longest_safe([0, 0], 0) == 2 and longest_safe([0], -1) == 0


POPULATIONS = {  # share of failing windows by setting: just too many at once; a steep and a slow rise; not in order
    "at once": [0.105], "steep": [0.0, 0.0, 0.105, 0.4], "slow": [0.02, 0.05, 0.08, 0.09, 0.101, 0.102, 0.103],
    "not in order": [0.02, 0.105, 0.0, 0.105, 0.0]}


@pytest.mark.parametrize("shares", POPULATIONS.values(), ids=POPULATIONS)
def test_promises_are_broken_no_more_often_than_promised(shares):
    """Failing windows lie next to each other, which the draw does not mind. False alarm: 1e-6 a population."""
    windows, share, level, trials = 400, 0.1, 0.1, 4000
    failing = torch.stack([torch.arange(windows) < math.ceil(each * windows) for each in shares])
    failing = torch.cat([failing[:, 200:], failing[:, :200]], dim=1)
    too_many = failing.sum(dim=1) > share * windows
    assert too_many.any()
    drawn = 60
    most, broken = audit_allows(windows, drawn, share, level), 0
    for seed in range(trials):
        count = longest_safe(failing[:, draw_audit(windows, drawn, seed)].sum(dim=1).tolist(), most)
        broken += bool(count and too_many[count - 1])
    assert broken / trials <= at_most(level, trials)
    if shares == [0.105]:  # the bound is not idle: nearly as many as promised
        assert broken / trials >= hypergeometric_tail(most, windows, 42, drawn) - Z * math.sqrt(level / trials)


# --- validation

def test_blocks_are_as_long_as_a_context_and_a_context_apart():
    blocks = blocks_of(100, 12, 4)
    assert blocks[:2] == [range(0, 12, 4), range(24, 36, 4)] and blocks[-1] == range(72, 84, 4) and len(blocks) == 4
    for one, other in itertools.combinations(blocks_of(1000, 48), 2):  # no row of a context in two of them
        assert one[-1] + 48 <= other[0]
    assert blocks_of(11, 12) == [] and blocks_of(12, 12) == [range(12)]


@pytest.mark.parametrize("blocks, level, allowed", [(5, 0.1, -1), (8, 0.1, -1), (9, 0.1, 0), (18, 0.1, 0), (19, 0.1, 1),
                                                    (4, 0.2, 0), (0, 0.2, -1), (1, 0.5, 0)])
def test_too_few_blocks_promise_nothing(blocks, level, allowed):
    assert blocks_allow(blocks, level) == allowed
    assert (allowed + 1 + 1) / (blocks + 1) > level  # one more would be too many


def test_a_block_that_has_failed_has_failed_at_every_later_setting():
    failed = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]]).bool()
    assert failing_blocks(failed) == [0, 1, 2, 2] and failing_blocks(failed[:0]) == []


def test_the_next_block_fails_no_more_often_than_promised():
    """Exchangeable blocks, whose failures do not grow from setting to setting. False alarm: 1e-6."""
    level, trials, generator = 0.25, 4000, torch.Generator().manual_seed(1)
    broken = chosen = 0
    for _ in range(trials):
        hard = torch.rand(12, generator=generator)  # eleven blocks, and the next
        threshold = torch.tensor([0.02, 0.1, 0.3, 0.2, 0.6])[:, None]
        failed = (hard > 1 - threshold) ^ (torch.rand(5, 12, generator=generator) < 0.05)
        count = longest_safe(failing_blocks(failed[:, :11]), blocks_allow(11, level))
        chosen += count > 0
        broken += bool(count and failed[count - 1, 11])
    assert broken / trials <= at_most(level, trials) and chosen > trials / 2


# --- certificates

def test_constants_are_quantiles_of_a_new_window():
    deviation = torch.arange(1, 21.)[None] * torch.tensor([[1.0], [0.5]])
    gap = torch.ones(2, 20)
    assert fit_constants(deviation, gap, 0.95) == [20, 10] and fit_constants(deviation, gap, 0.5) == [11, 5.5]
    assert fit_constants(deviation[:, :5], gap[:, :5], 0.95) == [5, 2.5]  # too few: the largest
    assert fit_constants(torch.zeros(1, 3), torch.zeros(1, 3)) == [0]


def test_windows_leave_by_their_certificates(series):
    target = tiny_target(norm_mode="causal", norm_window=4)
    draft, context, horizon = tiny_draft(target), series(rows=6), 6 * PATCH
    made = []
    whole = decode_parareal(target, draft, context, horizon, observer=lambda *of: made.append(of))
    alone = decode_alone(target, context, horizon)
    assert len(made) == 6
    for j, (forecast, gap) in enumerate(made[:-1], 1):
        by_passes = decode_parareal(target, draft, context, horizon, j)
        torch.testing.assert_close(forecast, by_passes.forecast, atol=1e-5, rtol=0)
        torch.testing.assert_close(gap, by_passes.gap, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made[-1][0], whole.forecast)
    deviation = torch.stack([deviations(forecast, alone) for forecast, _ in made[:-1]])
    gaps = torch.stack([rms_of_gaps(gap) for _, gap in made[:-1]])
    constants = fit_constants(deviation, gaps, 0.5)
    limit = float((torch.tensor(constants)[1] * gaps[1]).median()) * 1.0001
    rule = Certified(constants, limit)
    stopped = decode_parareal(target, draft, context, horizon, rule.passes, rule.tol, constants=rule.constants)
    wanted = passes_until(gaps, constants, limit)
    assert stopped.target_passes.tolist() == wanted.tolist() and len(set(wanted.tolist())) > 1
    for row, passes in enumerate(wanted.tolist()):
        torch.testing.assert_close(stopped.forecast[row], made[passes - 1][0][row], atol=1e-5, rtol=0)
    by_rows = [decode_parareal(target, draft, context[row:row + 1], horizon, None, limit, constants=constants)
               for row in range(6)]
    assert [int(one.target_passes) for one in by_rows] == wanted.tolist()
    with pytest.raises(ValueError, match="there are 3 constants, but 5 passes"):
        decode_parareal(target, draft, context, horizon, constants=constants[:3])


def test_the_pass_of_a_certificate():
    gap = torch.tensor([[4.0, 1.0, 9.0, float("nan")], [2.0, 5.0, 9.0, 0.0]])
    assert passes_until(gap, [1.0, 0.5], 1.0).tolist() == [2, 1, 3, 2]


# --- stream

STREAMS = {"always the worst": lambda t, setting: 9.0, "the worst where it may": lambda t, setting: 9.0 * (setting > 0),
           "in turns": lambda t, setting: 9.0 * (t % 7 == 0), "as the setting": lambda t, setting: 2 * setting,
           "late": lambda t, setting: 9.0 * (t > 300), "never": lambda t, setting: 0.0}


@pytest.mark.parametrize("deviate", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("rate, start", [(0.05, 0.0), (3.0, 0.0), (0.2, 2.0)])
def test_the_mean_of_any_stream_keeps_to_the_bound(deviate, rate, start):
    controller, total = Controller(budget=0.1, rate=rate, top=1.0, start=start), 0.0
    assert controller.setting == start and controller.bound() == 1
    for t in range(1, 601):
        deviation = deviate(t, controller.setting) if controller.setting > 0 else 0.0  # 0 is the target alone
        controller.update(deviation)
        total += min(deviation, 1.0)
        assert total / t <= controller.bound() + 1e-12
    assert controller.bound() <= 0.1 + (start / rate + 0.9) / 600 + 1e-12


def test_the_bound_is_reached_and_tends_to_the_budget():
    controller, total = Controller(budget=0.1, rate=0.5, top=1.0, start=1e-9), 0.0
    controller.update(5.0)
    assert controller.bound() == pytest.approx(1.0) and controller.setting == 0 > controller.level
    for _ in range(9):
        controller.update(0.0)
    assert controller.setting == pytest.approx(0, abs=1e-8)  # nine windows of the target alone pay for it
    for _ in range(2000):
        deviation = 1.0 if controller.setting > 0 else 0.0
        controller.update(deviation)
        total += deviation
    assert total / 2000 == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("wrong", [{"budget": 0.0}, {"budget": 1.0}, {"rate": 0.0}, {"start": -1.0},
                                   {"top": math.inf}, {"rate": math.nan}])
def test_a_controller_refuses_what_has_no_bound(wrong):
    with pytest.raises(ValueError, match="needed are"):
        Controller(**({"budget": 0.1, "rate": 0.5, "top": 1.0} | wrong))
    with pytest.raises(ValueError, match="the deviation is nan"):
        Controller(0.1, 0.5, 1.0).update(math.nan)
