"""Rolling without a cache over a series that grows: every prediction re-encodes all patches since the beginning."""
from typing import Any

import torch

from utils.window_state import WindowState


class GrowingState(WindowState):
    """As `WindowState`, but no patch leaves at the front. For models whose tokens are patches, and do
    not depend on later ones.

    The model's `predict_series(patches, counts, context_patches)` predicts after the first `counts` [b] of patches
    [b, T, P, C]; what comes after them is arbitrary, but finite.
    """

    model: Any

    def __init__(self, model, context: torch.Tensor, room: int):
        """context [B, N, P, C]"""
        super().__init__(model, context, room)
        self.longest = self.context_tokens  # upper bound on the patches of a row, known to the host

    def append(self, patches: torch.Tensor) -> None:
        super().append(patches)
        self.longest = min(self.longest + patches.shape[1], self.series.shape[1])

    def rollback(self, lengths: torch.Tensor | int) -> None:
        super().rollback(lengths)
        if isinstance(lengths, int):
            self.longest = self.context_tokens + lengths

    def predict_at(self, rows: torch.Tensor, starts: torch.Tensor):
        return self.model.predict_series(self.series[rows, :self.longest], starts + self.context_tokens,
                                         self.context_tokens)
