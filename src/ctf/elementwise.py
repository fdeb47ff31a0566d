"""Elementwise functions that give an image the same bits alone and in a batch.

PyTorch shares a tensor among threads in equal pieces of any length. Where a piece does not end with a whole vector of
the processor, its last elements are computed by another formula, and which elements these are depends on the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

#: Up to so many elements PyTorch computes in one thread.
ONE_THREAD = 32_768
#: Elements of the widest vectors times those that a loop computes together, and more.
WHOLE = 64
#: In its tanh form, as VAR has it.
gelu = partial(F.gelu, approximate="tanh")


def cuts(count: int, unit: int) -> bool:
    """Whether threads of a CPU share `count` elements in pieces that end within `unit` of them; not in training."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # where speed counts more
        return False
    pieces = min(torch.get_num_threads(), -(-count // ONE_THREAD))
    return pieces > 1 and -(-count // pieces) % unit > 0


def elementwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of each element of x. Without gradients a CPU computes it in pieces of whole vectors."""
    if x.device.type != "cpu" or not cuts(x.numel(), WHOLE):
        return function(x)
    flat, shared = x.flatten(), ONE_THREAD * torch.get_num_threads()
    whole = len(flat) // shared * shared
    pieces = [*flat[:whole].split(shared), *flat[whole:].split(ONE_THREAD)]
    return torch.cat([function(piece) for piece in pieces if len(piece)]).view(x.shape)
