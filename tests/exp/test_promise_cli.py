"""--spec_rms and --spec_budget from the command line to the files: what is promised, chosen, found, and refused."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from exp_helpers import (
    CONTEXT,
    DRAFT,
    PATCH,
    ROWS,
    SIZES,
    TARGET,
    command,
    load,
    metrics,
    results,
    speculate,
    standardised,
)
from helpers import tiny_series, write_series

from exp.evaluate.ladders import CERTAIN, TOLERANCES
from exp.predict import Forecaster
from exp.speculation import SpecSettings
from models.checkpoint import read_tensors
from utils.acceptance import Tolerance
from utils.errors import UserError
from utils.fidelity import audit_allows, draw_audit, fit_constants, least_audit, rms_for_change
from utils.files import digest
from utils.speculative_decoder import decode_alone, decode_parareal, decode_speculative

PARAREAL = "--spec_accept_rule parareal"
HORIZON, PATCHES, WINDOWS = 60, 5, 61


def windows(first, count, horizon=HORIZON):
    """Contexts and truths [W, ...] of `count` windows whose contexts begin at row `first`, `first` + 1, ..."""
    values = torch.from_numpy(standardised()).float()
    parts = values.unfold(0, CONTEXT + horizon, 1)[first:first + count].transpose(1, 2)
    return parts[:, :CONTEXT], parts[:, CONTEXT:]


def windows_of_the_test():
    return windows(ROWS - int(ROWS * 0.2) - CONTEXT, WINDOWS)


def rms(forecast, alone, context):
    """By window, in standard deviations of the last N patches of the context, which are all of it."""
    unit = (context.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return ((forecast - alone) / unit).double().square().mean(dim=(1, 2)).sqrt()


def rms_gap(decoded):
    return decoded.gap.square().mean(dim=1).sqrt()


def fitted_by_hand(lab, measure=None):
    """The constants of parareal's certificates, in window units or as `measure` says."""
    target, draft = load(lab, TARGET), load(lab, DRAFT)
    context, _ = windows(int(ROWS * 0.7) - CONTEXT, int(ROWS * 0.1) - PATCH + 1, PATCH)
    made = [decode_parareal(target, draft, context, HORIZON, passes) for passes in range(1, PATCHES)]
    alone = decode_alone(target, context, HORIZON)
    deviation = torch.stack([(measure or rms)(one.forecast, alone, context) for one in made])
    return fit_constants(deviation, torch.stack([rms_gap(one) for one in made]))


def ladders_by_hand(lab, context, budget):
    """(deviations, passes) of every step of parareal's two ladders on the contexts, each decoded by itself."""
    target, draft = load(lab, TARGET), load(lab, DRAFT)
    made = [decode_parareal(target, draft, context, HORIZON, passes) for passes in range(1, PATCHES)]
    constants, alone = fitted_by_hand(lab), decode_alone(target, context, HORIZON)
    deviation = [rms(one.forecast, alone, context) for one in made]
    passes = [(deviation[j - 1], torch.full((len(context),), float(j))) for j in range(PATCHES - 1, 0, -1)]
    certified = [decode_parareal(target, draft, context, HORIZON, None, times * budget, constants=constants)
                 for times in CERTAIN]
    return [passes, [(rms(one.forecast, alone, context), one.target_passes.double()) for one in certified]], constants


@pytest.mark.parametrize("budget", [0.05, 0.12, 0.3])
def test_parareal_keeps_its_promise_as_done_by_hand(own_lab, budget, capsys):
    got = speculate(own_lab, f"{PARAREAL} --spec_rms {budget}")["promise"]
    said = capsys.readouterr().out
    count = least_audit(WINDOWS, 0.1, 0.025)  # two ladders share the level of 5 %
    most = audit_allows(WINDOWS, count, 0.1, 0.025)
    drawn = draw_audit(WINDOWS, count, 2021)
    context, truth = windows_of_the_test()
    ladders, constants = ladders_by_hand(own_lab, context, budget)
    safe = []
    for ladder in ladders:
        for deviation, passes in ladder:
            if (deviation[drawn] > budget).sum() > most:
                break
            safe.append((float(passes[drawn].mean()), deviation, passes))
    passes, deviation, by_window = min(safe, key=lambda step: step[0])
    assert passes < PATCHES
    others = torch.ones(WINDOWS, dtype=torch.bool)
    others[drawn] = False
    wanted = torch.where(others, deviation, 0)
    assert (got["kind"], got["windows"], got["audited"], got["failures_allowed"]) == ("audit", WINDOWS, count, most)
    assert got["failures"] == int((deviation[drawn] > budget).sum()) and got["p_value"] <= 0.05
    assert got["found"]["failing"] == int((wanted > budget).sum())
    assert got["found"]["largest"] == pytest.approx(float(wanted.max()), rel=1e-3)
    mean = float(torch.where(others, by_window, PATCHES).mean())
    assert got["found"]["target_passes"] == pytest.approx(mean) == metrics()["target_passes"]
    if got["settings"].keys() == {"certificate", "constants"}:
        assert got["settings"]["constants"] == pytest.approx(constants, rel=1e-3)
    assert "with 95 % confidence at most 10 % of these 61 windows deviate by more than" in said
    assert f"which assumes nothing: the target has forecast {count} of them" in said
    assert f"Chosen: {got['chosen']}" in said
    assert "found, as the target has forecast all 61 windows here: " in said
    assert metrics()["speculation"]["spec_rms"] == budget


