"""Samplers choose the labels of a step from its logits. A user's sampler is one class with one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ctf.elementwise import elementwise
from ctf.errors import InputError
from ctf.plugins import import_plugins, load_object
from ctf.sampling.draw import draw
from ctf.sampling.settings import Sampling


@dataclass(frozen=True)
class Step:
    """A sampler's input: one step of b images over n positions.

    Attributes:
        logits: float32 (b, n, V), guided. V is the stage's vocabulary, or the size of the largest given cluster.
        labels: int64 (b, n), known labels, which stay whatever the sampler returns; −1 elsewhere.
        count: how many unknown positions of each image the step must label: all, except in the order confidence.
        number: the step's number, from 0.
        steps: number of steps.
        uniform: stream → float64 (b, n) in [0, 1); another stream for each use, below 2^32.
        sampling: the stage's settings.
    """

    logits: Tensor
    labels: Tensor
    count: int
    number: int
    steps: int
    uniform: Callable[[int], Tensor]
    sampling: Sampling

    @property
    def known(self) -> Tensor:
        """Whether a label is known, bool (b, n)."""
        return self.labels >= 0


class Sampler(ABC):
    """Takes the labels of a step; register one with `register_sampler`, or name it as "file.py:Class"."""

    @abstractmethod
    def __call__(self, step: Step) -> Tensor:
        """int64 (b, n), columns of `step.logits`; −1 where a position stays unknown for a later step."""


class Independent(Sampler):
    """Every position's label from its own distribution."""

    def __call__(self, step: Step) -> Tensor:
        return draw(step.logits, step.uniform(0), step.sampling)


class Confidence(Sampler):
    """Sample all labels and keep the most probable, with noise that fades (MaskGIT 2202.04200, section 3.2)."""

    def __call__(self, step: Step) -> Tensor:
        choice = draw(step.logits, step.uniform(step.number), step.sampling)
        # Clamped, since 0 would make a Gumbel number of −inf.
        uniform = step.uniform(step.steps + step.number).clamp(min=2.0**-33)
        gumbel = -elementwise(torch.log, -elementwise(torch.log, uniform))
        noise = step.sampling.noise * (1 - (step.number + 1) / step.steps) * gumbel.float()
        confidence = step.logits.log_softmax(-1).gather(-1, choice[..., None]).squeeze(-1) + noise
        best = confidence.masked_fill(step.known, -torch.inf).topk(step.count).indices
        return torch.full_like(choice, -1).scatter(-1, best, choice.gather(-1, best))


#: Samplers by the name that `Sampling.sampler` uses.
SAMPLERS: dict[str, type[Sampler]] = {"independent": Independent, "confidence": Confidence}


def register_sampler(name: str) -> Callable[[type[Sampler]], type[Sampler]]:
    """Register a sampler under a name; a class decorator."""

    def register(sampler: type[Sampler]) -> type[Sampler]:
        SAMPLERS[name] = sampler
        return sampler

    return register


def find_sampler(sampling: Sampling) -> Sampler:
    """The sampler that the settings name, by default that of their order.

    Raises:
        InputError: there is no such sampler, or it cannot be made.
    """
    name = sampling.sampler or ("confidence" if sampling.order == "confidence" else "independent")
    if ":" in name:
        return _made(name, load_object(name))
    if name not in SAMPLERS:
        import_plugins()
    if name not in SAMPLERS:
        raise InputError(f"sampler {name!r} does not exist: choose one of {', '.join(SAMPLERS)}, or file.py:Class")
    return _made(name, SAMPLERS[name])


def _made(name: str, sampler: Callable[[], Any]) -> Sampler:
    try:
        made = sampler()
    except Exception as error:  # the user's code fails in any way
        raise InputError(f"sampler {name} cannot be made ({error}): name a class that needs no arguments") from None
    return made if type(made) in (Independent, Confidence) else Checked(name, made)


class Checked(Sampler):
    """A user's sampler, whose labels are checked."""

    def __init__(self, name: str, sampler: Callable[[Step], Tensor]) -> None:
        self.name, self.sampler = name, sampler

    def __call__(self, step: Step) -> Tensor:
        labels = self.sampler(step)
        shape, outputs = step.logits.shape[:-1], step.logits.shape[-1]
        if not isinstance(labels, Tensor) or labels.shape != shape or labels.dtype != torch.int64:
            raise InputError(f"sampler {self.name} must return int64 labels of shape {tuple(shape)}")
        if not -1 <= int(labels.min()) <= int(labels.max()) < outputs:
            raise InputError(f"sampler {self.name} returned labels outside −1 … {outputs - 1}")
        if bool(((labels >= 0) & ~step.known).sum(1).ne(step.count).any()):
            raise InputError(
                f"sampler {self.name} must settle {step.count} unknown positions of each image in this step"
            )
        return labels
