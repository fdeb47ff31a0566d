"""Weights that are sharded over the processes that train them: PyTorch's FSDP2."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


def shard(module: nn.Module, units: Iterable[nn.Module], device: torch.device, bfloat16: bool) -> None:
    """Shard all weights over all processes, in place, along their first axis.

    Each of the `units` is gathered while it computes; weights outside of them stay gathered during the whole pass.

    Args:
        module: on its device.
        units: parts of it, such as the blocks of a stage.
        device: of this process.
        bfloat16: gather units in bfloat16, which halves what is sent; gradients are added up in float32.
    """
    # The loss per position is a view; nothing is done to it in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=half if bfloat16 else MixedPrecisionPolicy())
    fully_shard(module, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds, sharing memory: all of them if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def first_row(tensor: Tensor) -> int | None:
    """Where the rows of this process begin; None for a tensor that is not sharded."""
    if not isinstance(tensor, DTensor):
        return None
    mesh, rows = tensor.device_mesh, len(tensor)
    return min(rows, mesh.get_local_rank() * -(-rows // mesh.size()))


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, on every process; all must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of a module whose weights have shapes and no values."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, empty)


def unsharded(module: nn.Module, empty: nn.Module) -> nn.Module:
    """A copy of a sharded module with its full weights, on every process; all must call this.

    Args:
        module: whose weights.
        empty: the `meta_copy` of the module before it was sharded.
    """
    filled = copy.deepcopy(empty)
    weights = {name: full_tensor(p.detach()) for name, p in module.named_parameters()}
    filled.load_state_dict(weights, strict=False, assign=True)
    return filled