def test_a_tolerance_is_chosen_as_done_by_hand(own_lab):
    budget = 0.3
    got = speculate(own_lab, f"--spec_rms {budget} --spec_repropose corrected --batch_size 9")
    promise, target, draft = got["promise"], load(own_lab, TARGET), load(own_lab, DRAFT)
    count = least_audit(WINDOWS, 0.1, 0.05)
    drawn, (context, truth) = draw_audit(WINDOWS, count, 2021), windows_of_the_test()
    alone = decode_alone(target, context, HORIZON)
    cost, best = PATCHES, None
    for times in TOLERANCES:
        made = decode_speculative(target, draft, context, HORIZON, Tolerance(times * budget), repropose="corrected")
        cost += float(made.target_passes[drawn].double().mean())
        if (rms(made.forecast, alone, context)[drawn] > budget).any():
            break
        best = times * budget, made
    tol, made = best
    assert promise["settings"] == {"spec_tol": pytest.approx(tol)} and promise["audit_passes"] == pytest.approx(cost)
    forecast, passes = made.forecast.clone(), made.target_passes.clone()
    forecast[drawn], passes[drawn] = alone[drawn], PATCHES
    assert got["mse"] == pytest.approx(float((forecast - truth).square().mean()), rel=1e-4)
    assert got["target_passes"] == pytest.approx(float(passes.double().mean()))
    assert promise["found"]["target_passes"] == pytest.approx(got["target_passes"] + count / WINDOWS * (cost - PATCHES))
    # every round of an audited window ends with the target's own patch, without a proposal
    assert got["accepted_length_histogram"][0] >= PATCHES * count
    assert got["accepted"] + got["target_passes"] * WINDOWS == pytest.approx(PATCHES * WINDOWS)
    again = speculate(own_lab, f"--spec_rms {budget} --spec_repropose corrected --batch_size 64")
    assert again["mse"] == pytest.approx(got["mse"], rel=1e-5) and again["promise"]["chosen"] == promise["chosen"]


@pytest.mark.parametrize("rule", [PARAREAL, ""])
def test_where_nothing_is_cheaper_it_is_the_target_alone(own_lab, rule):
    got = speculate(own_lab, f"{rule} --spec_rms 1e-6 --visualize --pictures 1 --trace_inference_breakdown")
    assert got["promise"]["settings"] is None and got["promise"]["chosen"] == "the target alone, 5 passes each"
    assert got["draft_passes"] == 0 and got["target_passes"] == PATCHES and got["promise"]["found"]["largest"] == 0
    assert got["mse"] == got["promise"]["found"]["mse_of_target"] and list(results().glob("forecast_*.png"))


def test_a_budget_of_the_mse_is_translated_by_the_targets_own(own_lab, capsys):
    got = speculate(own_lab, f"{PARAREAL} --spec_budget 20%")
    context, truth = windows(int(ROWS * 0.7) - CONTEXT, int(ROWS * 0.1) - HORIZON + 1)
    mse = float((decode_alone(load(own_lab, TARGET), context, HORIZON) - truth).square().mean())
    promise = got["promise"]
    assert promise["validation_mse"] == pytest.approx(mse, rel=1e-4)
    assert promise["rms"] == pytest.approx(rms_for_change(0.2, mse), rel=1e-4)
    assert promise["unit"] == "standardised units"
    found = promise["found"]
    assert abs(found["mse_change_pct"]) <= found["most_mse_change_pct"] <= 20
    assert found["mse_change_pct"] == pytest.approx(100 * (got["mse"] / found["mse_of_target"] - 1))
    assert "changes the MSE by at most 20 %" in capsys.readouterr().out
    forecast, alone = promise["found"]["rms"], promise["rms"]
    assert 0 < forecast <= alone
    path = certificate(own_lab, "series")
    by_hand = fitted_by_hand(own_lab, lambda one, other, _: (one - other).double().square().mean(dim=(1, 2)).sqrt())
    assert read_tensors(path)["constants"] == pytest.approx(by_hand, rel=1e-3)


