"""Skipping and counting of steps whose gradients are not finite, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: A run ends after so many skipped steps in a row: it would not recover.
IN_A_ROW = 5


class SkippedSteps:
    """Tells optimizers to skip a step, and counts, all on the device.

    `Muon` and the fused optimizers of PyTorch read the attribute `found_inf`: 1.0 makes their step change nothing.
    """

    def __init__(self, optimizers: list[Any], device: torch.device) -> None:
        self.optimizers = optimizers
        self._count, self._row, self._longest = (torch.zeros((), device=device) for _ in range(3))

    def judge(self, norm: Tensor) -> Tensor:
        """Called before the optimizers' step with the norm of all gradients: 1.0 if it is finite, else 0.0."""
        bad = (~norm.isfinite()).float()
        for optimizer in self.optimizers:
            optimizer.found_inf = bad
        self._count = self._count + bad
        self._row = (self._row + 1) * bad
        self._longest = self._longest.maximum(self._row)
        return 1 - bad

    def too_many(self) -> str | None:
        """A name for `IN_A_ROW` or more skipped steps in a row since the last `take`. Waits for the device."""
        longest = int(self._longest)
        return f"gradient_norm of {longest} steps in a row" if longest >= IN_A_ROW else None

    def take(self) -> float:
        """The number of steps skipped since the last call. Waits for the device."""
        count = float(self._count)
        self._count, self._longest = torch.zeros_like(self._count), self._row
        return count
