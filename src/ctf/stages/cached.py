"""The base of kinds that sample with a key-value cache, and the state of a call."""

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
    """The state of one call.

    Attributes:
        cache: keys and values of the positions before.
        inputs: (rows, k, dim), embeddings that the network reads next: of the class, or of the last group's labels.
        rotary: rotary table (k, …) of these inputs.
        given: given labels (rows, N), if the stage has any.
    """

    cache: KeyValueCache
    inputs: Tensor
    rotary: Tensor
    given: Tensor | None


class CachedStage(TransformerStage):
    """A stage whose steps see earlier positions through a cache; arguments as those of `Stage`."""

    cached = True

    def logits(self, tokens: Tensor, labels: Tensor, plan: DrawPlan | None = None) -> Tensor:
        """As `Stage.logits`, where the order of training is that of sampling: all positions in one pass (eq. 8)."""
        if plan is not None:
            plan.fixed_groups(self.name)
        targets, given = self.levels(tokens)
        hidden, _, _ = self.training_states(targets, labels, given)
        return self.head(hidden, given)

    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> CacheState:
        network = self.transformer
        return CacheState(self.new_cache(labels), network.label_embedding(labels)[:, None], network.rotary[:1], given)

    def new_cache(self, labels: Tensor) -> KeyValueCache:
        """An empty cache for class labels (rows,)."""
        dtype = getattr(self.transformer, "dtype", torch.float32)  # a packed network has one
        return KeyValueCache(self.config, len(labels), labels.device, dtype)

    def observe(self, state: CacheState, group: Group, labels: Tensor) -> None:
        state.inputs = self.transformer.token_embedding(labels)

    def cache_bytes(self, rows: int, group: Group, compute: Compute) -> int:
        """As `Stage.cache_bytes`: entries of positions up to the group's own, with "groups" of the class too."""
        cache = KeyValueCache(self.config, rows, torch.device("meta"), compute.torch_dtype)
        filled = group.before + group.size + (self.config.attention == "groups")
        return sum(tensor[:, :, :filled].numel() * tensor.itemsize for tensor in (*cache.keys, *cache.values))
