"""What would make the host wait for a GPU, seen on any device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watched(TorchDispatchMode):
    """Collects what would make the host wait for a GPU: values read, shapes that depend on values, copies to it."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, result = function.overloadpacket.__name__, function(*args, **(kwargs or {}))
        boolean_index = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
            for i in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else [])
        )
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        copied = len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1  # numbers are arguments of kernels
        waits = name != "nonzero_static" and any(word in name for word in self.NAMES)  # that one is told the size
        if boolean_index or copied or waits:
            self.found.append(name)
        self.operations += 1
        return result
