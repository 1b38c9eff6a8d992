"""Recorded decodes: the same forecasts, rows that leave, and what happens where nothing can be recorded."""
import warnings

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from utils import replay
from utils.replay import MOST_RECORDED, Graphs, Recording, record
from utils.speculative_decoder import decode_alone, decode_parareal, patches_in, sample_alone
from utils.target_law import TargetLaw

HORIZON = 5 * PATCH + 3
N = patches_in(HORIZON, PATCH)
CAUSAL = {"norm_mode": "causal", "norm_window": 4}
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["window", "cache"])
def pair(request):
    target = tiny_target(**(CAUSAL if request.param == "cache" else {}))
    return target.to(DEVICE), tiny_draft(target, patches=3).to(DEVICE)


def ways(pair, context, tol):
    """name -> a decode of context, to be repeated."""
    target, draft = pair
    law = TargetLaw.fixed(0.4)
    z = torch.randn(len(context), 2, N, PATCH, context.shape[2], generator=torch.Generator().manual_seed(1))
    z = z.to(context.device)
    return {"alone": lambda: decode_alone(target, context, HORIZON),
            "draft": lambda: decode_alone(draft, context, HORIZON),
            "sampled": lambda: sample_alone(target, context, HORIZON, law, z)[0],
            "parareal": lambda: decode_parareal(target, draft, context, HORIZON, 3).forecast,
            "tol": lambda: decode_parareal(target, draft, context, HORIZON, tol=tol).forecast,
            "passes": lambda: decode_parareal(target, draft, context, HORIZON, tol=tol).target_passes,
            "paths": lambda: decode_parareal(target, draft, context, HORIZON, 4, tol, law, z).forecast}


def test_a_model_that_is_to_be_recorded_forecasts_what_it_did(pair, series):
    """Without a GPU it simply decodes."""
    contexts = [series(rows=6, seed=seed).to(DEVICE) for seed in range(3)]
    tol = float(decode_parareal(*pair, contexts[0], HORIZON, 2).gap.amax(dim=1).median())  # about half leave then
    before = [{name: way() for name, way in ways(pair, context, tol).items()} for context in contexts]
    assert len(set(before[0]["passes"].tolist())) > 1, "the batch is not ragged"
    for model in pair:
        record(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for context, expected in zip(contexts, before):
            for name, way in ways(pair, context, tol).items():
                torch.testing.assert_close(way(), expected[name], atol=1e-5, rtol=1e-5, msg=name)


@ON_GPU
def test_graphs_outlive_what_their_model_keeps(pair, series):
    """A longer decode makes the model keep longer tables; those that the first graphs read must stay."""
    target, context = pair[0], series(rows=2).to(DEVICE)
    expected = [decode_alone(target, context, steps) for steps in (2 * PATCH, 12 * PATCH)]
    record(target)
    for _ in range(3):
        for steps, forecast in zip((2 * PATCH, 12 * PATCH), expected):
            torch.testing.assert_close(decode_alone(target, context, steps), forecast, atol=1e-5, rtol=1e-5)
            torch.randn(1000, 1000, device=DEVICE)  # takes what may have been freed
    assert len(target.graphs.recorded) == 2 and None not in target.graphs.recorded.values()


@ON_GPU
def test_recordings_are_of_a_shape_and_few(series):
    target = tiny_target(**CAUSAL).to(DEVICE)
    record(target)
    for patches in range(1, MOST_RECORDED + 3):
        decode_alone(target, series(rows=1).to(DEVICE), patches * PATCH)
    assert len(target.graphs.recorded) == MOST_RECORDED


class Step:
    """Stands for a graph: writes what the buffers hold after it."""

    def __init__(self, outputs, values):
        self.outputs, self.values, self.times = outputs, values, 0

    def replay(self):
        self.times += 1
        for own, value in zip(self.outputs, self.values):
            own.copy_(value)


def test_a_row_keeps_the_result_of_the_pass_where_it_leaves():
    outputs = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    steps = [Step(outputs, (torch.full((4, 2), float(j)), torch.full((4,), j))) for j in range(1, 4)]
    made, context = object.__new__(Recording), torch.ones(4)
    made.inputs, made.outputs, made.graphs = [torch.zeros(4), None], outputs, steps
    made.close = [torch.tensor([True, False, False, False]), torch.tensor([True, False, True, False])]
    values, passes = made.replay([context, None])
    assert torch.equal(made.inputs[0], context) and passes.tolist() == [1, 3, 2, 3]
    assert values[:, 0].tolist() == [1, 3, 2, 3]
    made.close[1] = torch.ones(4, dtype=torch.bool)  # all leave: the last graph is not started
    assert made.replay([context, None])[1].tolist() == [1, 2, 2, 2] and [step.times for step in steps] == [2, 2, 1]
    assert outputs[1].tolist() == [2, 2, 2, 2]


def test_a_decode_that_cannot_be_recorded_runs_and_says_so_once(monkeypatch):
    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")
    monkeypatch.setattr(replay, "Recording", fail)
    graphs, seen = Graphs(), []

    def decode(leave, context):
        seen.append(leave(torch.tensor([True, False])))
        return (context + 1,)
    with pytest.warns(RuntimeWarning, match="could not be recorded .*: operation not permit"):
        assert graphs.run(("key",), decode, [torch.zeros(2)], ())[0].tolist() == [1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphs.run(("key",), decode, [torch.ones(2)], ())
    assert [rows.tolist() for rows in seen] == [[1], [1]]  # row 1 goes on


def test_a_recording_that_forecasts_otherwise_is_refused():
    forecast, passes = torch.randn(3, 4), torch.tensor([1, 2, 2])
    Recording.check((forecast, passes), (forecast + 1e-6, passes))
    nothing = torch.zeros(3, 0)  # the gaps of a single patch
    Recording.check((forecast, nothing), (forecast, nothing))
    for wrong in (forecast + 0.1, forecast.roll(1, dims=0), torch.full_like(forecast, float("nan"))):
        with pytest.raises(RuntimeError, match="other forecasts"):
            Recording.check((forecast, passes), (wrong, passes))
