"""Timing from outside the models: synchronised clocks, medians, and a wrapper that counts a model's share."""
import os
import platform
import time

import numpy as np
import torch
from tqdm import tqdm


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Stopwatch:
    """Seconds of a `with` block, the device synchronised at both ends."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, 0.0

    def __enter__(self):
        synchronise(self.device)
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_):
        synchronise(self.device)
        self.seconds = time.perf_counter() - self.start


class TracedModel:
    """A decodable model whose passes are timed; synchronises after every pass, so the total is a little longer.

    All else is the model's own.
    """

    def __init__(self, model, device: torch.device):
        self.model = model
        self.watch, self.seconds, self.passes = Stopwatch(device), 0.0, 0

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def extend(self, state, patches=None):
        with self.watch:
            prediction = self.model.extend(state, patches)
        self.seconds += self.watch.seconds
        self.passes += 1
        return prediction


def time_side_by_side(calls: dict, inputs: list, device: torch.device, warm_up: int = 2,
                      bar: str | None = None) -> dict[str, dict]:
    """Times each call on each input, the calls taking turns so that all see the same machine.

    calls: name -> function of one input; bar: the words of a progress bar, None for none.
    Returns name -> {ms_median, ms_p10, ms_p90, repeats} a call.
    """
    watch, seconds = Stopwatch(device), {name: [] for name in calls}
    for call in calls.values():
        for _ in range(warm_up):
            call(inputs[0])
    for item in tqdm(inputs, desc=bar, unit="round", disable=bar is None):
        for name, call in calls.items():
            with watch:
                call(item)
            seconds[name].append(watch.seconds)
    result = {}
    for name, values in seconds.items():
        p10, median, p90 = np.percentile(np.asarray(values) * 1000, [10, 50, 90])
        result[name] = {"ms_median": median, "ms_p10": p10, "ms_p90": p90, "repeats": len(values)}
    return result


def hardware(device: torch.device) -> dict:
    """What a figure was measured on."""
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
