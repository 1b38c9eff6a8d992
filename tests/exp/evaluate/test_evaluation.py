"""The walk over the windows: what is scored, timed, logged, and kept of an interrupted one."""
from dataclasses import replace

import pytest
import torch
from helpers import PATCH, tiny_draft, tiny_target

from exp.evaluate.comparison import compare, describe
from exp.evaluate.evaluation import AcceptanceLog, Evaluation, Interrupted, evaluate
from exp.evaluate.methods import AloneMethod, Method, make_speculative
from exp.report.results import DRAFT, TARGET
from exp.settings import Settings, SpecSettings
from utils.proposals import Judgement
from utils.speculative_decoder import Decoded, Round
from utils.timing import time_side_by_side

CPU = torch.device("cpu")


class Constant(Method):
    """Forecasts 4 steps of one number; is interrupted in one batch, where that is asked for."""

    def __init__(self, number=0.0, interrupted_in=None):
        self.number, self.calls, self.interrupted_in = number, 0, interrupted_in

    def decode(self, context, observer=None):
        self.calls += 1
        if self.calls == self.interrupted_in:
            raise KeyboardInterrupt
        return Decoded(torch.full((len(context), 4, context.shape[2]), self.number))


def mse(out):
    return out.point.result()["mse"]


# --- scores

def test_with_covariates_only_the_last_variable_is_scored():
    x, y = torch.zeros(3, 8, 2), torch.stack([torch.full((3, 4), 5.0), torch.full((3, 4), 2.0)], dim=-1)
    methods = {"zeros": Constant(), "ones": Constant(1.0)}
    for covariate, expected in ((True, [4.0, 1.0]), (False, [(25 + 4) / 2, (16 + 1) / 2])):
        out = evaluate(methods, [(x, y)], CPU, covariate, quiet=True, reference="zeros")
        assert [mse(out[name]) for name in methods] == expected
        assert [out[name].rms_from_reference() for name in methods] == [0.0, 1.0]


def test_deviation_is_from_the_reference_over_every_element():
    class Odd(Constant):
        def decode(self, context, observer=None):
            decoded = super().decode(context)
            decoded.forecast[:, 0] += context[:, 0]  # off by 0 in the first batch, by 3 at one step in the second
            return decoded
    batches = [(torch.full((size, 8, 2), level), torch.zeros(size, 4, 2)) for size, level in ((5, 0.0), (2, 3.0))]
    out = evaluate({"odd": Odd(7.0), "even": Constant(7.0)}, batches, CPU, quiet=True, reference="even")
    assert out["odd"].rms_from_reference() == pytest.approx((2 * 9 / (7 * 4)) ** 0.5)
    assert out["even"].rms_from_reference() == 0


def test_every_method_is_scored_on_every_window(series):
    target = tiny_target()
    draft = tiny_draft(target)
    x, y = series(rows=7), torch.zeros(7, 3 * PATCH, 3)
    methods = {"target": AloneMethod(target, 3 * PATCH), "draft": AloneMethod(draft, 3 * PATCH, is_draft=True),
               "tolerance": make_speculative(target, draft, SpecSettings(tol=0.0), 3 * PATCH, 0)}
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    together = evaluate(methods, batches, CPU, quiet=True, reference="target")
    assert list(together) == list(methods)
    for name, method in methods.items():
        alone = evaluate({name: method.again()}, batches, CPU, quiet=True)[name]
        for key, value in alone.result(4).items():
            if key not in ("seconds", "ms_per_forecast"):
                assert together[name].result(4)[key] == value, (name, key)
        assert together[name].windows == 7
        assert mse(alone) == pytest.approx(method.forecast(x).double().square().mean().item(), rel=1e-6)
    assert together["tolerance"].rms_from_reference() < 1e-5 < together["draft"].rms_from_reference()
    assert together["target"].result(4)["target_passes"] == together["tolerance"].result(4)["target_passes"] == 3
    assert together["draft"].result(4)["draft_passes"] == 3


