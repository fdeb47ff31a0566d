"""Masked stages: all labels at once, from hidden ones (paper, sections 4.2.2 and 4.3; eq. 10)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ctf.models.config import Compute
from ctf.sampling.cost import StageMemory, Work
from ctf.sampling.draw import draw
from ctf.sampling.guidance import both_branches, guide
from ctf.sampling.random import Random
from ctf.sampling.settings import Sampling
from ctf.stages.transformer_stage import TransformerStage

#: Images that go through the network together: enough to keep any device busy, few enough that their activations
#: stay below the cache of a large batch.
TOGETHER = 64


class Masked(TransformerStage):
    """Full attention, one round: every label is hidden, and all are predicted from the class and the given labels."""

    kind, attention = "masked", "full"

    @classmethod
    def inputs(cls, vocabulary: int, given: int) -> int:
        return 0 if given else 1  # hidden labels are all alike: where nothing is given, one vector is read

    def logits(self, tokens: Tensor, labels: Tensor) -> Tensor:
        _, given = self.levels(tokens)
        return self.head(self._hidden(labels, given), given)

    def _hidden(self, labels: Tensor, given: Tensor | None) -> Tensor:
        hidden_labels = None
        if self.config.input_vocab:
            hidden_labels = torch.zeros(len(labels), self.num_tokens, dtype=torch.int64, device=labels.device)
        return self.transformer.hidden(hidden_labels, labels, given)

    def steps(self, labels: Tensor, random: Random, sampling: Sampling, given: Tensor | None) -> Iterator[Tensor]:
        uniform = random.uniform(self.num_tokens).to(labels.device)
        copies = 1 + sampling.guided
        drawn = []
        for start in range(0, len(labels), TOGETHER):
            part = slice(start, start + TOGETHER)
            here = None if given is None else given[part]
            both = both_branches(labels[part], self.num_classes, sampling.cfg_scale)
            states = self._hidden(both, None if here is None else here.repeat(copies, 1))
            states = guide(states, sampling.cfg_scale)  # (b, N, dim)
            if self.members is not None and here is not None:
                drawn.append(self.members.labels(here, draw(self.head(states, here), uniform[part], sampling)))
            else:  # all logits of one image at a time: of a whole batch they would be the largest tensor by far
                images = zip(states, uniform[part], strict=True)
                drawn += [draw(self.head(h, None), u, sampling)[None] for h, u in images]
        yield torch.cat(drawn)

    def memory(self, batch: int, sampling: Sampling, compute: Compute) -> StageMemory:
        """In a feed-forward layer the residual stream, both halves, and their product's two factors; the head's rows
        sorted by cluster."""
        c, size = self.config, compute.on(self.device).torch_dtype.itemsize
        positions = min(batch, TOGETHER) * (1 + sampling.guided) * (c.num_tokens + 1)
        activations = positions * (4 * c.dim + 4 * c.ffn_dim * size) + 4 * c.output_vocab * c.dim
        return StageMemory(self.packed_memory(compute), activations)

    def work(self, batch: int, sampling: Sampling, compute: Compute) -> list[Work]:
        """One pass, the head over the members of each position's cluster. With the names of `Autoregressive.work`,

            bytes = w·W + 4·(2·L + 1)·dim + 4·dim·K
            operations = batch · `forward_operations`, twice that in the blocks with guidance

        The head's weight stays in float32 where it is that of members.
        """
        c, compute = self.config, compute.on(self.device)
        head_weights = c.dim * c.output_vocab * self.head_bytes(compute)
        weights = c.block_weights * compute.weight_bytes + self.norm_bytes + head_weights
        head = 2 * c.num_tokens * c.dim * self.mean_outputs
        blocks = self.forward_operations() - head
        return [Work(weights, batch * ((1 + sampling.guided) * blocks + head))]
