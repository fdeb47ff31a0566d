"""x · Wᵀ for few rows at the speed of memory, with a weight that is packed once.

Decoding multiplies a handful of rows by every weight in every step, so it is as fast as weights are read. On a CPU a
plain product reads a row-major weight at a third to a half of the memory's bandwidth. oneDNN's blocked layout reaches
nearly all of it, and int8 reads a quarter of the bytes. Measurements are in `benchmarks/sampling.md`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.elementwise import elementwise, gelu
from ctf.errors import InputError
from ctf.models.config import Compute, Quantize

#: Rows for which oneDNN chooses a layout. With one number for all batches a row's result does not depend on the batch,
#: and weights are packed once. From 8 rows on no other number is faster, also for thousands of rows.
ROWS = 8


def pack_linear(
    weight: Tensor, quantize: Quantize | None = None, bias: Tensor | None = None, gelu: bool = False
) -> nn.Module:
    """A module (…, inputs) → (…, outputs): the fastest product with `weight` (outputs, inputs) on its device.

    Args:
        weight: in the dtype to compute in, float32 or bfloat16; inputs are converted to it.
        quantize: "int8", or None for the exact product.
        bias: (outputs,), added.
        gelu: whether GELU in its tanh form follows.

    Raises:
        InputError: int8 on a device or build without it.
    """
    packs = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if packs and quantize is None:
        return PackedLinear(weight, bias, gelu)
    if quantize is not None and not packs:
        raise InputError("quantize int8 needs a CPU and a PyTorch with oneDNN: leave it out, or take dtype bfloat16")
    product = Linear(weight) if quantize is None else Int8Linear(weight)
    return product if bias is None and not gelu else WithBias(product, bias, gelu)


class Linear(nn.Module):
    """A product with the weight unchanged."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight)


class WithBias(nn.Module):
    """A product followed by bias and GELU."""

    def __init__(self, product: nn.Module, bias: Tensor | None, gelu: bool) -> None:
        super().__init__()
        self.product, self.bias, self.gelu = product, bias, gelu

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        y = y if self.bias is None else y + self.bias
        return elementwise(gelu, y) if self.gelu else y


class PackedLinear(nn.Module):
    """A product with the weight in oneDNN's blocked layout, fused with bias and GELU.

    On a CPU without bfloat16 instructions the layout holds bfloat16 weights in float32. The product then takes as long
    as one of float32; PyTorch's own of bfloat16 would take hundreds of times as long.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self.layout = torch.float32 if weight.dtype == torch.bfloat16 and not multiplies_bfloat16() else weight.dtype
        weight = weight.to(self.layout).contiguous()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight, ROWS))
        self.bias = None if bias is None else bias.to(self.layout)
        self.activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.dtype == self.dtype else x.to(self.dtype)
        x = x if self.layout == self.dtype else x.to(self.layout)
        # oneDNN sums a single row of over 1,024 inputs in another order: with two its bits are those of any batch.
        if single := x.numel() == x.shape[-1]:
            x = torch.cat([x, x])
        y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *self.activation)
        y = y[:1] if single else y
        return y if self.layout == self.dtype else y.to(self.dtype)


def multiplies_bfloat16() -> bool:
    """Whether oneDNN has products in bfloat16 on this CPU."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_bytes(compute: Compute, device: torch.device) -> int:
    """Bytes that `pack_linear` keeps of one weight, and a product reads; `compute` has been resolved by `on`."""
    if compute.quantize == "int8":
        return 1
    packs = device.type == "cpu" and torch.backends.mkldnn.is_available()
    return 4 if packs and not multiplies_bfloat16() else compute.torch_dtype.itemsize


class Int8Linear(nn.Module):
    """A product of 8-bit integers: the weight has a scale per output, x a scale per row, and sums are exact.

    A row's result depends on that row only, so an image does not depend on its batch. On a CPU whose products of bytes
    saturate, weights have 7 bits.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.dtype = weight.dtype
        weight, levels = weight.float(), 64 if saturates() else 127
        self.scale = weight.abs().amax(1).clamp_min(1e-12) / levels  # float32 (outputs,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", torch.ops.onednn.qlinear_prepack(rounded, [ROWS, weight.shape[1]]))
        self.zeros = torch.zeros(len(self.scale), dtype=torch.int32)
        self.zero_point = torch.tensor(128.5)  # the half makes the cast to integers round, not truncate

    def forward(self, x: Tensor) -> Tensor:
        values = x.to(self.dtype).float()
        largest = torch.linalg.vector_norm(values, torch.inf, dim=-1, keepdim=True).clamp_min_(1e-12)
        # Unsigned with zero point 128: CPUs have an instruction for unsigned × signed bytes.
        levels = torch.addcmul(self.zero_point, values, 127 / largest).to(torch.uint8)
        y = multiply_bytes(levels, 128, self.weight, self.scale, self.zeros)
        return y.mul_(largest / 127).to(self.dtype)


def multiply_bytes(x: Tensor, zero_point: int, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """(x − zero_point) · Wᵀ, uint8 (…, inputs) by packed int8 weights, scaled: float32 (…, outputs)."""
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@lru_cache
def saturates() -> bool:
    """Whether this CPU adds two products of bytes in 16 bits, as CPUs without VNNI do: 2 · 255 · 127 overflows."""
    inputs, outputs = 64, 16
    largest = torch.full((outputs, inputs), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(largest, [ROWS, inputs])
    x, ones = torch.full((ROWS, inputs), 255, dtype=torch.uint8), torch.ones(outputs)
    sums = multiply_bytes(x, 0, packed, ones, torch.zeros(outputs, dtype=torch.int32))
    return not bool((sums == inputs * 255 * 127).all())
