"""How methods are set up from flags, adapt, and are scored and timed."""
from types import SimpleNamespace

import pytest
import torch
from conftest import PATCH, tiny_target

from exp import comparison
from exp.comparison import describe
from exp.evaluation import AcceptanceLog, AloneMethod, SpeculativeMethod, evaluate, make_speculative
from utils.acceptance import Tolerance
from utils.proposals import Judgement
from utils.timing import time_side_by_side

FLAGS = dict(spec_tol=0.1, spec_sigma=0.2, spec_emit="mean", spec_accept_bias=3.0, spec_sigma_mode="fixed",
             spec_sigma_adapt_c=5.0, spec_accept_mse_tol=0.6, spec_temp=0.7, spec_k=None, test_pred_len=6 * PATCH,
             seed=0, spec_adaptive=False, spec_repropose="target")


def test_the_default_k_is_three_for_rules_that_sample_and_all_for_tolerance():
    target = tiny_target()
    *sampling, tolerance = (make_speculative(target, target, SimpleNamespace(**FLAGS), rule)
                            for rule in ("simplified", "exact", "coupling", "tolerance"))
    for method, expected in [(tolerance, (5, "target")), *((method, (3, "draft")) for method in sampling)]:
        assert (method.max_proposals, method.repropose) == expected
    flags = SimpleNamespace(**FLAGS | {"spec_k": 2})
    assert make_speculative(target, target, flags, "tolerance").max_proposals == 2


def test_k_follows_the_acceptance_one_step_at_a_time():
    method = SpeculativeMethod(tiny_target(), None, 6 * PATCH, Tolerance(1.0), None, 0, adaptive=True)
    seen = []
    for accepted, judged in ((8, 10), (5, 10), (6, 10), (79, 100), (0, 10), (0, 9), (0, 9), (0, 9), (0, 0), (8, 10)):
        method._adapt(SimpleNamespace(accepted=torch.tensor([accepted]), judged=torch.tensor([judged])))
        seen.append(method.max_proposals)
    assert seen == [5, 4, 4, 4, 3, 2, 1, 1, 1, 2]


def test_adapting_happens_only_if_asked_for(series):
    target, other = tiny_target(), tiny_target(seed=1)
    for adaptive in (True, False):
        method = SpeculativeMethod(target, other, 6 * PATCH, Tolerance(0.0), None, 0, adaptive=adaptive)
        method.decode(series())
        assert method.max_proposals == (4 if adaptive else 5)


def test_the_log_names_window_and_patch():
    log = AcceptanceLog(9)
    log.first_window = 4
    looked_at = torch.tensor([[True, False], [True, True]])
    score = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    log(torch.tensor([0, 2]), torch.tensor([3, 1]), Judgement(looked_at, score), looked_at)
    assert [(row["window"], row["patch"]) for row in log.rows] == [(4, 3), (6, 1), (6, 2)]


class Zeros:
    """Forecasts nothing at all."""

    def forecast(self, x):
        return torch.zeros(len(x), 4, x.shape[2])


def test_with_covariates_only_the_last_variable_is_scored():
    x, y = torch.zeros(3, 8, 2), torch.stack([torch.full((3, 4), 5.0), torch.full((3, 4), 2.0)], dim=-1)
    cpu = torch.device("cpu")
    scores = [evaluate(Zeros(), [(x, y)], cpu, covariate, quiet=True).point.result()["mse"] for covariate in (1, 0)]
    assert scores == [4.0, (25 + 4) / 2]
    args = SimpleNamespace(covariate=True, quiet=True)
    results, _ = comparison._accuracy({"zeros": Zeros()}, [(x, y)], args, cpu)
    assert results["zeros"].point.result()["mse"] == 4.0


def test_seconds_add_up_over_batches(monkeypatch):
    monkeypatch.setattr("exp.evaluation.Stopwatch", FakeWatch)
    batch = torch.zeros(3, 8, 2), torch.ones(3, 4, 2)
    assert evaluate(Zeros(), [batch, batch, batch], torch.device("cpu"), quiet=True).seconds == 3 * 0.5


class FakeWatch:
    def __init__(self, device):
        self.seconds = 0.5

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_times_are_per_forecast(monkeypatch, series):
    timed = {"ms_median": 48.0, "ms_p10": 32.0, "ms_p90": 64.0}
    monkeypatch.setattr(comparison, "time_side_by_side", lambda calls, *_, **__: dict.fromkeys(calls, timed))
    dataset = [None] * 100

    class Windows(list):
        def __getitems__(self, indices):
            return torch.zeros(len(indices), 8, 2), None
    times = comparison._times({"zeros": Zeros()}, Windows(dataset), SimpleNamespace(batch_size=16, quiet=True),
                              torch.device("cpu"))
    assert times["batch_n"] == 16
    assert times["zeros"]["ms_batch_1"] == 48 and times["zeros"]["ms_batch_n"] == 3


def test_the_clock_tells_a_slow_call_from_a_fast_one():
    calls = {"slow": lambda _: sum(range(10**6)), "fast": lambda _: None}
    times = time_side_by_side(calls, [None] * 3, torch.device("cpu"), warm_up=0)
    assert times["slow"]["ms_median"] > 10 * times["fast"]["ms_median"]
    assert times["slow"]["repeats"] == 3


@pytest.mark.parametrize(("horizon", "passes"), [(PATCH, 1), (PATCH + 1, 2), (3 * PATCH, 3)])
def test_a_begun_patch_costs_a_whole_pass(horizon, passes):
    assert AloneMethod(tiny_target(), horizon).passes == passes


def test_the_table_says_which_forecast_is_worse():
    shared = {"horizon": 8, "device": "cpu", "threads": 1, "batch_n": 4, "speedup_batch_1": 2.0, "speedup_batch_n": 0.5}
    rows = [{"method": name, "mse": mse} | shared for name, mse in
            (("target", 1.0), ("draft", 1.2), ("naive", 2.0), ("sampled", 1.1), ("mean", 1.004))]
    text = describe(rows)
    assert "sampled: faster at batch 1; MSE WORSE than the target's (+10.0 %)" in text
    assert "mean: faster at batch 1; MSE no worse than the target's (+0.4 %)" in text
    assert "the draft by itself is enough" not in text
