"""Autoregressive stages: labels one after another in raster order (paper, section 4.3; eqs. 4 and 9)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from ctf.models.cache import KeyValueCache
from ctf.models.config import Compute
from ctf.sampling.cost import StageMemory, Work
from ctf.sampling.cuda_graph import RecordedLoop
from ctf.sampling.draw import draw
from ctf.sampling.guidance import both_branches, guide
from ctf.sampling.random import Random
from ctf.sampling.settings import Sampling
from ctf.stages.stage import OnStep
from ctf.stages.transformer_stage import TransformerStage


class Autoregressive(TransformerStage):
    """LlamaGen's GPT: label i given the class, the labels before it, and given labels up to i."""

    kind, attention = "autoregressive", "causal"

    @classmethod
    def inputs(cls, vocabulary: int, given: int) -> int:
        return vocabulary

    def logits(self, tokens: Tensor, labels: Tensor) -> Tensor:
        targets, given = self.levels(tokens)
        return self.head(self.transformer.hidden(targets, labels, given), given)

    def num_steps(self, sampling: Sampling) -> int:
        return self.num_tokens

    def steps(self, labels: Tensor, random: Random, sampling: Sampling, given: Tensor | None) -> Iterator[Tensor]:
        uniform = random.uniform(self.num_tokens).to(labels.device)
        return self._loop(sampling, labels, uniform, given)

    def _loop(
        self, sampling: Sampling, labels: Tensor, uniform: Tensor, given: Tensor | None = None
    ) -> Iterator[Tensor]:
        """The loop itself: everything stays on the device, and no shape depends on a value.

        Both guidance branches are one batch: labels int64 (B,) and uniform numbers float64 (B, n ≤ N).
        """
        network = self.transformer
        both = both_branches(labels, self.num_classes, sampling.cfg_scale)
        copies = len(both) // len(labels)
        dtype = getattr(network, "dtype", torch.float32)  # a packed network has one
        cache = KeyValueCache(self.config, len(both), labels.device, dtype)
        tokens = torch.full((len(labels), self.num_tokens), -1, device=labels.device)
        inputs = network.label_embedding(both)
        for i in range(uniform.shape[1]):
            here = None if given is None else given[:, i]
            if here is not None:
                inputs = inputs + network.given_embedding(here).repeat(copies, 1)
            hidden = guide(network.step(inputs, cache, i), sampling.cfg_scale)
            drawn = draw(self.head(hidden, here), uniform[:, i], sampling)
            if self.members is not None and here is not None:
                drawn = self.members.labels(here, drawn)
            tokens[:, i] = drawn
            yield tokens
            inputs = network.token_embedding(drawn).repeat(copies, 1)

    def pack(self, compute: Compute) -> Autoregressive:
        packed = super().pack(compute)
        assert isinstance(packed, Autoregressive)
        if packed is not self:
            packed._recorded, packed._recording = None, threading.Lock()
        return packed

    #: Of a packed stage on a GPU: the loop for some settings, and who may use its buffers.
    _recorded: tuple[Sampling, RecordedLoop] | None
    _recording: threading.Lock

    def _draw_all(
        self, labels: Tensor, random: Random, sampling: Sampling, given: Tensor | None, on_step: OnStep | None
    ) -> Tensor:
        if not self.packed or labels.device.type != "cuda" or on_step is not None or self.members is not None:
            return super()._draw_all(labels, random, sampling, given, on_step)
        inputs = [labels, random.uniform(self.num_tokens).to(labels.device), *([] if given is None else [given])]

        def run(labels: Tensor, uniform: Tensor, *given: Tensor) -> Tensor:
            return deque(self._loop(sampling, labels, uniform, *given), maxlen=1)[0]

        with self._recording:  # the buffers of a recording belong to one caller at a time
            recorded = self._recorded
            if recorded is None or recorded[0] != sampling or len(recorded[1].inputs[0]) < len(labels):
                self._recorded = None  # its memory goes first
                recorded = sampling, RecordedLoop(run, lambda y, u, *g: run(y, u[:, :2], *g), inputs)
                self._recorded = recorded
            return recorded[1](inputs)

    def memory(self, batch: int, sampling: Sampling, compute: Compute) -> StageMemory:
        """The cache, and what a draw keeps: logits, probabilities (float32) and their sums (float64)."""
        c, size = self.config, compute.on(self.device).torch_dtype.itemsize
        rows = batch * (1 + sampling.guided)
        cache = 2 * c.layers * rows * c.num_kv_heads * c.num_tokens * c.head_dim * size
        outputs = self.vocabulary if self.members is None else max(self.members.sizes)
        activations = cache + batch * outputs * (size + 4 + 4 + 8)
        return StageMemory(self.packed_memory(compute), activations, stays=self.device.type == "cuda")

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
        weights = c.block_weights * compute.weight_bytes + head * self.head_bytes(compute) + self.norm_bytes
        products = 2 * rows * c.block_weights + 2 * batch * head
        return [Work(weights + cached * i, products + 4 * layers * rows * dim * i) for i in range(1, c.num_tokens + 1)]