def test_seconds_add_up_over_batches(monkeypatch):
    monkeypatch.setattr("exp.evaluate.evaluation.Stopwatch", FakeWatch)
    batch = torch.zeros(3, 8, 2), torch.ones(3, 4, 2)
    out = evaluate({"zeros": Constant(), "ones": Constant(1.0)}, [batch, batch, batch], CPU, quiet=True)
    assert [out[name].seconds for name in ("zeros", "ones")] == [3 * 0.5] * 2
    assert out["zeros"].result(3)["ms_per_forecast"] == pytest.approx(1000 * 1.5 / 9)


class FakeWatch:
    def __init__(self, device):
        self.seconds = 0.5

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_record_of_another_kind_takes_part_in_the_walk():
    class Truths(Evaluation):
        seen = ()

        def update(self, decoded, truth, seconds, reference):
            super().update(decoded, truth, seconds, reference)
            self.seen = [*self.seen, truth]
    record, batch = Truths(), (torch.zeros(3, 8, 2), torch.ones(3, 4, 2))
    out = evaluate({"zeros": Constant(), "ones": Constant(1.0)}, [batch, batch], CPU, quiet=True,
                   records={"ones": record})
    assert out["ones"] is record and len(record.seen) == 2 and [mse(out[n]) for n in ("zeros", "ones")] == [1, 0]


# --- interrupted

