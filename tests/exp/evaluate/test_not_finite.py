"""An output that is not finite ends an evaluation with the window's number in the whole walk, and leaves no result."""
import json
from pathlib import Path

import pytest
import torch
from exp_helpers import BASE, CAUSAL_DRAFT, CAUSAL_TARGET, CONTEXT, DRAFT, TARGET
from helpers import PATCH

import run
from exp.evaluate.evaluation import evaluate
from exp.evaluate.methods import AloneMethod, SampledMethod, make_speculative
from exp.speculation import SpecSettings
from utils.adapters import FromForward
from utils.errors import NotFinite
from utils.target_law import TargetLaw

HORIZON = 3 * PATCH
PAIRS = {"window": (TARGET, DRAFT), "causal": (CAUSAL_TARGET, CAUSAL_DRAFT)}


def steady(windows):
    return windows[:, -PATCH:]


def hostile(windows):
    """NaN after a window of sevens."""
    return windows[:, -PATCH:].where(windows[:, -PATCH:] != 7, float("nan"))


GOOD, BAD = FromForward(steady, PATCH), FromForward(hostile, PATCH)
METHODS = {"alone": AloneMethod(BAD, HORIZON), "sampled": SampledMethod(BAD, HORIZON, TargetLaw.fixed(1.0), 0, 2),
           "target": make_speculative(BAD, GOOD, SpecSettings(), HORIZON, 0),
           "draft": make_speculative(GOOD, BAD, SpecSettings(rule="exact"), HORIZON, 0),
           "path": make_speculative(GOOD, BAD, SpecSettings(), HORIZON, 0).sampled(
               SpecSettings(rule="coupling"), TargetLaw.fixed(1.0), 0, 3)}


@pytest.mark.parametrize("name", METHODS)
def test_a_window_is_named_by_its_number_in_the_walk(name):
    x, y = torch.randn(10, 2 * PATCH, 1, generator=torch.Generator().manual_seed(0)), torch.zeros(10, HORIZON, 1)
    x[7] = 7.0
    method = METHODS[name]
    evaluate({"it": method}, [(x[:4], y[:4])], torch.device("cpu"), quiet=True)
    with pytest.raises(NotFinite, match=r"patch 1 of the forecast .*window 7 \(counted from 0\)"):
        evaluate({"it": method}, list(zip(x.split(4), y.split(4))), torch.device("cpu"), quiet=True)


@pytest.mark.parametrize("rule", ["--use_speculative", "--use_speculative --spec_accept_rule exact",
                                  "--use_speculative --spec_accept_rule simplified",
                                  "--use_speculative --spec_accept_rule coupling --num_samples 3", "--compare"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("scaled", ["all", "head"])
def test_a_draft_that_overflows_is_named_and_nothing_is_written(lab, causal, place, capsys, rule, pair, scaled):
    """Finite weights, a hundred quintillion times too large."""
    target, draft = PAIRS[pair]
    source = lab / "checkpoints" / draft
    state = torch.load(source / "checkpoint.pth")
    state = {key: value * 1e20 if scaled == "all" or key == "head_mean.weight" else value
             for key, value in state.items()}
    Path("broken").mkdir()
    torch.save(state, "broken/checkpoint.pth")
    Path("broken/args.json").write_text((source / "args.json").read_text())
    assert json.loads(Path("broken/args.json").read_text())["seq_len"] == CONTEXT
    flags = f"{BASE} --is_training 0 --root_path {lab} --checkpoints {lab}/checkpoints --test_dir {target} {rule}"
    assert run.main(f"{flags} --spec_draft_ckpt broken --test_pred_len 48".split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "(checkpoint broken/checkpoint.pth)" in said and "window 0 " in said
    assert not list(Path().rglob("metrics*.json")) and not list(Path().glob("result_*"))
