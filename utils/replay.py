"""Decodes of fixed shape, recorded once as CUDA graphs and replayed: the host starts one thing instead of thousands.

A model that has `graphs` (see `record`) decodes this way: alone, sampled, and as the target of parareal. A rule that
accepts proposals has no fixed shape, as rows differ in length from its first round on.
"""
from __future__ import annotations

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

MOST_RECORDED = 16  # decodes of a model that are kept; each holds its own memory
# is told which of the rows [b] are close enough [b] bool, and says which go on, None: all of them
Leave = Callable[[torch.Tensor], "torch.Tensor | None"]
# (leave, *inputs) -> results, with one row for each row of the first of them
Decode = Callable[..., "tuple[torch.Tensor, ...]"]
Inputs = Sequence["torch.Tensor | None"]  # the context [B, L, C] first


def leave_now(close: torch.Tensor) -> torch.Tensor | None:
    """The rows [g] that go on. One host synchronisation."""
    going = (~close).nonzero()[:, 0]
    return None if len(going) == len(close) else going


def run(model: Any, key: tuple[Hashable, ...], decode: Decode, inputs: Inputs,
        beside: Sequence[Any] = ()) -> tuple[torch.Tensor, ...]:
    """decode(leave, *inputs), replayed if `model` has graphs and the context, the first input, is on a GPU.

    key, beside: all else that decode depends on; `beside` holds what is told apart by identity: models, laws.
    """
    graphs, context = getattr(model, "graphs", None), inputs[0]
    if graphs is None or context is None or context.device.type != "cuda":
        return decode(leave_now, *inputs)
    return graphs.run(key, decode, inputs, (model, *beside))


def record(model: Any) -> None:
    """From now on what `model` decodes on a GPU is recorded and replayed."""
    model.graphs = Graphs()


class Graphs:
    """Recorded decodes, by what they depend on; the least recently used goes first."""

    def __init__(self) -> None:
        self.recorded: OrderedDict[Hashable, Recording | None] = OrderedDict()

    def run(self, key: tuple[Hashable, ...], decode: Decode, inputs: Inputs,
            beside: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        shapes = (None if part is None else (part.shape, part.dtype) for part in inputs)
        whole = (*key, *shapes, *map(id, beside), torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        if whole not in self.recorded:
            self.recorded[whole] = self._recorded(decode, inputs, beside)
            if len(self.recorded) > MOST_RECORDED:
                self.recorded.popitem(last=False)
        self.recorded.move_to_end(whole)
        recording = self.recorded[whole]
        return decode(leave_now, *inputs) if recording is None else recording.replay(inputs)

    @staticmethod
    def _recorded(decode: Decode, inputs: Inputs, beside: Sequence[Any]) -> Recording | None:
        try:
            made = Recording(decode, inputs, beside)
            made.check(decode(leave_now, *inputs), made.replay(inputs))
            return made
        except RuntimeError as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            warnings.warn(f"a decode could not be recorded as CUDA graphs and runs without: {why}", RuntimeWarning,
                          stacklevel=2)
            return None


class Recording:
    """One decode of fixed shape: CUDA graphs in a common memory pool, one from each point where rows may leave.

    In the graphs all rows stay; a row's result is taken out at the pass where it would leave.
    """

    def __init__(self, decode: Decode, inputs: Inputs, beside: Sequence[Any]):
        self.inputs = [None if part is None else part.clone() for part in inputs]  # the graphs read here
        self.graphs: list[torch.cuda.CUDAGraph] = []
        self.close: list[torch.Tensor] = []
        self.pool = torch.cuda.graph_pool_handle()
        context = self.inputs[0]
        assert context is not None
        device = context.device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            decode(lambda close: None, *self.inputs)  # not recorded: makes what is made once and then kept
            # graphs read by address: the tables that modules keep now must not be freed when they keep others
            self.held = [decode, *beside, *(dict(vars(module)) for part in beside if isinstance(part, torch.nn.Module)
                                            for module in part.modules())]
            torch.cuda.synchronize(device)
            collects = gc.isenabled()
            gc.collect()  # what it frees while the device records would spoil the recording
            gc.disable()
            try:
                self._begin()
                try:
                    self.outputs = decode(self._cut, *self.inputs)
                finally:
                    self.graphs[-1].capture_end()
            finally:
                if collects:
                    gc.enable()
        torch.cuda.current_stream(device).wait_stream(stream)

    def _begin(self) -> None:
        self.graphs.append(torch.cuda.CUDAGraph())
        self.graphs[-1].capture_begin(pool=self.pool)

    def _cut(self, close: torch.Tensor) -> None:
        self.close.append(close)
        self.graphs[-1].capture_end()
        self._begin()

    @staticmethod
    def check(expected: tuple[torch.Tensor, ...], found: tuple[torch.Tensor, ...]) -> None:
        """Raises RuntimeError where a replay differs by more than rounding from what was decoded without graphs."""
        for one, other in zip(expected, found):
            if not one.is_floating_point() or not one.numel():  # a single patch leaves no gap
                continue
            scale = float(one.abs().amax().nan_to_num(1.0))
            if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
                raise RuntimeError("a replay gave other forecasts")

    def replay(self, inputs: Inputs) -> tuple[torch.Tensor, ...]:
        """The results for other inputs of the same shape. One host synchronisation for each but the last graph."""
        for own, given in zip(self.inputs, inputs):
            if own is not None and given is not None:
                own.copy_(given)
        left: list[tuple[torch.Tensor, list[torch.Tensor]]] = []  # rows that left, and their results
        gone = torch.zeros(len(self.outputs[0]), dtype=torch.bool)
        for graph, close in zip(self.graphs, [*self.close, None]):
            graph.replay()
            if close is None:
                break
            leaving = close.cpu() & ~gone
            if leaving.any():
                gone |= leaving
                rows = leaving.nonzero()[:, 0].to(self.outputs[0].device)
                left.append((rows, [part[rows] for part in self.outputs]))
                if gone.all():
                    break
        result = tuple(part.clone() for part in self.outputs)
        for rows, parts in left:
            for whole, part in zip(result, parts):
                whole[rows] = part
        return result
