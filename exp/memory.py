"""What a run takes in memory, estimated from its shapes, and the refusal of one that cannot fit.

The estimates count the large buffers, in the precision of the weights. They are meant to be a little low rather than
high: a run that would fit must never be refused.
"""
from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.cache_state import block_of, pairs_at_once
from models.config import ModelConfig
from models.foreign import ForeignModel
from utils.errors import UserError
from utils.speculative_decoder import patches_in
from utils.window_state import CPU_TOKENS

FLOAT = 4
PATH_BUFFERS = 5  # of the size of the sampled paths: noise, patches and means, both joined
SPECULATION_BUFFERS = 6  # of the size of the forecast: the ledger's three, the proposals, their means, the predictions
# of a token in training, kept for the backward pass: 12 vectors of the model's width, 3 of the feed-forward's
KEPT_WIDTHS, KEPT_HIDDEN = 12, 3
# limits of a container, where its kernel tells
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Shape:
    """Forecasts that are made at once: windows of so many variables, paths of each, steps of context and horizon."""

    windows: int
    variables: int
    context: int
    horizon: int
    samples: int = 1


SMALLER = {"horizon": "lower `horizon`", "samples": "lower `num_samples`", "windows": "lower `batch_size`",
           "variables": "take each variable separately (`kind` UnivariateDatasetBenchmark)"}


def available(device: torch.device) -> int | None:
    """Bytes that a run may still take on a device; None where the system does not tell."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [size for path in CONTAINER_LIMITS if (size := _number_in(path)) is not None]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(sum(1024 * int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree")))
    except (OSError, ValueError, KeyError):
        with suppress(AttributeError, ValueError, OSError):  # all memory, used or not
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # 'max': no limit
        return None


def refuse_unfitting(needed: Callable[[Shape], float], shape: Shape, device: torch.device, what: str) -> None:
    """Raises UserError where `needed(shape)` bytes are more than there are; names the settings that would help.

    what: the run, in words.
    """
    bytes_needed, there = needed(shape), available(device)
    if there is None or bytes_needed <= there:
        return
    smaller = {words: replace(shape, **{name: 1}) for name, words in SMALLER.items() if getattr(shape, name) > 1}
    helping = [words for words, least in smaller.items() if needed(least) <= there]
    helping = helping or [words for words, least in smaller.items() if needed(least) < bytes_needed / 2]
    raise UserError(f"{what} takes about {_in_words(bytes_needed)} of memory, but {_in_words(there)} is available: "
                    f"{' or '.join(helping or smaller)}")


def _in_words(count: float) -> str:
    unit, size = next((unit, size) for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20))
                      if count >= size or unit == "MiB")
    return f"{count / size:.1f} {unit}"


def decoding_bytes(shape: Shape, target, draft=None) -> float:
    """Most memory while `shape` is forecast by a target alone, or with a draft; models as `load_model` gives them."""
    models = [target] if draft is None else [target, draft]
    n = patches_in(shape.horizon, target.patch_len)
    rows = shape.windows * shape.samples
    forecast = FLOAT * rows * n * target.patch_len * shape.variables
    paths = PATH_BUFFERS if shape.samples > 1 else 2
    buffers = forecast * (paths if draft is None else max(paths, SPECULATION_BUFFERS))
    verified = 0 if draft is None else n - 1
    return buffers + sum(_state_bytes(model, rows, shape, n) for model in models) \
        + max(_pass_bytes(model, shape, verified) for model in models)


def _state_bytes(model, rows: int, shape: Shape, n: int) -> float:
    if isinstance(model, ForeignModel):  # what else it keeps is not known
        return FLOAT * rows * (shape.context + n * model.patch_len) * shape.variables
    tokens = rows * (shape.context // model.token_len + n * model.patch_len // model.token_len) * shape.variables
    config = model.config
    kept = 2 * config.e_layers * config.d_model if model.rolling == "cache" else 0
    return tokens * (FLOAT * model.token_len + model.dtype.itemsize * kept)


def _pass_bytes(model, shape: Shape, verified: int) -> float:
    """Attention or feed-forward of the largest pass, which is worked through in parts."""
    if isinstance(model, ForeignModel):
        return 0.0
    if model.apart:
        shape = replace(shape, windows=shape.windows * shape.variables, variables=1)
    C, N = shape.variables, shape.context // model.token_len
    verified *= model.patch_len // model.token_len
    if model.rolling == "cache":  # the context once per window, later a patch of every path
        new = min(N + verified, block_of(shape.windows, C))
        queries, keys = new * C, (N + verified) * C
        tokens = max(shape.windows * queries, shape.windows * shape.samples * C)
    else:  # cut as on a CPU; a GPU takes larger parts, so that this is low there
        queries = keys = N * C
        tokens = queries * min(shape.windows * shape.samples * (1 + verified), max(1, CPU_TOKENS // queries))
    pairs = pairs_at_once(queries, keys)
    config, size = model.config, model.dtype.itemsize
    # of a pair the bias of every head, twice; 8 bytes: whether it is of one variable; 2: whether the query sees the key
    attention = size * tokens * 5 * config.d_model + pairs * (2 * size * config.n_heads + 10)
    return max(attention, size * tokens * (2 * config.d_model + 2 * config.d_ff))


def refuse_unfitting_test(shape: Shape, device: torch.device, target, draft=None) -> None:
    """Refuses a test whose largest batch of forecasts cannot fit; its paths have as many windows, or fewer."""
    refuse_unfitting(lambda shape: decoding_bytes(shape, target, draft), shape, device,
                     f"a batch of {_words(shape)}, {shape.horizon} steps ahead,")


def refuse_unfitting_training(shape: Shape, device: torch.device, config: ModelConfig) -> None:
    refuse_unfitting(lambda shape: training_bytes(shape, config, device), shape, device,
                     f"training on a batch of {_words(shape)}")


def _words(shape: Shape) -> str:
    paths = f", {shape.samples} paths each" if shape.samples > 1 else ""
    return f"{shape.windows} windows of {shape.variables} variables{paths}"


def output_bytes(horizon: int, variables: int, quantiles: int) -> float:
    """The forecast beyond the end of a series in double precision, with its times."""
    return horizon * (16.0 + variables * (16 + 24 * (1 + quantiles)))


def training_bytes(shape: Shape, config: ModelConfig, device: torch.device) -> float:
    """Most memory of a training step on `shape.windows` windows; no horizon."""
    config, N, C = config.scaled(), shape.context // config.input_token_len, shape.variables
    tokens, rows = N * C, shape.windows
    of_tokens = FLOAT * rows * tokens * (KEPT_WIDTHS * config.d_model + KEPT_HIDDEN * config.d_ff)
    # the weights of the attention and, on a CPU, what its backward pass and its dropout need of that size
    copies = 1.0 if device.type == "cuda" else 3.5 if config.dropout else 1.5
    of_pairs = FLOAT * copies * rows * config.n_heads * tokens**2
    return config.e_layers * (of_tokens + of_pairs)