BATCH = torch.zeros(3, 8, 2), torch.full((3, 4, 2), 2.0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_interrupted_all_methods_have_the_same_windows(place):
    """Whichever of them Ctrl-C hits: the batch that it hits counts for none, also not for the deviations."""
    methods = {name: Constant(number) for name, number in (("a", 0.0), ("b", 1.0), ("c", 5.0))}
    methods["abc"[place]].interrupted_in = 3
    with pytest.raises(Interrupted) as stop:
        evaluate(methods, [BATCH] * 5, CPU, quiet=True, reference="a")
    so_far = stop.value.so_far
    assert list(so_far) == ["a", "b", "c"] and [out.windows for out in so_far.values()] == [6, 6, 6]
    assert [mse(out) for out in so_far.values()] == [4.0, 1.0, 9.0]
    assert [out.rms_from_reference() for out in so_far.values()] == [0.0, 1.0, 5.0]


@pytest.mark.parametrize("place", [0, 1])
def test_interrupted_in_the_first_batch_there_is_nothing_to_keep(place):
    methods = {"a": Constant(), "b": Constant()}
    methods["ab"[place]].interrupted_in = 1
    with pytest.raises(KeyboardInterrupt) as stop:
        evaluate(methods, [BATCH] * 2, CPU, quiet=True)
    assert not isinstance(stop.value, Interrupted)


# --- the log of judgements

def judged(rows, first, looked_at, score):
    looked_at = torch.tensor(looked_at)
    score = torch.tensor(score)
    return Round(torch.tensor(rows), torch.tensor(first), None, Judgement(score < 0.25, score), looked_at, looked_at,
                 torch.zeros(len(rows), dtype=torch.long))


def test_the_log_names_window_and_patch():
    log = AcceptanceLog(9)
    log(judged([0, 1, 2, 3], [0, 0, 0, 0], [[False, False]] * 4, [[0.0, 0.0]] * 4))  # a batch of four
    log(judged([0, 1, 2], [0, 0, 0], [[True, False], [False, False], [True, True]], [[0.9, 0], [0, 0], [0.1, 0.2]]))
    log(judged([0, 2], [3, 1], [[True, False], [True, True]], [[0.1, 0.2], [0.3, 0.4]]))
    log(judged([0, 1], [0, 0], [[True, False], [True, False]], [[0.1, 0.2], [0.3, 0.4]]))  # the next batch
    assert [(row["window"], row["patch"], row["accepted"]) for row in log.rows] == [
        (4, 0, 0), (6, 0, 1), (6, 1, 1), (4, 3, 1), (6, 1, 0), (6, 2, 0), (7, 0, 1), (8, 0, 0)]
    assert [row["score"] for row in log.rows][3:6] == pytest.approx([0.1, 0.3, 0.4])


def test_the_log_is_of_the_first_windows_only():
    log = AcceptanceLog(2)
    for _ in range(2):
        log(judged([0, 1, 2], [0, 0, 0], [[True]] * 3, [[0.1]] * 3))
    assert [row["window"] for row in log.rows] == [0, 1]


# --- the table

@pytest.fixture
def table(monkeypatch, tmp_path):
    """Rows of a comparison of methods that take 48 ms a call, of 100 windows."""
    timed = {"ms_median": 48.0, "ms_p10": 32.0, "ms_p90": 64.0}
    monkeypatch.setattr("exp.evaluate.comparison.time_side_by_side",
                        lambda calls, *_, **__: dict.fromkeys(calls, timed))

    class Windows(list):
        def __getitems__(self, indices):
            return torch.zeros(len(indices), 8, 2), None
    settings = Settings().with_("run", quiet=True).with_("data", batch_size=16)

    def rows(methods, batches, covariate=False):
        config = replace(settings.model.config, covariate=covariate)
        chosen = settings.with_("model", config=config)
        return compare(methods, Windows([None] * 100), batches, chosen, CPU, tmp_path)
    return rows


def test_with_covariates_the_table_scores_the_last_variable(table):
    x, y = torch.zeros(3, 8, 2), torch.stack([torch.full((3, 4), 5.0), torch.full((3, 4), 2.0)], dim=-1)
    rows = table({TARGET: Constant(), DRAFT: Constant(1.0)}, [(x, y)], covariate=True)
    assert [row["mse"] for row in rows] == [4.0, 1.0] and [row["rms_from_target"] for row in rows] == [0.0, 1.0]


def test_times_are_per_forecast(table):
    for row in table({TARGET: Constant(), DRAFT: Constant(1.0)}, [BATCH]):
        assert row["batch_n"] == 16 and row["speedup_batch_1"] == row["speedup_batch_n"] == 1
        assert [row[f"ms_batch_1{part}"] for part in ("", "_p10", "_p90")] == [48, 32, 64]
        assert [row[f"ms_batch_n{part}"] for part in ("", "_p10", "_p90")] == [3, 2, 4]


def test_the_clock_tells_a_slow_call_from_a_fast_one():
    calls = {"slow": lambda _: sum(range(10**6)), "fast": lambda _: None}
    times = time_side_by_side(calls, [None] * 3, CPU, warm_up=0)
    assert times["slow"]["ms_median"] > 10 * times["fast"]["ms_median"]
    assert times["slow"]["repeats"] == 3


def test_the_table_says_which_forecast_is_worse():
    shared = {"horizon": 8, "device": "cpu", "threads": 1, "batch_n": 4, "speedup_batch_1": 2.0, "speedup_batch_n": 0.5,
              "proposed": 5}
    rows = [{"method": name, "mse": mse} | shared for name, mse in
            (("target", 1.0), ("draft", 1.2), ("naive", 2.0), ("sampled", 1.1), ("mean", 1.004))]
    text = describe(rows)
    assert "sampled: faster at batch 1; MSE WORSE than the target's (+10.0 %)" in text
    assert "mean: faster at batch 1; MSE no worse than the target's (+0.4 %)" in text
    assert "the draft by itself is enough" not in text and "of no use" not in text


def test_the_table_says_what_pays_and_what_was_not_tried():
    shared = {"horizon": 8, "device": "cpu", "threads": 1, "batch_n": 4, "speedup_batch_1": 1.02,
              "speedup_batch_n": 1.1}
    rows = [{"method": name, "mse": mse, "proposed": proposed} | shared for name, mse, proposed in
            (("target", 1.0, None), ("draft", 1.2, None), ("naive", 0.9, None), ("one patch", 1.0, 0),
             ("tried", 1.0, 5))]
    text = describe(rows)
    assert "naive: MSE 0.9000, better than the target's 1.0000" in text and "of no use" in text
    assert "one patch: nothing was proposed" in text and "one patch: faster" not in text
    assert "tried: faster at batch 4;" in text  # 2 % at batch 1 are less than the clock can tell