def test_two_ladders_share_the_level(own_lab):
    """With so many windows that an audit of the whole level would allow one failure more."""
    write_series(tiny_series(9600), "long.csv")
    flags = f"--root_path . --data_path long.csv --test_windows 1240 {PARAREAL} --batch_size 256"
    got = speculate(own_lab, f"{flags} --spec_rms 0.3")["promise"]
    assert (got["windows"], got["audited"]) == (1240, 62)  # a twentieth
    assert got["failures_allowed"] == audit_allows(1240, 62, 0.1, 0.025) < audit_allows(1240, 62, 0.1, 0.05)


# --- validation

@pytest.mark.parametrize("budget", [0.15, 0.25, 0.4])
def test_validation_promises_of_blocks(own_lab, capsys, budget):
    """A file with ten blocks in its validation part, none of which may have a failing window."""
    write_series(tiny_series(9600), "long.csv")
    flags = f"--root_path . --data_path long.csv --test_windows 40 {PARAREAL} --spec_promise validation"
    got = speculate(own_lab, f"{flags} --spec_rms {budget}")["promise"]
    target, draft = load(own_lab, TARGET), load(own_lab, DRAFT)
    values = tiny_series(9600).round(5)
    train = values[:6720]
    values = torch.from_numpy((values - train.mean(axis=0)) / train.std(axis=0)).float()[6720 - CONTEXT:7680]
    blocks = range(0, 960 - PATCH + 1 - CONTEXT + 1, 2 * CONTEXT)
    context = torch.stack([values[first + j:first + j + CONTEXT] for first in blocks for j in range(0, CONTEXT, PATCH)])
    alone = decode_alone(target, context, HORIZON)
    failing = {}
    for passes in range(PATCHES - 1, 0, -1):
        forecast = decode_parareal(target, draft, context, HORIZON, passes).forecast
        failing[passes] = int((rms(forecast, alone, context) > budget).unflatten(0, (len(blocks), -1)).any(dim=1).sum())
    wanted = min(passes for passes in failing if all(failing[more] == 0 for more in failing if more >= passes))
    assert (got["kind"], got["blocks"], got["failures_allowed"], got["audited"]) == ("validation", 10, 0, 0)
    assert got["settings"] == {"spec_passes": wanted, "spec_tol": 0.0} and got["failures"] == 0
    assert metrics()["target_passes"] == wanted == got["found"]["target_passes"]
    said = capsys.readouterr().out
    assert "assumes that the next block is like the 10 blocks of the validation part" in said
    assert "audit's among" not in said


# --- certificates

def certificate(lab, unit):
    """The file of the constants of the pair."""
    draft = digest(lab / "checkpoints" / DRAFT / "checkpoint.pth")[:8]
    return lab / f"checkpoints/{TARGET}/checkpoint_certificate_tiny_{CONTEXT}_{HORIZON}_{unit}_{draft}.pth"


def test_certificates_are_kept_beside_the_checkpoint_with_what_they_depend_on(own_lab, capsys):
    path = certificate(own_lab, "window")
    flags = f"{PARAREAL} --spec_rms 0.05"
    first = speculate(own_lab, flags)["promise"]
    kept = path.read_bytes()
    assert f"stored in {path}" in capsys.readouterr().out
    assert speculate(own_lab, flags)["promise"] == first and path.read_bytes() == kept
    assert "certificates fitted" not in capsys.readouterr().out
    pair = f"--use_speculative --spec_draft_ckpt {own_lab}/checkpoints/{DRAFT}/checkpoint.pth"
    assert command(own_lab, f"--test_pred_len {HORIZON} {pair} {flags} --bf16") == 0
    assert path.with_name(f"{path.stem}_bf16.pth").exists() and path.read_bytes() == kept
    assert command(own_lab, f"--test_pred_len {HORIZON} {pair} {flags} --amp") == 2
    assert f"error: {path} was fitted for other amp ('', here 'bf16')" in capsys.readouterr().err
    draft = own_lab / f"checkpoints/{DRAFT}/checkpoint.pth"
    content = torch.load(draft, weights_only=True)
    torch.save({name: value * 1.01 for name, value in content.items()}, draft)
    assert command(own_lab, f"--test_pred_len {HORIZON} --use_speculative --spec_draft_ckpt {draft} {flags}") == 0
    other = certificate(own_lab, "window")  # each draft has its own
    assert other != path and f"stored in {other}" in capsys.readouterr().out and path.read_bytes() == kept
    shutil.copy(path, other)
    assert command(own_lab, f"--test_pred_len {HORIZON} --use_speculative --spec_draft_ckpt {draft} {flags}") == 2
    assert f"error: {other} was fitted for other draft" in capsys.readouterr().err
    other.write_bytes(kept[:100])
    assert command(own_lab, f"--test_pred_len {HORIZON} --use_speculative --spec_draft_ckpt {draft} {flags}") == 2
    assert "is damaged" in capsys.readouterr().err


