"""Longer heads of a target: what it would say, from one position, of the patches after the next one."""
import torch
from torch import nn
from torch.nn import functional as F


class LongerHeads(nn.Module):
    """hidden [..., D] -> the `count` patches after the next one, [..., count * P], normalised as the target's own.

    A residual block, shared by all heads, then a linear map for each: out = W (h + silu(V h)).
    """

    def __init__(self, width: int, patch_len: int, count: int):
        super().__init__()
        self.count = count
        self.block = nn.Linear(width, width)
        self.heads = nn.Linear(width, count * patch_len)
        nn.init.zeros_(self.block.weight)
        nn.init.zeros_(self.block.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.heads(hidden + F.silu(self.block(hidden)))
