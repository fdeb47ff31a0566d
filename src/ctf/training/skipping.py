"""Steps whose gradients are not finite: left out and counted, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: So many in a row end a run: it would not recover.
IN_A_ROW = 5


class SkippedSteps:
    """Tells optimizers to leave out a step, and counts; all on the device.

    Optimizers read it from their attribute `found_inf`, as those of PyTorch that are fused do, and `Muon`.
    """

    def __init__(self, optimizers: list[Any], device: torch.device) -> None:
        self.optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]  # accelerate wraps
        self._count, self._row, self._longest = (torch.zeros((), device=device) for _ in range(3))

    def judge(self, norm: Tensor) -> Tensor:
        """Before the optimizers' step; `norm` is of all gradients. Whether it is finite: 1.0 or 0.0."""
        bad = (~norm.isfinite()).float()
        for optimizer in self.optimizers:
            optimizer.found_inf = bad
        self._count = self._count + bad
        self._row = (self._row + 1) * bad
        self._longest = self._longest.maximum(self._row)
        return 1 - bad

    def culprit(self) -> str | None:
        """What to call it if `IN_A_ROW` steps or more followed each other; waits for the device, as `take` does."""
        longest = int(self._longest)
        return f"gradient_norm of {longest} steps in a row" if longest >= IN_A_ROW else None

    def take(self) -> float:
        """How many were left out since this was last called."""
        count = float(self._count)
        self._count, self._longest = torch.zeros_like(self._count), self._row
        return count