# --- what is refused

@pytest.mark.parametrize("flags, words", [
    ("--spec_rms 0.1 --spec_accept_rule coupling", "--spec_rms does not apply to --spec_accept_rule coupling"),
    ("--spec_budget 1% --spec_accept_rule exact", "--spec_budget does not apply to --spec_accept_rule exact"),
    ("--spec_rms 0.1 --spec_sigma 0.2", "--spec_rms does not apply to --spec_accept_rule simplified"),
    ("--spec_rms 0.1 --spec_tol 0.1", "so that --spec_tol has no effect"),
    (f"{PARAREAL} --spec_budget 1% --spec_passes 2", "so that --spec_passes has no effect"),
    ("--spec_rms 0.1 --spec_budget 1%", "two ways to say how far forecasts may deviate"),
    ("--spec_rms 0.1 --spec_k auto", "--spec_k auto chooses K for a tolerance"),
    ("--spec_rms 0.1 --spec_adaptive", "--spec_rms needs forecasts that depend on their own window alone"),
    ("--spec_rms 0.1 --spec_debug_accept", "--spec_rms forecasts the audited windows by the target alone"),
    ("--spec_rms 0.1 --num_samples 4 --spec_accept_rule parareal", "--spec_rms is a promise on the mean forecast"),
    ("--spec_rms 0.1 --do_predict", "--spec_rms needs many windows"),
    ("--spec_promise audit", "--spec_promise has no effect without --spec_rms or --spec_budget"),
    ("--spec_budget 1", "'1' is not a percentage above 0, to 100, such as 0.5%"),
    ("--spec_budget 0%", "'0%' is not a percentage"), ("--spec_budget 101%", "'101%' is not a percentage"),
    ("--spec_budget 1%%", "'1%%' is not a percentage"), ("--spec_rms 0", "--spec_rms"),
    ("--spec_rms 0.1 --test_windows 9", "--spec_promise audit: 9 of the 9 windows would have to be forecast"),
    ("--spec_rms 0.1 --spec_promise validation", "has 1 blocks of 48 windows with as many between them, and nothing "
                                                 "below 1/2 can be promised"),
    ("--spec_rms 0.1 --spec_promise validation --test_flag V", "forecasts the validation part itself"),
    ("--spec_rms 0.1 --test_pred_len 12", "a horizon of 12 is a single patch"),
])
def test_what_cannot_be_promised_is_refused(lab, place, capsys, flags, words):
    draft = f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth"
    assert command(lab, f"--test_pred_len 60 {draft} {flags}") == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not list(Path().glob("test_results/*/*.json"))


def test_without_a_draft_in_use_there_is_nothing_to_promise(lab, place, capsys):
    assert command(lab, "--test_pred_len 60 --spec_rms 0.1") == 2
    assert "--spec_rms has no effect without --use_speculative" in capsys.readouterr().err


def test_too_few_windows_are_refused_before_a_training(lab, place, capsys):
    import run
    write_series(tiny_series())
    flags = (f"--quiet --root_path . --data_path tiny.csv --seq_len {CONTEXT} --input_token_len {PATCH} {SIZES} "
             f"--use_speculative --spec_draft_ckpt {lab}/checkpoints/{DRAFT}/checkpoint.pth --spec_rms 0.1 "
             "--test_pred_len 60 --test_windows 9")
    assert run.main(flags.split()) == 2
    assert "too few windows" in capsys.readouterr().err and not list(Path().glob("checkpoints/*/checkpoint.pth"))


@pytest.mark.parametrize("spec, word", [({"rms": 0.1}, "rms"), ({"budget": 0.01}, "budget"),
                                        ({"promise": "validation"}, "promise")])
def test_a_forecast_beyond_the_end_promises_nothing(lab, spec, word):
    with pytest.raises(UserError, match=f"`{word}` needs many windows"):
        Forecaster.load(lab / "checkpoints" / TARGET, lab / "checkpoints" / DRAFT, spec=SpecSettings(**spec))


def test_every_promise_names_windows_that_do_not_deviate_by_chance():
    with pytest.raises(UserError, match="must be a percentage above 0"):
        SpecSettings(budget=0.0)
    np.testing.assert_allclose(SpecSettings(budget=0.005).budget, 0.005)
