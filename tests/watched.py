"""What would make the host wait for a GPU, seen on any device."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations that read values, or whose shapes depend on values.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")


def what_waits(function, args, kwargs, result):
    """What an operation would wait for, or None."""
    name = function.overloadpacket.__name__
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    devices = {x.device.type for x in (*inputs, *tree_leaves(result)) if isinstance(x, Tensor)}
    if name != "nonzero_static" and any(word in name for word in READS):  # that one is told the size
        return name
    if name.startswith("index") and isinstance(args[1], list | tuple):
        if any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            return f"{name} by a mask"
        if "put" in name and args[2].ndim == 0 and args[2].device.type == "cpu":
            return f"{name} of a number, which is copied from the host"
    if name in ("_to_copy", "copy_", "where") and len(devices) > 1:
        is_number = name == "copy_" and args[1].ndim == 0  # an argument of the kernel
        if not (is_number or (kwargs or {}).get("non_blocking") or True in args[2:3]):
            return f"{name} between devices"
    return None


class Watched(TorchDispatchMode):
    """Collects what would make the host wait for a GPU: values read, shapes that depend on values, copies to it."""

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.is_inference_mode_enabled():  # `item` and `to` come whole, outside of it as what they are made of
            with self:
                result = function.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        result = function(*args, **(kwargs or {}))
        if found := what_waits(function, args, kwargs, result):
            self.found.append(found)
        self.operations += 1
        return result
