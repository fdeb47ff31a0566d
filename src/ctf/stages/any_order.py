"""Any-order stages: groups of positions in any order and number of steps (LPD 2507.01957; RandAR 2412.01827)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ctf.models.config import Compute
from ctf.sampling.cost import Work
from ctf.sampling.orders import group_sizes
from ctf.sampling.settings import Order, Sampling
from ctf.stages.cached import CachedStage, CacheState
from ctf.stages.drawing import DrawPlan, Group

#: The numbers of groups that training draws from, as shares of N: LPD's 256, 128, 64, 32, 24, 20, 16, 12, 8 of 256.
GROUPS = (1, 1 / 2, 1 / 4, 1 / 8, 3 / 32, 5 / 64, 1 / 16, 3 / 64, 1 / 32)


class AnyOrder(CachedStage):
    """Labels of a group of positions given the class, the groups before, and given labels of its own positions.

    Labels of one group are drawn independently of each other. In training every image has an order of its own, every
    batch a number of groups; one model then samples in any fixed order and any number of steps.
    """

    kind, attention = "any_order", "groups"
    orders: ClassVar[tuple[Order, ...]] = ("locality", "halton", "random", "raster", "scales")

    @property
    def possible_steps(self) -> range:
        return range(1, self.num_tokens + 1)

    def training_states(
        self, targets: Tensor, labels: Tensor, given: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        share = GROUPS[int(torch.randint(len(GROUPS), ()).numpy())]  # drawn on the host
        steps = max(1, round(self.num_tokens * share))
        sizes = group_sizes(self.num_tokens, steps)
        positions = torch.rand(targets.shape, device=targets.device).argsort(1)
        hidden = self.transformer.hidden_in_groups(targets, labels, given, positions, sizes)
        return hidden, targets.gather(1, positions), None if given is None else given.gather(1, positions)

    def logits(self, tokens: Tensor, labels: Tensor, plan: DrawPlan | None = None) -> Tensor:
        targets, given = self.levels(tokens)
        groups = (plan or self.plan()).fixed_groups(self.name)
        places = torch.arange(self.num_tokens, device=tokens.device)
        positions = torch.cat([places[group.at] for group in groups])
        hidden = self.transformer.hidden_in_groups(targets, labels, given, positions, [group.size for group in groups])
        return self.head(hidden[:, positions.argsort()], given)

    def hidden(self, state: CacheState, group: Group) -> Tensor:
        network, at = self.transformer, group.at
        known, table = state.inputs.shape[1], network.rotary[1:][at]
        queries = network.queries(table, None if state.given is None else state.given[:, at])
        x = torch.cat([state.inputs, queries.expand(len(state.inputs), -1, -1)], dim=1)
        states = network.step_group(x, torch.cat([state.rotary, table]), state.cache, state.place, known)
        state.place, state.rotary = state.place + known, table
        return states

    def work(self, batch: int, sampling: Sampling, compute: Compute) -> list[Work]:
        """With the names of `Autoregressive.work`, a step that reads k positions and asks for n, with p in the cache,

            bytes = w·(W + dim·V) + 4·(2·L + 1)·dim + 2·c·L·R·kv_heads·head_dim·(p + k + n)
            operations = 2·R·(k + n)·W + 4·L·R·dim·(k·(p + k) + n·(p + k + n)) + 2·batch·n·dim·V

        The head's weight stays in float32 where it is that of members.
        """
        c, compute, rows = self.config, compute.on(self.device), batch * (1 + sampling.guided)
        cached = 2 * c.layers * rows * c.num_kv_heads * c.head_dim * compute.torch_dtype.itemsize
        head = c.dim * self.mean_outputs
        weights = self.weight_bytes(compute) + head * self.head_bytes(compute)
        place, known, steps = 0, 1, []
        for n in self.plan(sampling).sizes:
            seen = place + known
            attention = 4 * c.layers * rows * c.dim * (known * seen + n * (seen + n))
            products = 2 * rows * (known + n) * c.block_weights + 2 * batch * n * head
            steps.append(Work(weights + cached * (seen + n), products + attention))
            place, known = seen, n
        return steps
