"""A whole decoding loop as one CUDA graph: the GPU runs N steps without asking the CPU for the next kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class ReplayedLoop:
    """`loop(model, settings, labels, uniform)`, recorded once and replayed on other labels and numbers.

    The recorded steps are those that the CPU runs: attention over exactly the filled part of the cache, no masks,
    since each position has kernels of its own in the graph.

    Args:
        loop: uses its tensors only, never their values on the host.
        model: its first argument.
        settings: its second; fixed in the recording.
        labels: an example: int64 (rows,).
        uniform: an example: float64 (B, N).
    """

    def __init__(self, loop: Callable[..., Tensor], model: Any, settings: Any, labels: Tensor, uniform: Tensor) -> None:
        self.settings = settings
        self.labels, self.uniform = labels.to(model.device, copy=True), uniform.to(model.device, copy=True)
        side = torch.cuda.Stream(model.device)
        side.wait_stream(torch.cuda.current_stream(model.device))
        with torch.cuda.stream(side):  # compiles, and lets libraries allocate, before anything is recorded
            loop(model, settings, self.labels, self.uniform[:, :2])
        torch.cuda.current_stream(model.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.tokens = loop(model, settings, self.labels, self.uniform)

    def serves(self, settings: Any, batch: int) -> bool:
        """Whether the recording has these settings and room for that many images."""
        return settings == self.settings and batch <= len(self.uniform)

    def __call__(self, labels: Tensor, uniform: Tensor) -> Tensor:
        """Tokens int64 (b, N) for b ≤ B images, in a buffer that the next call overwrites."""
        batch, count = len(self.uniform), len(uniform)
        self.labels.view(-1, batch)[:, :count] = labels.view(-1, count).to(self.labels.device)
        self.uniform[:count] = uniform.to(self.uniform.device)
        self.graph.replay()
        return self.tokens[:count]
