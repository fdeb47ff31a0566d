"""What the kinds that sample with a cache share: the state of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ctf.models.cache import KeyValueCache
from ctf.models.config import Compute
from ctf.stages.drawing import DrawPlan, Group
from ctf.stages.transformer_stage import TransformerStage


@dataclass
class CacheState:
    """Of one call.

    Attributes:
        cache: keys and values of the positions before.
        inputs: (rows, k, dim), of the label or of the labels observed last: what the network reads next.
        rotary: of these inputs.
        given: (rows, N), if the stage is given labels.
    """

    cache: KeyValueCache
    inputs: Tensor
    rotary: Tensor
    given: Tensor | None


class CachedStage(TransformerStage):
    """A stage whose steps see what is before them through a cache; arguments as those of `Stage`."""

    cached = True

    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> CacheState:
        network = self.transformer
        dtype = getattr(network, "dtype", torch.float32)  # a packed network has one
        cache = KeyValueCache(self.config, len(labels), labels.device, dtype)
        return CacheState(cache, network.label_embedding(labels)[:, None], network.rotary[:1], given)

    def observe(self, state: CacheState, group: Group, labels: Tensor) -> None:
        state.inputs = self.transformer.token_embedding(labels)

    def cache_bytes(self, rows: int, group: Group, compute: Compute) -> int:
        """Of the label, the positions before, and the group's own queries, if it has any."""
        cache = KeyValueCache(self.config, rows, torch.device("meta"), compute.torch_dtype)
        filled = 1 + group.before + (group.size if self.config.attention == "groups" else 0)
        return sum(tensor[:, :, :filled].numel() * tensor.itemsize for tensor in (*cache.keys, *cache.values))
