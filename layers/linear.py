"""Linear maps: the kernel-1 convolution of the public checkpoints, and weights packed once for a CPU."""
import torch
import torch.nn.functional as F
from torch import nn

# smaller weights stay in the processor's cache, where a packed call only adds overhead
PACKED_FROM = 2**18
TYPICAL_ROWS = 1024  # a layout chosen for many rows is fine for few; one chosen for few is slow for many


class PointwiseConv(nn.Conv1d):
    """A linear map [..., in] -> [..., out] that is stored as a kernel-1 convolution, as in the public checkpoints."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight[..., 0], self.bias)


class PackedLinear(nn.Module):
    """A linear map whose weight is laid out for the CPU's kernels once, not at every call. For inference in float32.

    With few rows the packing is most of a call: 1024 x 1024 weights and 14 rows take 0.37 ms instead of 0.63
    (1 thread), with one row 0.18 instead of 0.26, with 3136 rows 59 instead of 73.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), TYPICAL_ROWS)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_linears(model: nn.Module) -> None:
    """Replaces the large linear maps of a float32 model on a CPU by packed ones; does nothing if torch cannot.

    The model can no longer be trained or saved. Its outputs change by rounding only.
    """
    for name, child in list(model.named_children()):
        if not isinstance(child, nn.Linear | PointwiseConv):
            pack_linears(child)
        elif child.weight.numel() >= PACKED_FROM and child.weight.device.type == "cpu" and _can_pack():
            setattr(model, name, PackedLinear(child.weight.flatten(1), child.bias))


def _can_pack() -> bool:
    """True if torch has the two operators, which are undocumented; without them nothing is packed."""
    operators = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and hasattr(operators, "_reorder_linear_weight") \
        and hasattr(operators, "_linear_pointwise")
