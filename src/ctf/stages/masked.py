"""Masked stages: hidden labels from known ones, in rounds (MaskGIT 2202.04200; paper, section 4.2.2, eq. 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import repeat
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from ctf.device import send
from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models.config import NetworkConfig
from ctf.sampling.settings import Order
from ctf.stages.drawing import DrawPlan, Group
from ctf.stages.settings import MaskedSettings, Rounds
from ctf.stages.transformer_stage import TrainingStates, TransformerStage

#: Rows that go through the network at once: enough to keep any device busy, so few that their activations take less
#: memory than the key-value cache of a stage 1 with a large batch.
TOGETHER = 128


@dataclass(frozen=True)
class MaskedState:
    """The state of one call.

    Attributes:
        labels: class labels (rows,).
        given: given labels (rows, N), or None.
        known: labels known so far (rows, N), −1 elsewhere.
    """

    labels: Tensor
    given: Tensor | None
    known: Tensor


class Masked(TransformerStage):
    """Full attention over known and hidden labels: all hidden ones are predicted, and each round keeps some.

    The size of its input vocabulary says what it was trained for. For one round, in which every label is hidden, it
    reads no labels. For any number of rounds it reads the labels of its level and one mask token more. For a round for
    each scale it has one mask token for each scale.
    """

    kind, attention, Settings = "masked", "full", MaskedSettings
    orders: ClassVar[tuple[Order, ...]] = ("halton", "random", "locality", "raster", "scales", "confidence")

    @classmethod
    def configure(
        cls, size: str, *, vocabulary: int, given: int, layout: Layout, rounds: Rounds | None = None, **settings: Any
    ) -> NetworkConfig:
        """As `Stage.configure`. `rounds` defaults to "one" where labels are given, as in the paper, else to "any"."""
        if rounds not in (None, *get_args(Rounds)):
            raise InputError(f"rounds {rounds!r} does not exist: choose one, any or scales")
        if rounds == "scales" and len(layout) == 1:
            raise InputError(f"rounds scales: a layout of {layout} has one scale: choose one or any")
        once = rounds == "one" or (rounds is None and given > 0)
        # In one round without given labels every input is the same mask token; given labels take its place.
        inputs = (0 if given else 1) if once else vocabulary + (len(layout) if rounds == "scales" else 1)
        settings = {"input_vocab": inputs} | settings
        return super().configure(size, vocabulary=vocabulary, given=given, layout=layout, **settings)

    @property
    def once(self) -> bool:
        """Whether it was trained for one round, in which all labels are hidden."""
        return self.config.input_vocab <= 1

    @property
    def by_scales(self) -> bool:  # type: ignore[override]
        """Whether it was trained for a round for each scale."""
        return self.config.hidden_by_scale

    @property
    def own_settings(self) -> dict[str, Any]:
        return {"rounds": "scales" if self.by_scales else "one" if self.once else "any"}

    @property
    def possible_steps(self) -> range:
        return super().possible_steps if self.by_scales or self.once else range(1, self.num_tokens + 1)

    def training_states(self, targets: Tensor, labels: Tensor, given: Tensor | None) -> TrainingStates:
        if self.once:
            return self._hidden(targets, labels, given), targets, given
        hide, count = self._hiding(targets)  # (B, N), and their number, so that no size depends on values on a GPU
        where = torch.nonzero_static(hide.flatten(), size=count).squeeze(1)
        states = self._hidden(targets.masked_fill(hide, -1), labels, given)
        hidden, targets = states.flatten(0, 1).index_select(0, where), targets.flatten()[where]
        return hidden, targets, None if given is None else given.flatten()[where]

    def _hiding(self, targets: Tensor) -> tuple[Tensor, int]:
        """Labels to hide in a training step, bool (B, N), and their number, which the CPU chooses and so knows."""
        if self.by_scales:  # a uniform scale and those behind it
            first = torch.randint(len(self.layout), (len(targets), 1))
            hide = torch.tensor([scale for scale, _, _ in self.layout.coordinates]) >= first
            return send(hide, targets.device), int(hide.sum())
        # MaskGIT's share of hidden labels, γ(u) = cos(πu / 2) with u uniform: 2/π on average.
        share = torch.cos(math.pi / 2 * torch.rand(len(targets), 1))
        counts = (share * self.num_tokens).ceil().clamp(min=1)
        rank = torch.rand(targets.shape, device=targets.device).argsort(1).argsort(1)
        return rank < send(counts, targets.device), int(counts.numpy().sum())

    def logits(self, tokens: Tensor, labels: Tensor, plan: DrawPlan | None = None) -> Tensor:
        targets, given = self.levels(tokens)
        known, result = torch.full_like(targets, -1), None
        for group in (plan or self.plan()).fixed_groups(self.name):
            # P(Tᵢ | C, labels known so far); eq. 10 in one round
            hidden = self._hidden(known, labels, given)[:, group.at]
            logits = self.head(hidden, None if given is None else given[:, group.at])
            if result is None:  # allocated once and filled in place: it may be the largest tensor by far
                result = logits.new_empty(*targets.shape, logits.shape[-1])
            result[:, group.at] = logits
            known[:, group.at] = targets[:, group.at]
        assert result is not None
        return result

    def _hidden(self, known: Tensor, labels: Tensor, given: Tensor | None) -> Tensor:
        """States (B, N, dim) from labels (B, N), −1 where hidden; a stage trained for one round reads none of them."""
        inputs = None
        if self.config.input_vocab:
            inputs = torch.zeros_like(known) if self.once else known.where(known >= 0, self.config.input_vocab - 1)
        return self.transformer.hidden(inputs, labels, given)

    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> MaskedState:
        return MaskedState(labels, given, torch.full((len(labels), self.num_tokens), -1, device=labels.device))

    def hidden(self, state: MaskedState, group: Group) -> Tensor:
        givens = repeat(None) if state.given is None else state.given.split(TOGETHER)
        parts = zip(state.known.split(TOGETHER), state.labels.split(TOGETHER), givens, strict=False)
        return torch.cat([self._hidden(*part)[:, group.at] for part in parts])

    def observe(self, state: MaskedState, group: Group, labels: Tensor) -> None:
        state.known[:, group.at] = labels
