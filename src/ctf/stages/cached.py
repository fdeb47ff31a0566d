"""What the kinds that sample with a cache share: the cache, the recorded loop, and memory."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from ctf.device import send
from ctf.models.cache import KeyValueCache
from ctf.models.config import Compute
from ctf.models.transformer import Transformer
from ctf.sampling.cost import StageMemory
from ctf.sampling.cuda_graph import RecordedLoops
from ctf.sampling.guidance import both_branches
from ctf.sampling.random import Random
from ctf.sampling.settings import Sampling
from ctf.stages.stage import OnStep
from ctf.stages.transformer_stage import TransformerStage

#: The type of device that records loops.
RECORDED_ON = "cuda"


class CachedStage(TransformerStage):
    """A stage whose steps see what is before them through a cache; arguments as those of `Stage`."""

    @abstractmethod
    def loop(
        self,
        sampling: Sampling,
        labels: Tensor,
        uniform: Tensor,
        given: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The steps themselves: without known labels everything stays on the device, and no shape depends on a value.

        Both guidance branches are one batch: labels int64 (B,) and uniform numbers float64 (B, N).
        """

    def begin(self, sampling: Sampling, labels: Tensor) -> tuple[Transformer, KeyValueCache, Tensor]:
        """The network, an empty cache, and the labels of both guidance branches."""
        both = both_branches(labels, self.num_classes, sampling)
        dtype = getattr(self.transformer, "dtype", torch.float32)  # a packed network has one
        return self.transformer, KeyValueCache(self.config, len(both), labels.device, dtype), both

    def steps(
        self, labels: Tensor, random: Random, sampling: Sampling, given: Tensor | None, known: Tensor | None = None
    ) -> Iterator[Tensor]:
        return self.loop(sampling, labels, send(random.uniform(self.num_tokens), labels.device), given, known)

    def pack(self, compute: Compute) -> CachedStage:
        packed = super().pack(compute)
        assert isinstance(packed, CachedStage)
        if packed is not self:
            packed._recorded = RecordedLoops()
        return packed

    #: Of a packed stage, used on a GPU.
    _recorded: RecordedLoops

    def _draw_all(
        self,
        labels: Tensor,
        random: Random,
        sampling: Sampling,
        given: Tensor | None,
        known: Tensor | None,
        on_step: OnStep | None,
    ) -> Tensor:
        stepwise = known is not None or on_step is not None
        if not self.packed or labels.device.type != RECORDED_ON or stepwise:
            return super()._draw_all(labels, random, sampling, given, known, on_step)
        inputs = [labels, send(random.uniform(self.num_tokens), labels.device), *([] if given is None else [given])]

        def run(*inputs: Tensor) -> Tensor:
            return deque(self.loop(sampling, *inputs), maxlen=1)[0]

        return self._recorded(sampling, run, inputs)

    def memory(self, batch: int, sampling: Sampling, compute: Compute) -> StageMemory:
        """The cache; and of the largest step what a feed-forward layer keeps, which are the residual stream, its two
        halves and the factors of their product, or a draw."""
        c, size = self.config, compute.on(self.device).torch_dtype.itemsize
        rows, group = batch * (1 + sampling.guided), max(self.group_sizes(sampling))
        length = c.num_tokens + (c.attention == "groups")
        cache = 2 * c.layers * rows * c.num_kv_heads * length * c.head_dim * size
        states = 0 if group == 1 else 2 * rows * group * (4 * c.dim + 4 * c.ffn_dim * size)
        stays = self.device.type == "cuda"
        return StageMemory(
            self.packed_memory(compute), cache + max(states, self.drawing_memory(batch, group, compute)), stays
        )
