"""Residual blocks around one hidden layer: TimesFM's embedding of a patch, and its heads."""
import torch
import torch.nn.functional as F
from torch import nn


class ResidualBlock(nn.Module):
    """output_layer(silu(hidden_layer(x))) + residual_layer(x): [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.hidden_layer = nn.Linear(inputs, hidden)
        self.output_layer = nn.Linear(hidden, outputs)
        self.residual_layer = nn.Linear(inputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output_layer(F.silu(self.hidden_layer(x))) + self.residual_layer(x)


class ChannelMap(nn.Module):
    """A linear map to `channels` numbers for each step, of which one channel can be had for its share of the work.

    Its rows are laid out step by step. It is never packed: a packed weight has no rows to choose from.
    """

    def __init__(self, inputs: int, steps: int, channels: int):
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(steps * channels, inputs))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: torch.Tensor, channel: int | None = None) -> torch.Tensor:
        """x [..., inputs] -> one channel [..., steps], or all of them [..., steps, channels]."""
        if channel is None:
            return F.linear(x, self.weight).unflatten(-1, (-1, self.channels))
        return F.linear(x, self.weight.unflatten(0, (-1, self.channels))[:, channel])


class ChannelHead(nn.Module):
    """A residual block without biases, from a token to `channels` numbers for each of `steps` steps."""

    def __init__(self, inputs: int, hidden: int, steps: int, channels: int):
        super().__init__()
        self.hidden_layer = nn.Linear(inputs, hidden, bias=False)
        self.output_layer = ChannelMap(hidden, steps, channels)
        self.residual_layer = ChannelMap(inputs, steps, channels)

    def forward(self, x: torch.Tensor, channel: int | None = None) -> torch.Tensor:
        """x [..., inputs] -> one channel [..., steps], or all of them [..., steps, channels]."""
        return self.output_layer(F.silu(self.hidden_layer(x)), channel) + self.residual_layer(x, channel)
