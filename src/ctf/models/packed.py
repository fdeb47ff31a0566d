"""Networks for sampling: the same blocks, their products packed once."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.device import gpu_compiles, return_freed_memory
from ctf.errors import InputError, first_line
from ctf.models.cache import KeyValueCache, attend_opaque
from ctf.models.config import Compute
from ctf.models.linear import pack_linear
from ctf.models.next_scale import NextScaleTransformer
from ctf.models.transformer import FeedForward, Transformer, compile_blocks, compile_copy


def _share_weights(packed: Any, model: Any) -> None:
    """Fill an empty `packed` with the modules of `model`, copied around the same weights, in evaluation mode.

    The constructor of the network would make weights and initialise them, which also imports sympy on "meta".
    """
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    copied = copy.deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()})
    vars(packed).update(vars(copied))  # a module is its attributes: parts, weights, buffers and settings
    packed.eval()
    for block in packed.blocks:
        block.compiled = None  # the model may train compiled


class PackedTransformer(Transformer):
    """The weights of a `Transformer` at one moment, for any number of rows.

    Threads may share it. It holds no state of a call: caches belong to their callers.

    Args:
        model: stays as it is; where nothing is converted, its weights are shared.
        compute: dtype (not "auto"), quantisation, compilation.
        head: pack the head too. Without it the head stays in float32, for `member_logits`.

    Raises:
        InputError: int8 on a device or build without it; at the first step, nothing to compile with.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, compute: Compute, head: bool = True) -> None:
        _share_weights(self, model)
        self.dtype, self.device = compute.torch_dtype, model.head.weight.device
        pack = partial(self._pack, compute=compute)
        for block in self.blocks:
            block.attention.qkv, block.attention.out = pack(block.attention.qkv), pack(block.attention.out)
            block.ffn = PackedFeedForward(block.ffn, pack)
            return_freed_memory()
        if head:
            self.head = pack(self.head)
        self._compiled: Any = None
        if self.device.type == "cuda":
            if gpu_compiles():
                compile_blocks(self)
        elif compute.compile:
            self.attend = attend_opaque
            # Inductor keeps the frozen weights of a compiled step as long as the process lives.
            self._compiled = compile_copy(Transformer._step, dynamic=True)

    @staticmethod
    def _pack(*linears: Any, compute: Compute) -> Any:
        """One product in place of several with the same input."""
        weights = [linear.weight.to(compute.torch_dtype) for linear in linears]
        return pack_linear(torch.cat(weights) if len(weights) > 1 else weights[0], compute.quantize)

    def step(self, x: Tensor, cache: KeyValueCache, position: int) -> Tensor:
        if self._compiled is None or position < 2:  # Dynamo specialises on 0 and 1
            return self._step(x, cache.keys, cache.values, position)
        from torch._inductor import config, exc

        # Frozen, packed weights are constants of the compiled function; inputs could not have such a layout.
        with config.patch(freezing=True):
            try:
                return self._compiled(self, x, cache.keys, cache.values, position)
            except exc.InductorError as error:
                raise InputError(
                    f"compile does not work here ({first_line(error)}): install a C++ compiler, or leave it out"
                ) from None


class PackedFeedForward(FeedForward):
    """`FeedForward` with its first two products as one."""

    def __init__(self, ffn: FeedForward, pack: Any) -> None:
        nn.Module.__init__(self)
        self.w13, self.w2 = pack(ffn.w1, ffn.w3), pack(ffn.w2)

    def gate_and_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = self.w13(x).chunk(2, dim=-1)
        return gate, up


class PackedNextScale(NextScaleTransformer):
    """`PackedTransformer` of VAR's network. Only products over positions are quantised; the head stays in float32.

    Raises:
        InputError: int8 on a device or build without it; compilation on a CPU.
    """

    @torch.no_grad()
    def __init__(self, model: NextScaleTransformer, compute: Compute, head: bool = True) -> None:
        if compute.compile and model.head.weight.device.type != "cuda":
            raise InputError("compile is for stages of single positions on a CPU, next_scale has none: leave it out")
        _share_weights(self, model)
        self.dtype, self.device = compute.torch_dtype, model.head.weight.device
        pack = partial(pack_affine, dtype=self.dtype)
        for name in ("vector_embedding", "head_modulation", "modulation"):
            if hasattr(self, name):
                setattr(self, name, pack(getattr(self, name)))
        pack_position = partial(pack, quantize=compute.quantize)
        for block in self.blocks:
            attention, ffn = block.attention, block.ffn
            attention.qkv, attention.out = pack_position(attention.qkv), pack_position(attention.out)
            block.ffn = nn.Sequential(pack_position(ffn.up, gelu=True), pack_position(ffn.down))
            if hasattr(block, "modulation"):
                block.modulation = pack(block.modulation)
            return_freed_memory()
        if head:
            self.head = pack_affine(self.head, torch.float32)  # type: ignore[assignment]
        if self.device.type == "cuda" and gpu_compiles():
            compile_blocks(self)


def pack_affine(layer: nn.Linear | nn.Conv2d, dtype: torch.dtype, **how: Any) -> nn.Module:
    """`pack_linear` of a layer's weight and bias in `dtype`."""
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return pack_linear(layer.weight.detach().flatten(1).to(dtype), bias=bias, **how)


class PackedConvolution(nn.Module):
    """A 3 × 3 convolution as a product over patches, for a CPU: oneDNN's convolution rounds by the batch."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.product = pack_affine(layer, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """(B, d, H, W) → the same."""
        patches = F.unfold(x, 3, padding=1).transpose(1, 2)  # (B, H·W, 9·d)
        return self.product(patches).transpose(1, 2).unflatten(2, x.shape[2:])
