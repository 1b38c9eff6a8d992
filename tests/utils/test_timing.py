"""Times by a clock that is set by hand."""
import time

import numpy as np
import pytest
import torch
from helpers import PATCH, tiny_target

from utils.replay import record
from utils.speculative_decoder import decode_alone
from utils.timing import Stopwatch, TracedModel, hardware, time_side_by_side

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by `clock.wait` only."""
    class Clock:
        now = 0.0

        def wait(self, seconds):
            self.now += seconds
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_a_stopwatch_measures_its_block_alone(clock):
    watch = Stopwatch(CPU)
    clock.wait(5)
    for seconds in (2.5, 0.25):
        with watch:
            clock.wait(seconds)
        clock.wait(7)
        assert watch.seconds == seconds


@pytest.mark.parametrize("repeats", [1, 2, 3, 7, 20])
def test_percentiles_of_times_are_those_of_numpy(clock, repeats):
    seconds = torch.rand(repeats, generator=torch.Generator().manual_seed(repeats), dtype=torch.float64).tolist()
    timed = time_side_by_side({"plain": clock.wait, "twice": lambda item: clock.wait(2 * item)}, seconds, CPU)
    for name, factor in (("plain", 1), ("twice", 2)):
        p10, median, p90 = np.percentile(1000 * factor * np.array(seconds), [10, 50, 90])
        assert timed[name] == pytest.approx({"ms_median": median, "ms_p10": p10, "ms_p90": p90, "repeats": repeats},
                                            rel=1e-9)


def test_calls_take_turns_after_their_warm_up(clock):
    made, shown = [], []

    def noted(name):
        return lambda item: made.append((name, item))

    def bar(items):
        shown.append(list(items))
        return items
    time_side_by_side({"a": noted("a"), "b": noted("b")}, [1, 2], CPU, warm_up=2, bar=bar)
    assert made == [("a", 1)] * 2 + [("b", 1)] * 2 + [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert shown == [[1, 2]]


def test_a_traced_model_counts_its_passes_and_changes_nothing(series):
    model = tiny_target()
    traced = TracedModel(model, CPU)
    forecast = decode_alone(traced, series(), 3 * PATCH)
    assert torch.equal(forecast, decode_alone(model, series(), 3 * PATCH))
    assert traced.passes == 3 and traced.seconds > 0 and traced.config is model.config
    record(model)
    assert traced.graphs is None  # in a replay there is no pass to count
    traced.reset()
    assert (traced.passes, traced.seconds) == (0, 0.0)


def test_the_hardware_of_a_measurement_is_named():
    found = hardware(CPU)
    assert found["device"] and found["cores"] >= 1 and found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__
