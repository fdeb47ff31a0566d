"""Sharding of weights over the processes that train them: PyTorch's FSDP2."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(module: nn.Module, blocks: Iterable[nn.Module], device: torch.device, bfloat16: bool) -> None:
    """Shard all weights over all processes, in place, along their first axis.

    Each block is gathered while it computes. Weights outside of the blocks stay gathered during a forward and backward
    pass.

    Args:
        module: on its device.
        blocks: parts of the module.
        device: of this process.
        bfloat16: gather blocks in bfloat16, which halves communication; gradients are reduced in float32.
    """
    # The loss per position is a view, but nothing changes it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=half if bfloat16 else MixedPrecisionPolicy())
    fully_shard(module, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds, sharing memory: all of them if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: Tensor) -> int | None:
    """The first row of this process's shard; None for a tensor that is not sharded."""
    if not isinstance(tensor, DTensor):
        return None
    mesh, rows = tensor.device_mesh, len(tensor)
    # FSDP2 gives each process ⌈rows / processes⌉ rows, the last ones fewer or none.
    return min(rows, mesh.get_local_rank() * -(-rows // mesh.size()))


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, on every process; all must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of a module with its parameters on "meta": shapes without values."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, empty)


def unsharded(module: nn.Module, empty: nn.Module) -> nn.Module:
    """A copy of a sharded module with its full weights, on every process; all must call this.

    Args:
        module: the sharded one.
        empty: its `meta_copy`, made before it was sharded.
    """
    copied = copy.deepcopy(empty)
    full_state_dict = {name: full_tensor(p.detach()) for name, p in module.named_parameters()}
    copied.load_state_dict(full_state_dict, strict=False, assign=True)  # not strict: buffers were copied
    return copied
