"""Linear maps: the kernel-1 convolution of the public checkpoints, and weights laid out once for a CPU."""
import torch
import torch.nn.functional as F
from torch import nn

# A packed call takes some 10 us more than a plain one and is twice as fast: it pays from so many products on. On a
# processor of AMD, whose plain products are slow, 64 x 64 weights and 6272 rows take 0.21 ms instead of 0.48.
PACKED_FROM = 2**20
TYPICAL_ROWS = 1024  # a layout chosen for many rows is fine for few; one chosen for few is slow for many


class PointwiseConv(nn.Conv1d):
    """A linear map [..., in] -> [..., out] that is stored as a kernel-1 convolution, as in the public checkpoints."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight[..., 0], self.bias)


class PackedLinear(nn.Module):
    """A linear map in float32 whose weight is laid out for the CPU's kernels once, not at every call. For inference.

    With few rows the packing is most of a call: 1024 x 1024 weights and 14 rows take 0.37 ms instead of 0.63
    (1 thread), with one row 0.18 instead of 0.26, with 3136 rows 59 instead of 73.
    dtype: bfloat16 halves weights and time; what goes in and out, and calls too small to gain, stay in float32.
    Derivatives are those of the plain map, where it is kept.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype = torch.float32):
        super().__init__()
        weight = weight.detach().contiguous()
        self.dtype, self.outputs = dtype, len(weight)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), TYPICAL_ROWS)
        self.plain = weight if weight.numel() < PACKED_FROM else None  # for calls with few rows
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.packed_bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.plain is not None and (x.numel() * self.outputs < PACKED_FROM or torch.is_grad_enabled()):
            return F.linear(x, self.plain, self.bias)
        made = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.packed_bias, "none", [], "")
        return made.to(x.dtype)


def pack_linears(model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Replaces the linear maps of a float32 model on a CPU by packed ones; does nothing if torch cannot.

    The model can no longer be trained or saved. Its outputs change by rounding only, with bfloat16 by its rounding.
    """
    for name, child in list(model.named_children()):
        if not isinstance(child, nn.Linear | PointwiseConv):
            pack_linears(child, dtype)
        elif child.weight.device.type == "cpu" and can_pack(dtype):
            setattr(model, name, PackedLinear(child.weight.flatten(1), child.bias, dtype))


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """True if torch has the operators, which are undocumented, and the processor computes in this precision."""
    operators = torch.ops.mkldnn
    known = torch.backends.mkldnn.is_available() and hasattr(operators, "_reorder_linear_weight") \
        and hasattr(operators, "_linear_pointwise")
    return known and (dtype == torch.float32 or operators._is_mkldnn_bf16_supported())
