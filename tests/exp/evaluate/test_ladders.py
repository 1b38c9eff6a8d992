"""What a promise measures where precision is low, and what it decodes where decodes are recorded."""
from types import SimpleNamespace

import pytest
import torch

from exp.evaluate.ladders import WINDOW, Measured
from exp.evaluate.methods import PararealMethod
from exp.evaluate.promised import PromisedMethod
from exp.settings import RunSettings, Settings
from models.config import ModelConfig
from models.timer_xl import Model
from utils.acceptance import Parareal
from utils.fidelity import deviations
from utils.replay import record
from utils.speculative_decoder import decode_alone, decode_parareal

HORIZON, SIZES = 24, {"input_token_len": 4, "d_model": 16, "n_heads": 2, "d_ff": 32, "use_norm": True,
                      "norm_mode": "causal", "norm_window": 4}


def test_bf16_is_measured_against_the_target_alone():
    """The last pass of parareal rounds otherwise than plain decoding, and shares its patches with the passes before."""
    torch.manual_seed(0)
    target, draft = (Model(ModelConfig(e_layers=layers, **SIZES)).eval() for layers in (2, 1))
    for model in (target, draft):  # as on a GPU
        model.dtype = torch.bfloat16
        model.to(model.dtype)
    context = torch.randn(6, 16, 2)
    dataset = SimpleNamespace(__getitems__=lambda items: (context[items],))
    experiment = SimpleNamespace(settings=Settings(RunSettings(is_training=0, bf16=True, quiet=True)),
                                 device=torch.device("cpu"))
    method = PararealMethod(target, draft, HORIZON, Parareal(), 0)
    measured = Measured(experiment, method, WINDOW, dataset, range(6), "audit")
    found, gap = measured.by_pass()
    own = decode_alone(target, context, HORIZON)
    limit = decode_parareal(target, draft, context, HORIZON, 6)
    assert not torch.equal(limit.forecast, own), "nothing to tell apart"
    assert torch.equal(measured.own, own)
    unit = target.start(context, 1).unit[:, 0]
    for passes, row in enumerate(found, 1):
        torch.testing.assert_close(row, deviations(decode_parareal(target, draft, context, HORIZON, passes).forecast,
                                                   own, unit))
    passes, certified = measured.ladders(1.0, [1e9] * 5)
    assert [step.cost for step in passes] == [6, 0, 0, 0, 0]
    last = deviations(limit.forecast, own, unit)
    torch.testing.assert_close(next(certified).deviation, last)
    assert (last > 0).all() and gap.shape == found.shape


@pytest.mark.parametrize("rule", [None, Parareal(2, 0.0), Parareal(None, 0.3)])
def test_recorded_decodes_keep_their_shape_whatever_was_audited(rule, monkeypatch):
    """Otherwise every number of audited windows in a batch would be a recording of its own."""
    torch.manual_seed(0)
    target, draft = (Model(ModelConfig(e_layers=layers, **SIZES)).eval() for layers in (2, 1))
    method, context = PararealMethod(target, draft, HORIZON, Parareal(), 0), torch.randn(6, 16, 2)
    audited, own = torch.tensor([1, 4]), torch.randn(2, HORIZON, 2)
    plain = PromisedMethod(method, rule, audited, own).decode(context)
    assert torch.equal(plain.forecast[audited], own)
    record(target)
    started, start = [], Model.start
    monkeypatch.setattr(Model, "start", lambda model, x, room: started.append(len(x)) or start(model, x, room))
    found = PromisedMethod(method, rule, audited, own).decode(context)
    assert set(started) == {6}
    for name in ("forecast", "gap", "target_passes", "draft_passes"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), msg=name)
