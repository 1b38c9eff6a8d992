"""--spec_draft head: a target's own longer heads as its draft, from the command line and in Python."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from exp_helpers import BASE, CAUSAL_DRAFT, CAUSAL_TARGET, CONTEXT, ROWS, TARGET, command, metrics, standardised
from helpers import tiny_series

import run
from exp.own_heads import heads_beside, with_heads
from exp.predict import Forecaster
from exp.settings import RunSettings
from exp.speculation import SpecSettings
from models import registry
from utils.acceptance import Tolerance
from utils.errors import UserError
from utils.speculative_decoder import decode_alone, decode_speculative

PATCHES, AHEAD = 5, 3  # of a horizon of 60
HEAD = "--use_speculative --spec_draft head"
TOLERANCE = "--spec_tol 0.4"  # some proposals pass, some do not


@pytest.fixture(scope="module")
def headed(lab, causal, tmp_path_factory):
    """The laboratory of `lab`, where the causal target has longer heads."""
    folder = tmp_path_factory.mktemp("headed") / "lab"
    shutil.copytree(lab, folder, ignore=shutil.ignore_patterns("test_results"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = (f"--quiet --root_path . --data_path tiny.csv --self_draft {AHEAD + 1} --distill_target_ckpt "
                 f"checkpoints/{CAUSAL_TARGET} --test_pred_len 60 --learning_rate 0.01 --train_epochs 3")
        assert run.main(flags.split()) == 0
        shutil.rmtree("test_results")
    return folder


@pytest.fixture
def checkpoint(headed):
    return headed / "checkpoints" / CAUSAL_TARGET / "checkpoint.pth"


def ask(headed, flags, horizon=60):
    """metrics.json of a test."""
    assert command(headed, f"--test_pred_len {horizon} {flags}", CAUSAL_TARGET) == 0
    return metrics()


def loaded(checkpoint):
    return with_heads(registry.load(checkpoint, packed=False), checkpoint, RunSettings())


def contexts(horizon=60):
    """Contexts and truths of all test windows."""
    values = torch.from_numpy(standardised()).float()
    windows = values[ROWS - int(ROWS * 0.2) - CONTEXT:].unfold(0, CONTEXT + horizon, 1).transpose(1, 2)
    return windows[:, :CONTEXT], windows[:, CONTEXT:]


def test_a_test_is_the_decoder_with_these_heads(headed, checkpoint, place):
    found = ask(headed, f"{HEAD} {TOLERANCE}")
    target, (context, truth) = loaded(checkpoint), contexts()
    decoded = decode_speculative(target, None, context, 60, Tolerance(0.4))
    assert found["mse"] == pytest.approx(float((decoded.forecast - truth).square().mean()), rel=1e-4)
    assert found["target_passes"] == pytest.approx(float(decoded.target_passes.double().mean()), rel=1e-9)
    assert found["draft_passes"] == 0 and 0 < found["acceptance_pct"] < 100
    assert found["speculation"]["spec_draft"] == "head" and found["speculation"]["spec_draft_ckpt"] is None
    assert len(found["accepted_length_histogram"]) == 1 + AHEAD


def test_tolerance_zero_and_no_speculation_are_the_target_alone(headed, place):
    plain = ask(headed, "")
    none = ask(headed, f"{HEAD} --spec_tol 0")
    assert none["mse"] == pytest.approx(plain["mse"], rel=1e-5) and none["target_passes"] == PATCHES


@pytest.mark.parametrize("flags", [
    "--spec_accept_rule coupling --spec_sigma 0.5 --num_samples 5", "--spec_accept_rule exact --spec_sigma 0.5",
    "--spec_k 1 --spec_adaptive", "--spec_k auto", "--spec_rms 0.3 --spec_promise audit",
    "--trace_inference_breakdown --spec_debug_accept --visualize --pictures 1", "--bf16", "--amp"])
def test_other_settings_apply_to_heads(headed, place, flags):
    found = ask(headed, f"{HEAD} {flags} --spec_debug_n 2" if "debug" in flags else f"{HEAD} {flags}")
    assert found["draft_passes"] == 0 and np.isfinite(found["mse"])
    if "trace" in flags:
        assert set(found["breakdown"]) == {"model", "rest"}
    if "rms" in flags:
        assert found["promise"]["kind"] == "audit"


def test_the_table_has_no_row_of_a_draft_and_none_of_parareal(headed, place, capsys):
    flags = f"--compare --spec_draft head {TOLERANCE} --test_pred_len 60 --test_windows 12 --batch_size 4"
    assert command(headed, flags, CAUSAL_TARGET) == 0
    saved = metrics()
    names = [row["method"] for row in saved["rows"]]
    assert names == ["target alone (cached)", "seasonal-naive (24)", "speculative simplified, sampled",
                     "speculative simplified, mean", "speculative exact", "speculative coupling",
                     "speculative tolerance 0.4"]
    assert saved["decision"]["ways"]["draft"] is None and saved["draft"] is None
    tolerance = saved["rows"][-1]
    assert tolerance["draft_passes"] == 0 and tolerance["kept_pct"] is None
    assert tolerance["flags"] == ["--use_speculative", "--spec_draft", "head", "--spec_accept_rule", "tolerance",
                                  "--spec_tol", "0.4"]
    assert saved["rows"][-2]["flags"] == ["--use_speculative", "--spec_draft", "head", "--spec_accept_rule", "coupling",
                                          "--spec_emit", "sample"]
    assert "kept %" not in capsys.readouterr().out


def test_two_patches_leave_heads_nothing_to_propose(headed, place, capsys):
    assert command(headed, "--compare --spec_draft head --test_pred_len 24 --test_windows 4", CAUSAL_TARGET) == 0
    assert "nothing was proposed, so this is the target alone (heads propose none of" in capsys.readouterr().out


# --- beyond the end of a series

def test_a_prediction_uses_the_heads(headed, checkpoint, place, capsys):
    flags = (f"--do_predict --spec_draft head {TOLERANCE} --root_path {headed} --checkpoints {headed}/checkpoints "
             f"--test_dir {CAUSAL_TARGET} --test_pred_len 60 --pictures 0")
    assert run.main(f"{BASE} {flags}".split()) == 0
    assert "draft_passes" in (said := json.loads(next(place.glob("test_results/*/forecast.json")).read_text()))["cost"]
    frame = pd.DataFrame(tiny_series().round(5), columns=["a", "b", "c"])
    forecaster = Forecaster.load(checkpoint, spec=SpecSettings(tol=0.4), heads=True, quiet=True)
    in_python = forecaster.predict(frame, 60)
    written = pd.read_csv(next(place.glob("test_results/*/forecast.csv")))
    np.testing.assert_allclose(written["mean"], in_python["mean"], rtol=1e-5)
    assert said["settings"]["spec_draft"] == "head" and said["cost"]["draft_passes"] == 0
    alone = Forecaster.load(checkpoint, quiet=True).predict(frame, 60)
    assert not np.allclose(alone["mean"], in_python["mean"], rtol=1e-5)


@pytest.mark.parametrize("more", [{"draft": CAUSAL_DRAFT}, {"spec": SpecSettings(repropose="draft")},
                                  {"spec": SpecSettings(rule="parareal")}])
def test_in_python_heads_take_the_place_of_a_draft(checkpoint, more):
    with pytest.raises(UserError, match="`heads` takes all proposals from the target's own heads"):
        Forecaster.load(checkpoint, heads=True, **more)


# --- a model of one's own

OWN = """
import torch
from utils import FromForward

