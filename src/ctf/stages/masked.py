"""Masked stages: hidden labels from known ones, in rounds (MaskGIT 2202.04200; paper, section 4.3, eq. 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ctf.device import send
from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models.config import Compute, TransformerConfig
from ctf.sampling.cost import StageMemory, Work
from ctf.sampling.settings import Order, Sampling
from ctf.stages.drawing import DrawPlan, Group
from ctf.stages.transformer_stage import TransformerStage

#: Rows that go through the network together: enough to keep any device busy, few enough that their activations stay
#: below the cache of a large batch.
TOGETHER = 128


@dataclass(frozen=True)
class MaskedState:
    """Of one call: class labels (rows,), given ones (rows, N) or None, and those known so far (rows, N), else −1."""

    labels: Tensor
    given: Tensor | None
    known: Tensor


class Masked(TransformerStage):
    """Full attention over known and hidden labels: all hidden ones are predicted, and each round keeps some.

    What it was trained for is in its vocabulary of inputs. For one round, in which every label is hidden, it reads
    none; for any number of rounds it reads the labels of its level and, as one more, the word for a hidden one.
    """

    kind, attention = "masked", "full"
    orders: ClassVar[tuple[Order, ...]] = ("halton", "random", "locality", "raster", "scales", "confidence")

    @classmethod
    def configure(
        cls,
        size: str,
        *,
        vocabulary: int,
        given: int,
        layout: Layout,
        num_classes: int,
        rounds: Literal["one", "any"] | None = None,
        **settings: Any,
    ) -> TransformerConfig:
        """As `Stage.configure`; `rounds` is what it is trained for: one where labels are given (the paper's stage 2),
        else any."""
        if rounds not in (None, "one", "any"):
            raise InputError(f"rounds {rounds!r} does not exist: choose one or any")
        once = rounds == "one" or (rounds is None and given > 0)
        # Hidden labels are all alike: where nothing else is read, one vector stands for them.
        inputs = (0 if given else 1) if once else vocabulary + 1
        facts = {"layout": layout, "num_classes": num_classes, "input_vocab": inputs, **settings}
        return super().configure(size, vocabulary=vocabulary, given=given, **facts)

    @property
    def once(self) -> bool:
        """Whether it was trained for one round only."""
        return self.config.input_vocab <= 1

    @property
    def possible_steps(self) -> range:
        return range(1, 2 if self.once else self.num_tokens + 1)

    def training_states(
        self, targets: Tensor, labels: Tensor, given: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.once:
            return self._hidden(torch.full_like(targets, -1), labels, given), targets, given
        # MaskGIT's share of hidden labels, cos(πu / 2), 2/π of them on average; on the host, which then knows how many.
        share = torch.cos(math.pi / 2 * torch.rand(len(targets), 1))
        counts = (share * self.num_tokens).ceil().clamp(min=1)
        rank = torch.rand(targets.shape, device=targets.device).argsort(1).argsort(1)
        hide = rank < send(counts, targets.device)
        where = torch.nonzero_static(hide.flatten(), size=int(counts.numpy().sum())).squeeze(1)
        states = self._hidden(targets.masked_fill(hide, -1), labels, given)
        hidden, targets = states.flatten(0, 1).index_select(0, where), targets.flatten()[where]
        return hidden, targets, None if given is None else given.flatten()[where]

    def logits(self, tokens: Tensor, labels: Tensor, plan: DrawPlan | None = None) -> Tensor:
        targets, given = self.levels(tokens)
        known, result = torch.full_like(targets, -1), None
        for group in (plan or self.plan()).fixed_groups(self.name):
            hidden = self._hidden(known, labels, given)[:, group.at]
            logits = self.head(hidden, None if given is None else given[:, group.at])
            if result is None:  # once, and filled in place: it may be the largest tensor by far
                result = logits.new_empty(*targets.shape, logits.shape[-1])
            result[:, group.at] = logits
            known[:, group.at] = targets[:, group.at]
        assert result is not None
        return result

    def _hidden(self, known: Tensor, labels: Tensor, given: Tensor | None) -> Tensor:
        """States (B, N, dim) from labels (B, N), −1 where hidden; trained for one round it reads none of them."""
        inputs = None
        if self.once:
            known = torch.full_like(known, -1)
        if self.config.input_vocab:
            inputs = known.where(known >= 0, self.config.input_vocab - 1)
        return self.transformer.hidden(inputs, labels, given)

    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> MaskedState:
        return MaskedState(labels, given, torch.full((len(labels), self.num_tokens), -1, device=labels.device))

    def hidden(self, state: MaskedState, group: Group) -> Tensor:
        givens = repeat(None) if state.given is None else state.given.split(TOGETHER)
        parts = zip(state.known.split(TOGETHER), state.labels.split(TOGETHER), givens, strict=False)
        return torch.cat([self._hidden(*part)[:, group.at] for part in parts])

    def observe(self, state: MaskedState, group: Group, labels: Tensor) -> None:
        state.known[:, group.at] = labels

    def memory(self, batch: int, sampling: Sampling, compute: Compute) -> StageMemory:
        """In a feed-forward layer the residual stream, both halves, and their product's two factors, or a draw."""
        c, size = self.config, compute.on(self.device).torch_dtype.itemsize
        positions = min(batch * (1 + sampling.guided), TOGETHER) * (c.num_tokens + 1)
        states = positions * (4 * c.dim + 4 * c.ffn_dim * size)
        drawn = self.drawing_memory(batch, max(self.drawn(sampling)), compute)
        return StageMemory(self.packed_memory(compute), max(states, drawn), stays=self.device.type == "cuda")

    def work(self, batch: int, sampling: Sampling, compute: Compute) -> list[Work]:
        """A pass for each round, the head for the n labels that it draws, over the members of each position's cluster.
        With the names of `Autoregressive.work`,

            bytes = w·W + 4·(2·L + 1)·dim + 4·dim·K
            operations = batch · (that of the blocks in `forward_operations`, twice with guidance, + 2·n·dim·outputs)

        The head's weight stays in float32 where it is that of members.
        """
        c, compute = self.config, compute.on(self.device)
        weights = self.weight_bytes(compute) + c.dim * c.output_vocab * self.head_bytes(compute)
        head = 2 * c.dim * self.mean_outputs
        blocks = (1 + sampling.guided) * (self.forward_operations() - c.num_tokens * head)
        return [Work(weights, batch * (blocks + n * head)) for n in self.drawn(sampling)]

    def drawn(self, sampling: Sampling) -> list[int]:
        """Of how many labels of an image each round needs logits: of those it settles, or by confidence of all."""
        return [group.size for group in self.plan(sampling).drawn]
