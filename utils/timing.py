"""Timing from outside the models: synchronised clocks, medians, and a wrapper that measures a model's share."""
from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .interface import Model, Prediction, State


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Times a `with` block in seconds, with the device synchronised at both ends."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.start = device, 0.0, 0.0

    def __enter__(self) -> Stopwatch:
        synchronise(self.device)
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.start


class TracedModel:
    """A model whose passes are timed; synchronises after every pass, so the total is a little longer.

    Everything else is delegated to the model, but for its recorded decodes: a replay has no passes to time.
    """

    graphs = None

    def __init__(self, model: Model, device: torch.device):
        self.model, self.watch = model, Stopwatch(device)
        self.reset()

    def reset(self) -> None:
        """Resets the counts."""
        self.seconds, self.passes = 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def extend(self, state: State, patches: torch.Tensor | None = None) -> Prediction:
        with self.watch:
            prediction = self.model.extend(state, patches)
        self.seconds += self.watch.seconds
        self.passes += 1
        return prediction


def time_side_by_side(calls: dict[Any, Callable[[Any], Any]], inputs: Sequence[Any], device: torch.device,
                      warm_up: int = 2, bar: Callable[[Sequence[Any]], Iterable[Any]] | None = None,
                      ) -> dict[Any, dict[str, float]]:
    """Times each call on each input, interleaved so that all calls run under the same conditions.

    calls: name -> function of one input; bar: wraps the inputs in a progress bar.
    Returns name -> {ms_median, ms_p10, ms_p90, repeats} of one call.
    """
    watch = Stopwatch(device)
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warm_up):
            call(inputs[0])
    for item in inputs if bar is None else bar(inputs):
        for name, call in calls.items():
            with watch:
                call(item)
            seconds[name].append(watch.seconds)
    at = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    result: dict[Any, dict[str, float]] = {}
    for name, values in seconds.items():
        p10, median, p90 = torch.tensor(values, dtype=torch.float64).mul(1000).quantile(at).tolist()
        result[name] = {"ms_median": median, "ms_p10": p10, "ms_p90": p90, "repeats": len(values)}
    return result


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine and torch version that figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
