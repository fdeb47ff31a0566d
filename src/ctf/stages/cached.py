"""What the kinds that sample with a cache share: the state of a call, and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctf.models.cache import KeyValueCache
from ctf.models.config import Compute
from ctf.sampling.cost import StageMemory
from ctf.sampling.settings import Sampling
from ctf.stages.drawing import DrawPlan, Group
from ctf.stages.transformer_stage import TransformerStage


@dataclass
class CacheState:
    """Of one call.

    Attributes:
        cache: keys and values of the positions before.
        inputs: (rows, k, dim), of the label or of the labels observed last: what the network reads next.
        rotary: of these inputs.
        place: how many inputs the cache holds.
        given: (rows, N), if the stage is given labels.
    """

    cache: KeyValueCache
    inputs: Tensor
    rotary: Tensor
    place: int
    given: Tensor | None


class CachedStage(TransformerStage):
    """A stage whose steps see what is before them through a cache; arguments as those of `Stage`."""

    cached = True

    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> CacheState:
        network = self.transformer
        dtype = getattr(network, "dtype", torch.float32)  # a packed network has one
        cache = KeyValueCache(self.config, len(labels), labels.device, dtype)
        return CacheState(cache, network.label_embedding(labels)[:, None], network.rotary[:1], 0, given)

    def observe(self, state: CacheState, group: Group, labels: Tensor) -> None:
        state.inputs = self.transformer.token_embedding(labels)

    def memory(self, batch: int, sampling: Sampling, compute: Compute) -> StageMemory:
        """The cache; and of the largest step what a feed-forward layer keeps, which are the residual stream, its two
        halves and the factors of their product, or a draw."""
        c, size = self.config, compute.on(self.device).torch_dtype.itemsize
        rows, group = batch * (1 + sampling.guided), max(self.plan(sampling).sizes)
        length = c.num_tokens + (c.attention == "groups")
        cache = 2 * c.layers * rows * c.num_kv_heads * length * c.head_dim * size
        states = 0 if group == 1 else 2 * rows * group * (4 * c.dim + 4 * c.ffn_dim * size)
        stays = self.device.type == "cuda"
        return StageMemory(
            self.packed_memory(compute), cache + max(states, self.drawing_memory(batch, group, compute)), stays
        )
