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

#: Up to so many elements PyTorch computes in one thread; of GELU half of them, and beyond it shares among all threads.
ONE_THREAD = 32_768
#: Elements that a loop computes together with the widest vectors (AVX-512).
WHOLE = 32
#: In its tanh form, as VAR has it.
gelu = partial(F.gelu, approximate="tanh")


def cuts(count: int, unit: int) -> bool:
    """Whether threads of a CPU share `count` elements in pieces that end within `unit` of them; not in training."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # where speed counts more
        return False
    threads = torch.get_num_threads()
    pieces = {min(threads, -(-count // ONE_THREAD)), threads if count > ONE_THREAD // 2 else 1}
    return any(-(-count // number) % unit for number in pieces if number > 1)


def elementwise(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function` of each element of x (…, dim). Without gradients a CPU computes it in pieces of whole rows."""
    dim = x.shape[-1]
    if x.device.type != "cpu" or not cuts(x.numel(), WHOLE if dim % WHOLE == 0 else dim):
        return function(x)
    rows, threads, count = x.flatten(0, -2), torch.get_num_threads(), max(1, ONE_THREAD // dim)
    shared = 0 if ONE_THREAD % dim else len(rows) // (count * threads) * count * threads  # `count` for each thread
    pieces = [*rows[:shared].split(count * threads), *rows[shared:].split(max(1, count // 2))]
    return torch.cat([function(piece) for piece in pieces if len(piece)]).view(x.shape)
