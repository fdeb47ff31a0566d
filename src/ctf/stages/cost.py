"""Operations and memory of a stage, counted by PyTorch while the stage runs on "meta", without values.

So no type of stage states a formula. Code that runs on "meta" cannot read values on the host, which a loop that a GPU
records cannot do either.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ctf.models.config import Compute
from ctf.sampling.settings import Sampling
from ctf.stages.drawing import DrawPlan, Group, draw_steps
from ctf.stages.stage import Stage

#: Bytes that libraries allocate at the first batch: thread pools, compiled kernels, scratch.
LIBRARIES = 32 * 2**20


@dataclass(frozen=True)
class Work:
    """The least work of one step; reading and computing may overlap.

    Attributes:
        bytes: weights and caches read from memory. Embeddings, activations and int8 scales are left out.
        operations: of products, attention and convolutions, two per multiply-add.
    """

    bytes: float
    operations: float


def operations(call: Callable[[], object]) -> int:
    """Operations of a call on "meta": products, attention and convolutions, two per multiply-add."""
    with torch.no_grad(), FusedAttention() as attention, Products() as products:
        call()
    return products.operations + attention.operations


def forward_operations(stage: Stage) -> int:
    """Operations of one image through the stage with teacher forcing.

    Masked attention counts in full, as in PaLM's appendix B. A stage with a cache reads all groups in one pass, here
    the most groups that it can have. A stage without one takes one pass too: it is trained for one round at a time.
    """
    bare = stage.without_values(padded=False)
    plan = bare.plan(Sampling(steps=bare.possible_steps[-1 if bare.cached else 0]))
    if not bare.cached:
        n = bare.num_tokens
        plan = dataclasses.replace(plan, groups=(Group(slice(n), n, n, 0, 0, kept=False),))
    tokens, labels = _zeros(1, bare.num_tokens), _zeros(1)
    return operations(lambda: bare.logits(tokens, labels, plan))


def drawing_work(stage: Stage, batch: int, sampling: Sampling, compute: Compute) -> list[Work]:
    """The least work of each step of a batch."""
    bare, compute = stage.without_values(padded=False), compute.on(stage.device)
    plan = bare.plan(dataclasses.replace(sampling, sampler=None, filter=None))
    groups, counted = plan.groups, _counted(plan.groups)
    steps = _draw(bare, batch, dataclasses.replace(plan, groups=tuple(groups[i] for i in counted)))
    operations_of_counted = [operations(lambda: next(steps)) for _ in counted]
    rows = batch * (1 + sampling.guided)
    weights = {size: stage.weight_bytes(compute, batch * size) for size in {group.size for group in groups}}
    return [
        Work(weights[g.size] + stage.cache_bytes(rows, g, compute), float(number))
        for g, number in zip(groups, np.interp(range(len(groups)), counted, operations_of_counted), strict=True)
    ]


def _counted(groups: tuple[Group, ...]) -> list[int]:
    """Groups whose operations are counted: of each run of equal sizes the first, the second and the last.

    From the second on, each attends to one more group of that size: operations grow linearly.
    """
    sizes = [(group.size, group.count) for group in groups]
    first = [i for i, size in enumerate(sizes) if i == 0 or sizes[i - 1] != size]
    ends = {i - 1 for i in first[1:]} | {len(groups) - 1}
    return sorted({*first, *ends, *(i + 1 for i in first if i not in ends)})


def sampling_memory(stages: Sequence[tuple[Stage, Sampling]], batch: int, compute: Compute, decoding: int = 0) -> int:
    """Bytes that a batch adds to loaded stages and their decoder, which takes `decoding` bytes.

    On a CPU stages and decoder reuse each other's memory. On a GPU each keeps its own, for its stream or its graph.
    """
    weights = sum(stage.weight_bytes(compute.on(stage.device)) for stage, _ in stages)
    parts = [decoding, *(activation_bytes(stage, batch, sampling, compute) for stage, sampling in stages)]
    return LIBRARIES + int(weights) + (sum(parts) if stages[0][0].device.type == "cuda" else max(parts))


def activation_bytes(stage: Stage, batch: int, sampling: Sampling, compute: Compute) -> int:
    """Peak bytes of a batch's caches, states, logits and samples, in the step of most positions."""
    bare = stage.without_values().pack(Compute(compute.on(stage.device).dtype))
    plan = bare.plan(dataclasses.replace(sampling, sampler=None, filter=None))
    largest = max(range(len(plan.groups)), key=lambda i: (plan.groups[i].size, i))
    groups = plan.groups[max(largest - 1, 0) : largest + 1]  # with the group before, whose labels that step reads
    with FusedAttention(), PeakMemory() as memory:
        deque(_draw(bare, batch, dataclasses.replace(plan, groups=groups)), maxlen=0)
    return memory.peak


def _draw(stage: Stage, batch: int, plan: DrawPlan) -> Iterator[Tensor]:
    given = None if stage.given is None else _zeros(batch, stage.num_tokens)
    uniform = torch.empty(batch, stage.num_tokens, dtype=torch.float64, device="meta")
    return draw_steps(stage, _zeros(batch), lambda stream: uniform, plan, given)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")


class FusedAttention(TorchFunctionMode):
    """Attention and norms that write their result alone, as fused kernels do: on "meta" PyTorch writes all scores.

    Attributes:
        operations: of its two products, masked scores included.
    """

    operations = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.rms_norm:  # one kernel too; on "meta" Python decomposes it, half of the time of counting
            return torch.empty_like(args[0])
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key = args[:2]
        self.operations += 4 * query.numel() * key.shape[-2]
        return torch.empty_like(query)


class Products(TorchDispatchMode):
    """PyTorch's counts of matrix products and convolutions, in half the time of its `FlopCounterMode`.

    Attributes:
        operations: two per multiply-add.
    """

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        return result


class PeakMemory(TorchDispatchMode):
    """Bytes of the living tensors that were made within it: `now`, and their maximum, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        counted = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):  # views share the storage of their arguments
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in counted:
                counted.add(storage._cdata)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, size: int) -> None:
        self.now += size
