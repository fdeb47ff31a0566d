"""Any-order stages: groups of positions in any order and number of steps (LPD 2507.01957; RandAR 2412.01827)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ctf.sampling.orders import group_sizes
from ctf.sampling.settings import Order
from ctf.stages.cached import CachedStage, CacheState
from ctf.stages.drawing import DrawPlan, Group
from ctf.stages.transformer_stage import TrainingStates

#: Numbers of groups in training, as shares of N: LPD's 256, 128, 64, 32, 24, 20, 16, 12 and 8 groups of 256 positions.
GROUP_SHARES = (1, 1 / 2, 1 / 4, 1 / 8, 3 / 32, 5 / 64, 1 / 16, 3 / 64, 1 / 32)


class AnyOrder(CachedStage):
    """Labels of a group of positions from the class, the groups before, and given labels of the group's positions.

    Labels of one group are sampled independently of each other. In training every image has its own random order and
    every batch a random number of groups; one model then samples in any fixed order and any number of steps.
    """

    kind, attention = "any_order", "groups"
    orders: ClassVar[tuple[Order, ...]] = ("locality", "halton", "random", "raster", "scales")

    @property
    def possible_steps(self) -> range:
        return range(1, self.num_tokens + 1)

    def training_states(self, targets: Tensor, labels: Tensor, given: Tensor | None) -> TrainingStates:
        share = GROUP_SHARES[int(torch.randint(len(GROUP_SHARES), ()).numpy())]  # on the CPU: a GPU would be waited for
        steps = max(1, round(self.num_tokens * share))
        sizes = group_sizes(self.num_tokens, steps)
        positions = torch.rand(targets.shape, device=targets.device).argsort(1)  # (B, N), an order for each image
        hidden = self.transformer.hidden_in_groups(targets, labels, given, positions, sizes)
        return hidden, targets.gather(1, positions), None if given is None else given.gather(1, positions)

    def logits(self, tokens: Tensor, labels: Tensor, plan: DrawPlan | None = None) -> Tensor:
        targets, given = self.levels(tokens)
        groups = (plan or self.plan()).fixed_groups(self.name)
        raster = torch.arange(self.num_tokens, device=tokens.device)
        positions = torch.cat([raster[group.at] for group in groups])  # (N,), in the order of the plan
        hidden = self.transformer.hidden_in_groups(targets, labels, given, positions, [group.size for group in groups])
        return self.head(hidden[:, positions.argsort()], given)  # back in raster order

    def hidden(self, state: CacheState, group: Group) -> Tensor:
        network, at = self.transformer, group.at
        num_inputs, table = state.inputs.shape[1], network.rotary[1:][at]  # row 0 is the class's
        queries = network.queries(at, None if state.given is None else state.given[:, at])
        x = torch.cat([state.inputs, queries.expand(len(state.inputs), -1, -1)], dim=1)  # (rows, num_inputs + n, dim)
        # The inputs take the cache entries that the queries of their positions had.
        start = 1 + group.before - num_inputs
        states = network.step_group(x, torch.cat([state.rotary, table]), state.cache, start, num_inputs)
        state.rotary = table
        return states

    def observe(self, state: CacheState, group: Group, labels: Tensor) -> None:
        state.inputs = self.transformer.embed_tokens(labels, group.at)
