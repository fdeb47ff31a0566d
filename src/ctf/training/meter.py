"""Means of what a run logs, between two lines of its log."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Meter:
    """Sums stay on the device, so that steps do not wait for each other; only `line` and `not_finite` do."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._steps = 0
        self._since = time.perf_counter()

    def add(self, values: dict[str, Tensor], weight: float = 1.0) -> None:
        """Scalars to average over the steps that have them."""
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, torch.zeros_like(value)) + value.detach() * weight
            self._weights[key] = self._weights.get(key, 0.0) + weight

    def end_step(self, counts: dict[str, float]) -> None:
        """Close a step; `counts` are added up instead of averaged."""
        self._steps += 1
        for key, value in counts.items():
            self._counts[key] = self._counts.get(key, 0.0) + value

    def not_finite(self) -> str | None:
        """Name of a value that was infinite or not a number since the last line, if there is one."""
        return next((key for key, value in self._sums.items() if not bool(value.isfinite())), None)

    def line(self) -> dict[str, float]:
        """Means, counts and speed since the last line; starts the next one."""
        means = {key: float(value) / self._weights[key] for key, value in self._sums.items()}
        speed = self._steps / (time.perf_counter() - self._since)
        counts = self._counts
        self._reset()
        return {**means, **counts, "steps_per_second": speed}