def headed():
    def next_patch(x):
        return x[:, -12:], None, torch.stack([x[:, -12:], 0.9 * x[:, -12:]], dim=1)
    return FromForward(next_patch, 12, heads_ahead=2)

def plain():
    return FromForward(lambda x: x[:, -12:], 12)
"""


def test_a_model_of_ones_own_brings_its_heads(headed, place, capsys):
    (place / "with_heads.py").write_text(OWN)
    flags = f"{BASE} --is_training 0 --root_path {headed} --test_pred_len 60 --batch_size 8 {HEAD} --spec_tol 0"
    assert run.main(f"{flags} --model with_heads:headed".split()) == 0
    found = metrics()
    # it repeats the last patch for ever, as the first head says; the second one is never right
    assert found["target_passes"] == 3 and found["draft_passes"] == 0
    assert found["acceptance_pct"] == pytest.approx(100 * 2 / 3)
    assert run.main(f"{flags} --model with_heads:plain".split()) == 2
    assert "with_heads:plain has no longer heads (heads_ahead, docs/YOUR_MODEL.md)" in capsys.readouterr().err


# --- what is refused

@pytest.mark.parametrize("flags, wanted", [
    (f"{HEAD} --spec_draft_ckpt x", "--spec_draft_ckpt is about a draft, but --spec_draft head takes proposals from"),
    (f"{HEAD} --spec_draft_model timer_xl", "--spec_draft_model is about a draft"),
    (f"{HEAD} --spec_repropose corrected", "--spec_repropose is about a draft"),
    (f"{HEAD} --spec_accept_rule parareal", "--spec_draft head does not go with --spec_accept_rule parareal"),
    ("--spec_draft head", "--spec_draft has no effect without --use_speculative or --compare"),
    ("--use_speculative", "--use_speculative needs --spec_draft_ckpt, the draft (or --spec_draft head)"),
])
def test_what_heads_do_not_go_with_is_refused(headed, place, capsys, flags, wanted):
    assert command(headed, flags, CAUSAL_TARGET) == 2
    said = capsys.readouterr().err
    assert wanted in said and said.count("\n") == 1
    assert not (place / "test_results").exists()


def test_a_target_without_heads_is_refused_with_the_way_to_train_them(headed, place, capsys):
    assert command(headed, HEAD, TARGET) == 2
    said = capsys.readouterr().err
    assert f"there are no longer heads beside {headed}/checkpoints/{TARGET}/checkpoint.pth: train them with" in said
    assert "--self_draft 8 --distill_target_ckpt" in said and "--spec_draft_ckpt" in said and said.count("\n") == 1


def test_heads_of_another_target_are_refused(headed, place, capsys):
    """As after a target was trained again in the same place."""
    shutil.copytree(headed, place / "other")
    folder = place / "other" / "checkpoints" / CAUSAL_TARGET
    state = torch.load(folder / "checkpoint.pth", weights_only=True)
    torch.save({name: value + 1e-3 for name, value in state.items()}, folder / "checkpoint.pth")
    assert command(place / "other", HEAD, CAUSAL_TARGET) == 2
    said = capsys.readouterr().err
    assert "was not trained on" in said and "as it is, but on a target with the sha256" in said


@pytest.mark.parametrize("damage, wanted", [
    (lambda heads: heads.with_name("args.json").unlink(), "was not trained on"),
    (lambda heads: heads.with_name("args.json").write_text('{"sources": {"distill_target_ckpt": 3}}'), "not trained"),
    (lambda heads: heads.write_bytes(b"PK nothing"), "it is damaged, truncated or not a checkpoint"),
    (lambda heads: torch.save({"heads.weight": torch.zeros(5)}, heads), "no heads for a target with a patch of 12"),
    (lambda heads: torch.save({"heads.weight": torch.zeros(24, 16)}, heads), "belongs to another model"),
    (lambda heads: torch.save({"heads.weight": torch.zeros(24, 9), "heads.bias": torch.zeros(24)}, heads), "shape"),
])
def test_damaged_heads_are_refused_in_a_line(headed, place, capsys, damage, wanted):
    shutil.copytree(headed, place / "other")
    damage(heads_beside(place / "other" / "checkpoints" / CAUSAL_TARGET / "checkpoint.pth"))
    assert command(place / "other", HEAD, CAUSAL_TARGET) == 2
    said = capsys.readouterr().err
    assert wanted in said and said.count("\n") == 1


def test_a_draft_has_no_heads_of_its_own(headed, place, capsys):
    assert command(headed, f"--model timer_xl_draft {HEAD}", CAUSAL_DRAFT) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_results_of_heads_and_of_a_draft_go_to_folders_of_their_own(headed, place):
    ask(headed, f"{HEAD} {TOLERANCE}")
    assert command(headed, f"--test_pred_len 60 --use_speculative {TOLERANCE} --spec_draft_ckpt "
                   f"{headed}/checkpoints/{CAUSAL_DRAFT}/checkpoint.pth", CAUSAL_TARGET) == 0
    assert len(list((place / "test_results").iterdir())) == 2


def test_heads_change_nothing_of_what_the_target_forecasts(checkpoint):
    plain, (context, _) = registry.load(checkpoint, packed=False), contexts()
    assert torch.equal(decode_alone(loaded(checkpoint), context, 60), decode_alone(plain, context, 60))
