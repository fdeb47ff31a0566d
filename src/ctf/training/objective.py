"""The interface between the training loop and a model with its data and loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from ctf.errors import InputError
from ctf.models.transformer import Block
from ctf.training.processes import ALONE, Processes

Batch = tuple[Tensor, ...]


class Objective(ABC):
    """A module with its data, its loss and its report. The loop owns the optimizer and the clock.

    Attributes:
        module: what is trained.
        num_images: images in an epoch.
        data: fingerprint of the training data, which a resumed run compares; "" where none is taken.
        extra: further modules and optimizers that a checkpoint must hold.
        started: what `start` returned when the run began.
    """

    module: nn.Module
    num_images: int
    data: str = ""
    extra: dict[str, nn.Module | Optimizer]
    started: Mapping[str, Any] = MappingProxyType({})

    def start(self) -> dict[str, Any]:
        """Called before the first step, not on resuming; returns the source of the weights, for the run's config."""
        return {}

    def compiled(self) -> nn.Module:
        """The module passed through torch.compile; it may be compiled in place."""
        return torch.compile(self.module)  # type: ignore[return-value]

    def blocks(self, module: nn.Module) -> list[Block]:
        """The Transformer blocks of the module, or of its copy: `loop.shard` gathers them one at a time, and
        `loop.recompute` runs them again in the backward pass.

        Raises:
            InputError: the module has none.
        """
        raise InputError("loop.shard and loop.recompute are for stages that are Transformers: leave them out")

    @abstractmethod
    def batches(self, batch_size: int, seed: int, rank: int, world: int, start: int) -> Iterator[Batch]:
        """This rank's part of batches `start`, `start` + 1, …; batch s depends on s and the seed alone."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch, and detached scalars to log. `module` may be wrapped.

        The loss is a scalar, or float (n,), the loss of each position, if n differs between batches: the loop then
        takes the mean over the positions of all forward passes and processes.
        """

    def before_step(self, ema: nn.Module | None, step: int) -> None:  # noqa: B027
        """Called before each optimizer step."""

    def after_step(self, ema: nn.Module | None, step: int) -> dict[str, float]:
        """Called after each optimizer step; returns counts, which the log adds up until the next line."""
        return {}

    @abstractmethod
    def evaluate(self, module: nn.Module, processes: Processes = ALONE) -> dict[str, float]:
        """Metrics of a module in evaluation mode, named "held_out/…" or "train/…"; empty without held-out data.

        All processes call it, and may share the work; the metrics of the first one count.
        """

    def sheet(self, module: nn.Module) -> Image.Image | None:
        """A contact sheet of the module's results, if there can be one."""
        return None

    def save(self, module: Any, path: Path) -> None:
        """Write the trained module to one file."""
        module.save(path)
