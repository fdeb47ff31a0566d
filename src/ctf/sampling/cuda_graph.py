"""A whole decoding loop as one CUDA graph: the GPU runs N steps without asking the CPU for the next kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class RecordedLoop:
    """`loop(*inputs)`, recorded once and replayed on other inputs of the same shapes or of fewer images.

    The recorded steps are those that the CPU runs: attention over exactly the filled part of the cache, no masks,
    since each position has kernels of its own in the graph. Its buffers belong to one caller at a time.

    Args:
        loop: uses its tensors only, never their values on the host; what it returns begins with an axis of images. It
            runs once before it is recorded, so that compilers and libraries do what they do once for each shape.
        inputs: examples on the device, each (images, …).
    """

    def __init__(self, loop: Callable[..., Tensor], inputs: list[Tensor]) -> None:
        self.inputs, device = [tensor.clone() for tensor in inputs], inputs[0].device
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            loop(*self.inputs)
        torch.cuda.current_stream(device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = loop(*self.inputs)

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        """The result for b images, no more than were recorded: (b, …), a copy."""
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer[: len(tensor)] = tensor
        self.graph.replay()
        return self.result[: len(inputs[0])].clone()
