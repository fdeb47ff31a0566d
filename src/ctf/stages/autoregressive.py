"""Autoregressive stages: labels one after another in raster order (paper, section 4.3; eqs. 4 and 9)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.models.config import Compute
from ctf.sampling.cost import Work
from ctf.sampling.guidance import guide
from ctf.sampling.settings import Sampling
from ctf.stages.cached import CachedStage


class Autoregressive(CachedStage):
    """LlamaGen's GPT: label i given the class, the labels before it, and given labels up to i."""

    kind, attention = "autoregressive", "causal"

    @property
    def possible_steps(self) -> range:
        return range(self.num_tokens, self.num_tokens + 1)

    def training_states(
        self, targets: Tensor, labels: Tensor, given: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.transformer.hidden(targets, labels, given), targets, given

    def check_kept(self, kept: Tensor) -> None:
        count = int(kept.sum())
        if not kept[:count].all():
            raise InputError(
                f"stage {self.name} is autoregressive: it continues images from their first tokens, row by row; other "
                "parts are kept by stages of kind any_order and masked"
            )

    def logits(
        self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None, kept: Tensor | None = None
    ) -> Tensor:
        self.resolved(sampling)
        if kept is not None:
            self.check_kept(kept)
        targets, given = self.levels(tokens)
        return self.head(self.transformer.hidden(targets, labels, given), given)

    def loop(
        self,
        sampling: Sampling,
        labels: Tensor,
        uniform: Tensor,
        given: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Iterator[Tensor]:
        network, cache, both = self.begin(sampling, labels)
        copies = len(both) // len(labels)
        tokens = torch.full(uniform.shape, -1, device=labels.device)
        kept = 0 if known is None else int((known[0] >= 0).sum())
        inputs = network.label_embedding(both)
        for i in range(self.num_tokens):
            here = None if given is None else given[:, i]
            if here is not None:
                inputs = inputs + network.given_embedding(here).repeat(copies, 1)
            hidden = guide(network.step(inputs, cache, i), sampling, i, self.num_tokens, i / self.num_tokens)
            if known is not None and i < kept:
                tokens[:, i] = known[:, i]
            else:
                tokens[:, i] = self.draw(hidden, here, uniform[:, i], sampling)
            yield tokens
            inputs = network.token_embedding(tokens[:, i]).repeat(copies, 1)

    def work(self, batch: int, sampling: Sampling, compute: Compute) -> list[Work]:
        """With W weights in the blocks, V outputs, L layers, R = 2·batch rows with guidance and R = batch without,
        which only the blocks see, w bytes per weight and c bytes per cached number, step i (from 1) takes

            bytes = w·(W + dim·V) + 4·(2·L + 1)·dim + 2·c·L·R·kv_heads·head_dim·i
            operations = 2·R·W + 4·L·R·dim·i + 2·batch·dim·V

        The second term of the bytes are the norms, the third is the filled part of the cache, keys and values. The
        head's weight stays in float32 where it is that of members.
        """
        c, compute = self.config, compute.on(self.device)
        layers, dim, rows = c.layers, c.dim, batch * (1 + sampling.guided)
        cached = 2 * layers * rows * c.num_kv_heads * c.head_dim * compute.torch_dtype.itemsize
        head = dim * self.mean_outputs
        weights = self.weight_bytes(compute) + head * self.head_bytes(compute)
        products = 2 * rows * c.block_weights + 2 * batch * head
        return [Work(weights + cached * i, products + 4 * layers * rows * dim * i) for i in range(1, c.num_tokens + 1)]
