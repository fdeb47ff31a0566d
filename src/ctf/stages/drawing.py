"""The one generation loop: a stage's labels, one group of positions after another.

It owns what types of stages have in common: guidance, kept labels, samplers, random numbers, the limit on logits and
the recorded graph. A type of stage supplies states from the labels so far (`begin`, `hidden`, `observe`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ctf.device import send
from ctf.errors import InputError
from ctf.layout import Layout
from ctf.models.cluster_head import ClusterMembers
from ctf.sampling.orders import group_sizes, order_groups
from ctf.sampling.random import Random
from ctf.sampling.samplers import Independent, Sampler, Step, find_sampler
from ctf.sampling.settings import Sampling

OnStep = Callable[[int, Tensor], None]
#: Most logits that are computed at once: those of a whole batch would be the largest tensor by far.
LOGITS = 1 << 22


@dataclass(frozen=True)
class Group:
    """Positions that a step draws, or that are kept.

    Attributes:
        at: the positions, int64 (size,) on the stage's device, or a slice where they are contiguous.
        size: their number.
        count: how many of them get a label in this step: all, except in the order confidence and among kept labels.
        number: the group's number, from 0.
        before: number of positions with a label before this group.
        kept: whether their labels are known from the start.
    """

    at: Tensor | slice
    size: int
    count: int
    number: int
    before: int
    kept: bool


@dataclass(frozen=True)
class DrawPlan:
    """The groups in which a stage draws: resolved once, for any number of images.

    Attributes:
        sampling: settings with steps and order filled in.
        groups: in the order of drawing, kept ones first.
    """

    sampling: Sampling
    groups: tuple[Group, ...]

    @property
    def drawn(self) -> tuple[Group, ...]:
        """The groups that are drawn, one in each step."""
        return tuple(group for group in self.groups if not group.kept)

    def fixed_groups(self, stage: str) -> tuple[Group, ...]:
        """`groups`, which must not depend on sampled labels. Raises InputError, naming `stage`, if they do."""
        if self.sampling.order == "confidence":
            raise InputError(
                f"stage {stage}: the order confidence depends on what is drawn, so the likelihood of an image is "
                "not known: choose another"
            )
        if any(group.count < group.size for group in self.groups):
            raise InputError(
                f"stage {stage} takes kept labels when their scale comes, so the likelihood given all of them is not "
                "known: leave them out"
            )
        return self.groups


class Drawable(Protocol):
    """The part of a stage that the loop uses; `Stage` documents it."""

    cached: ClassVar[bool]
    recorded: Any
    members: ClusterMembers | None

    @property
    def num_tokens(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def begin(self, labels: Tensor, given: Tensor | None, plan: DrawPlan) -> Any: ...
    def hidden(self, state: Any, group: Group) -> Tensor: ...
    def head(self, hidden: Tensor, given: Tensor | None) -> Tensor: ...
    def of_members(self, logits: Tensor, given: Tensor | None) -> Tensor: ...
    def observe(self, state: Any, group: Group, labels: Tensor) -> None: ...


@lru_cache
@torch.inference_mode(False)  # the cache outlives the call, and training may use these tensors
def plan_groups(
    sampling: Sampling, layout: Layout, device: torch.device, kept: tuple[bool, ...] | None = None
) -> tuple[Group, ...]:
    """The groups of a resolved `sampling`. Kept positions, N flags, come first, in the same order."""
    total, order = layout.num_tokens, sampling.order
    known = torch.tensor(kept or [False] * total)
    free, steps = total - int(known.sum()), sampling.steps or 1
    if order is None or order == "confidence":  # every step covers all positions; the sampler chooses among them
        sizes = group_sizes(free, min(steps, free), sampling.schedule) if free else []
        first = [torch.arange(total)[known]]
        drawn = [(torch.arange(total), size) for size in sizes]
    else:
        each = layout.sizes if order == "scales" else tuple(group_sizes(total, steps, sampling.schedule))
        groups = order_groups(order, layout, each, sampling.order_seed)
        first = [group[known[group]] for group in groups]
        drawn = [(positions, len(positions)) for positions in (group[~known[group]] for group in groups)]
    found: list[Group] = []
    before = 0
    for positions, count in [*((positions, len(positions)) for positions in first), *drawn]:
        if count:
            is_kept = before < total - free
            found.append(Group(_index(positions, device), len(positions), count, len(found), before, is_kept))
            before += count
    return tuple(found)


def scale_groups(layout: Layout, kept: Tensor | None = None) -> tuple[Group, ...]:
    """A group for each scale. Labels at `kept`, bool (N,), are taken over when their scale is drawn."""
    free = torch.ones(layout.num_tokens) if kept is None else (~kept).cpu()
    return tuple(
        Group(at, at.stop - at.start, int(free[at].sum()), scale, at.start, kept=False)
        for scale, at in enumerate(layout.slices)
    )


def _index(positions: Tensor, device: torch.device) -> Tensor | slice:
    if bool((positions.diff() == 1).all()):
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return send(positions, device)


@torch.no_grad()
def draw_steps(
    stage: Drawable,
    labels: Tensor,
    uniform: Callable[[int], Tensor],
    plan: DrawPlan,
    given: Tensor | None = None,
    known: Tensor | None = None,
) -> Iterator[Tensor]:
    """Draw group after group; yields the labels so far after each, int64 (B, N), −1 where unknown.

    Args:
        stage: the stage; `Stage.draw` has checked the other arguments.
        labels: class labels, int64 (B,).
        uniform: stream → float64 (B, N) in [0, 1), on the stage's device.
        plan: the stage's plan for these known labels.
        given, known: int64 (B, N), as `Stage.generate` takes them.
    """
    sampling, sampler, copies = plan.sampling, find_sampler(plan.sampling), 1 + plan.sampling.guided
    steps = sampling.steps
    assert steps is not None, "a plan is of resolved settings"
    rows = None if given is None else given.repeat(copies, 1)
    branches = torch.cat([labels, torch.full_like(labels, stage.num_classes)]) if sampling.guided else labels
    state = stage.begin(branches, rows, plan)
    tokens = torch.full((len(labels), stage.num_tokens), -1, device=labels.device) if known is None else known.clone()
    for group in plan.groups:
        if group.kept:
            if stage.cached:  # later groups attend to kept positions through the cache
                stage.hidden(state, group)
        else:
            states = stage.hidden(state, group)  # (copies · B, n, dim)
            if sampling.guided:
                step = steps - (len(plan.groups) - group.number)  # those that are kept as a whole count as the first
                states = guide(states, sampling.cfg_scale_at(step, steps, group.before / stage.num_tokens))
            drawn = _draw(stage, states, plan, group, sampler, uniform, tokens, given)
            before = tokens[:, group.at]
            tokens[:, group.at] = drawn if group.count == group.size else drawn.where(before < 0, before)
            yield tokens
        stage.observe(state, group, tokens[:, group.at].repeat(copies, 1))


def guide(hidden: Tensor, scale: float) -> Tensor:
    """uncond + scale · (cond − uncond) on the states before the head: (2B, …), the conditional ones first → (B, …).

    The head is linear, so guiding its input is guiding its output, at half the head's cost and without
    the -inf of logits outside a cluster.
    """
    cond, uncond = hidden.chunk(2)
    return uncond + scale * (cond - uncond)


def _draw(
    stage: Drawable,
    hidden: Tensor,
    plan: DrawPlan,
    group: Group,
    sampler: Sampler,
    uniform: Callable[[int], Tensor],
    tokens: Tensor,
    given: Tensor | None,
) -> Tensor:
    """Labels (B, n) of a group from its guided states, a few images at a time; −1 where a sampler leaves them open."""
    images, at, steps = max(1, LOGITS // (group.size * stage.outputs)), group.at, len(plan.drawn)
    number, drawn = group.number - (len(plan.groups) - steps), []  # kept groups come first and are no steps
    for start in range(0, len(hidden), images):
        part = slice(start, start + images)
        clusters = None if given is None else given[part, at]  # (b, n)
        logits = stage.of_members(stage.head(hidden[part], clusters), clusters)  # (b, n, outputs)
        step = Step(logits, tokens[part, at], group.count, number, steps, _part(uniform, part, at), plan.sampling)
        labels = sampler(step)
        if stage.members is not None:  # the sampler chose a column among the cluster's members
            assert clusters is not None
            labels = stage.members.table[clusters, labels.clamp(min=0)].where(labels >= 0, -1)
        drawn.append(labels)
    return drawn[0] if len(drawn) == 1 else torch.cat(drawn)


def _part(uniform: Callable[[int], Tensor], part: slice, at: Tensor | slice) -> Callable[[int], Tensor]:
    return lambda stream: uniform(stream)[part, at]


@torch.inference_mode()
def draw_all(
    stage: Drawable,
    labels: Tensor,
    random: Random,
    plan: DrawPlan,
    given: Tensor | None,
    known: Tensor | None,
    on_step: OnStep | None,
) -> Tensor:
    """The labels after the last step, (B, N). On a GPU a recorded graph draws them, if the stage has one."""
    own_code = plan.sampling.filter is not None or type(find_sampler(plan.sampling)) is not Independent
    recorded: Any = stage.recorded if known is None and on_step is None and not own_code else None
    if recorded is not None:  # a graph runs Python once, when it is recorded
        inputs = [labels, send(random.uniform(stage.num_tokens), labels.device), *([] if given is None else [given])]

        def run(labels: Tensor, uniform: Tensor, given: Tensor | None = None) -> Tensor:
            return deque(draw_steps(stage, labels, lambda stream: uniform, plan, given), maxlen=1)[0]

        return recorded(plan.sampling, run, inputs, plan)
    for number, tokens in enumerate(draw_steps(stage, labels, uniforms(stage, random), plan, given, known)):
        if on_step is not None:
            on_step(number, tokens)
    return tokens


def uniforms(stage: Drawable, random: Random) -> Callable[[int], Tensor]:
    """Stream → uniform numbers of all positions (B, N) on the stage's device, made once per stream."""
    return lru_cache(lambda stream: send(random.uniform(stage.num_tokens, stream), stage.device))
