"""Decode states of models of single series, and of those whose tokens are shorter than what they predict."""
from __future__ import annotations

import torch

from models.cache_state import CacheState
from utils.buffers import repeated
from utils.interface import Prediction


class FoldedState:
    """Rows of several variables and patches of several tokens, over a state of single series that counts tokens.

    Inside, each variable is a row, and a token what `CacheState` calls a patch. Outside, a patch is what the model
    predicts: lengths and predictions are those of patches, and begin wherever the context ends.
    """

    def __init__(self, inner: CacheState, unit: torch.Tensor, variables: int, tokens: int):
        """inner: of rows * variables series, variable by variable in each row; unit [B * C, 1, 1, 1]; tokens: in a
        patch."""
        self.inner, self.variables, self.tokens = inner, variables, tokens
        self.unit = self._unfolded(unit)

    def _folded(self, patches: torch.Tensor) -> torch.Tensor:
        """[B, k, P, C] -> [B * C, k * tokens, T, 1]"""
        B, k, P, C = patches.shape
        return patches.permute(0, 3, 1, 2).reshape(B * C, k * self.tokens, P // self.tokens, 1)

    def _unfolded(self, values: torch.Tensor) -> torch.Tensor:
        """[B * C, ..., 1] -> [B, ..., C]"""
        return values.unflatten(0, (-1, self.variables)).movedim(1, -1).squeeze(-2)

    def append(self, patches: torch.Tensor) -> None:
        self.inner.append(self._folded(patches))

    def rollback(self, lengths: torch.Tensor | int) -> None:
        inner = lengths * self.tokens
        self.inner.rollback(inner if isinstance(inner, int) else inner.repeat_interleave(self.variables))

    def select(self, rows: torch.Tensor) -> None:
        every = rows[:, None] * self.variables + torch.arange(self.variables, device=rows.device)
        self.inner.select(every.flatten())
        self.unit = self.unit[rows]

    def fan_out(self, samples: int) -> None:
        self.inner.settle()
        self.select(repeated(len(self.unit), samples, self.unit.device))

    def predict(self, newest: int) -> Prediction:
        made = self.inner.predict((newest - 1) * self.tokens + 1)

        def of_patches(values: torch.Tensor) -> torch.Tensor:
            return self._unfolded(values[:, ::self.tokens])
        ahead = None if made.ahead is None else of_patches(made.ahead)
        return Prediction(of_patches(made.mean), None, of_patches(made.scale), self.unit, ahead)
