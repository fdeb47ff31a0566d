"""x · Wᵀ for few rows at the speed of memory: the same product, its weight laid out once for it.

Decoding multiplies a handful of rows by every weight at every step, so it is as fast as weights are read. On a CPU a
plain product reads a row-major weight at a third to a half of what the memory gives, oneDNN's blocked layout at
nearly all of it, and int8 reads a quarter of the bytes. `benchmarks/sampling.md` has the figures.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError

#: How weights are stored for sampling, other than as they are: 8-bit integers with a scale per output.
Quantize = Literal["int8"]


def lay_out(weight: Tensor, rows: int, quantize: Quantize | None = None) -> nn.Module:
    """The fastest product with `weight` (outputs, inputs) on its device: a module (…, inputs) → (…, outputs).

    Args:
        weight: in the dtype to compute in, float32 or bfloat16.
        rows: how many rows x will have; others work too.
        quantize: "int8", or None for the exact product.

    Raises:
        InputError: int8 on a device or build without it.
    """
    packs = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if quantize is None:
        return PackedProduct(weight, rows) if packs else PlainProduct(weight)
    if not packs:
        raise InputError("quantize int8 needs a CPU and a PyTorch with oneDNN: leave it out, or take dtype bfloat16")
    return Int8Product(weight, rows)


class PlainProduct(nn.Module):
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class PackedProduct(nn.Module):
    """The weight in oneDNN's blocked layout."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")


class Int8Product(nn.Module):
    """The weight rounded to 8 bits on a scale per output, x on a scale per row; the sums are exact integers.

    A row's result depends on that row only, so an image still does not depend on its batch.
    """

    def __init__(self, weight: Tensor, rows: int) -> None:
        super().__init__()
        weight = weight.float()
        self.scale = weight.abs().amax(1).clamp_min(1e-12) / 127  # float32 (outputs,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", torch.ops.onednn.qlinear_prepack(rounded, [rows, weight.shape[1]]))
        self.zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        self.zero_point = torch.tensor(128.5)

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        largest = torch.linalg.vector_norm(values, torch.inf, dim=-1, keepdim=True).clamp_min_(1e-12)
        # Unsigned with zero point 128, the form that CPUs have an instruction for; adding a half makes a cast round.
        levels = torch.addcmul(self.zero_point, values, 127 / largest).to(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            levels, 1.0, 128, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y.mul_(largest / 127).type_as(x)
