"""Masked stages: hidden labels from known ones, in rounds (MaskGIT 2202.04200; paper, section 4.3, eq. 10)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ctf.device import send
from ctf.errors import InputError
from ctf.models.config import Compute, TransformerConfig
from ctf.sampling.cost import StageMemory, Work
from ctf.sampling.draw import draw
from ctf.sampling.guidance import both_branches, guide
from ctf.sampling.orders import group_sizes
from ctf.sampling.random import Random
from ctf.sampling.settings import Order, Sampling
from ctf.stages.transformer_stage import TransformerStage

#: Images that go through the network together: enough to keep any device busy, few enough that their activations
#: stay below the cache of a large batch.
TOGETHER = 64

#: Of the Gumbel noise on the confidence in the first round; it falls linearly to 0 in the last (MaskGIT's 4.5).
NOISE = 4.5


class Masked(TransformerStage):
    """Full attention over known and hidden labels: all hidden ones are predicted, and each round keeps some.

    What it was trained for is in its vocabulary of inputs. For one round, in which every label is hidden, it reads
    none; for any number of rounds it reads the labels of its level and, as one more, the word for a hidden one.
    """

    kind, attention = "masked", "full"
    orders: ClassVar[tuple[Order, ...]] = ("halton", "random", "locality", "raster", "confidence")

    @classmethod
    def configure(
        cls,
        size: str,
        *,
        vocabulary: int,
        given: int,
        grid: tuple[int, int],
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
        facts = {"grid": grid, "num_classes": num_classes, "input_vocab": inputs, **settings}
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

    def logits(
        self, tokens: Tensor, labels: Tensor, sampling: Sampling | None = None, kept: Tensor | None = None
    ) -> Tensor:
        targets, given = self.levels(tokens)
        known, result = torch.full_like(targets, -1), None
        first, drawn = self.ordered(sampling or self.sampling, kept)
        for group in first + drawn:
            hidden = self._hidden(known, labels, given)[:, group]
            logits = self.head(hidden, None if given is None else given[:, group])
            if result is None:  # once, and filled in place: it may be the largest tensor by far
                result = logits.new_empty(*targets.shape, logits.shape[-1])
            result[:, group] = logits
            known[:, group] = targets[:, group]
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

    def steps(
        self, labels: Tensor, random: Random, sampling: Sampling, given: Tensor | None, known: Tensor | None = None
    ) -> Iterator[Tensor]:
        kept = None if known is None else known[0] >= 0
        tokens = (
            torch.full((len(labels), self.num_tokens), -1, device=labels.device) if known is None else known.clone()
        )
        count = 0 if kept is None else int(kept.sum())
        if sampling.order == "confidence":
            yield from self._most_confident(labels, random, sampling, given, tokens, count)
            return
        uniform = send(random.uniform(self.num_tokens), labels.device)
        first, drawn = self.ordered(sampling, kept)
        for step, group in enumerate(drawn, start=len(first)):
            at = step, len(first + drawn), count / self.num_tokens
            for part, states in self._parts(tokens, labels, sampling, given, at):
                here = None if given is None else given[part][:, group]
                tokens[part, group] = self.draw(states[:, group], here, uniform[part][:, group], sampling)
            count += len(group)
            yield tokens

    def _parts(
        self, tokens: Tensor, labels: Tensor, sampling: Sampling, given: Tensor | None, at: tuple[int, int, float]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Guided states (b, N, dim), some images at a time, from the labels so far; `at` as `guide` takes it."""
        copies = 1 + sampling.guided
        for start in range(0, len(labels), TOGETHER):
            part = slice(start, start + TOGETHER)
            both = both_branches(labels[part], self.num_classes, sampling)
            here = None if given is None else given[part].repeat(copies, 1)
            yield part, guide(self._hidden(tokens[part].repeat(copies, 1), both, here), sampling, *at)

    def _most_confident(
        self, labels: Tensor, random: Random, sampling: Sampling, given: Tensor | None, tokens: Tensor, known: int
    ) -> Iterator[Tensor]:
        """Draw all that is hidden, and keep the draws that were most probable, with noise that fades (MaskGIT).

        Begins with `tokens` (B, N), of which `known` of each image are not hidden.
        """
        hidden = self.num_tokens - known
        sizes = group_sizes(hidden, min(sampling.steps or 1, hidden), sampling.schedule) if hidden else []
        for step, size in enumerate(sizes):
            uniform = send(random.uniform(self.num_tokens, step), labels.device)
            gumbel = -(-random.uniform(self.num_tokens, len(sizes) + step).clamp(min=2.0**-33).log()).log()
            noise = NOISE * (1 - (step + 1) / len(sizes)) * send(gumbel.float(), labels.device)
            at = step, len(sizes), (known + sum(sizes[:step])) / self.num_tokens
            for part, states in self._parts(tokens, labels, sampling, given, at):
                for image, state in zip(range(part.start, len(labels)), states, strict=False):
                    here = None if given is None else given[image]
                    logits = self.head(state, here)
                    choice = draw(logits, uniform[image], sampling)
                    confidence = logits.log_softmax(-1).gather(1, choice[:, None]).squeeze(1) + noise[image]
                    keep = confidence.masked_fill(tokens[image] >= 0, -torch.inf).topk(size).indices
                    if self.members is not None and here is not None:
                        choice = self.members.labels(here, choice)
                    tokens[image, keep] = choice[keep]
            yield tokens

    def memory(self, batch: int, sampling: Sampling, compute: Compute) -> StageMemory:
        """In a feed-forward layer the residual stream, both halves, and their product's two factors, or a draw; the
        head's rows sorted by cluster."""
        c, size = self.config, compute.on(self.device).torch_dtype.itemsize
        positions = min(batch, TOGETHER) * (1 + sampling.guided) * (c.num_tokens + 1)
        states = positions * (4 * c.dim + 4 * c.ffn_dim * size)
        at_once = 1 if self.resolved(sampling).order == "confidence" else batch
        drawn = self.drawing_memory(at_once, max(self.drawn(sampling)), compute)
        activations = max(states, drawn) + 4 * c.output_vocab * c.dim
        return StageMemory(self.packed_memory(compute), activations, stays=self.device.type == "cuda")

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
        """How many labels of an image each round draws: those it keeps, or by confidence all."""
        sizes = self.group_sizes(sampling)
        return [self.num_tokens] * len(sizes) if self.resolved(sampling).order == "confidence" else sizes
