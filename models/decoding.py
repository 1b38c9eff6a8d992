"""The decoding interface that the speculative decoder talks to, and the two implementations behind it.

A model that can be decoded offers

    state = model.start(context, room)         context [B, L, C]; room: patches that may follow the context
    prediction = model.extend(state, patches)  patches [B, k, P, C] or None -> next-patch predictions, ONE pass
    state.append(patches)                      patches [B, k, P, C] that are known and need no prediction of their own
    state.rollback(lengths)                    per row: forget everything after `lengths` [B] patches
    state.select(rows)                         keep these rows only: a finished row leaves the batch
    model.fan_out(state, samples)              every row `samples` times over: paths that share their context

`extend` predicts after what the state already holds and after each of the k new patches, so K proposals and the
bonus patch are one call. Nothing is computed before the first `extend`: it encodes context and proposals together.
`state.unit` [B, 1, 1, C] is the normalisation stdev of the context, the unit of a `relative` law of the path after it.
The decoder hands the target's to the draft, and looks at nothing else inside a state. Two implementations stand behind
the interface, chosen by `model.rolling`: `WindowState` (exact for every checkpoint) and `CacheState` (keys and values
are kept).
"""
import torch

from models.cache_state import CacheState
from models.prediction import Prediction
from models.window_state import WindowState

STATES = {"window": WindowState, "cache": CacheState}


class Decodable:
    """The decoding interface of a model with `to_patches`, `unit_of`, `encode`, `predict` and `patch_len`."""

    rolling = "window"

    def start(self, context: torch.Tensor, room: int):
        return STATES[self.rolling](self, self.to_patches(context), room)

    def extend(self, state, patches: torch.Tensor | None = None) -> Prediction:
        if patches is not None:
            state.append(patches)
        return state.predict(1 if patches is None else patches.shape[1] + 1)

    def fan_out(self, state, samples: int) -> None:
        """Every row `samples` times, one after the other. What is pending is encoded before, once for all of them."""
        state.fan_out(samples)
