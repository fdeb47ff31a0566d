"""A whole decoding loop as one CUDA graph: the GPU runs N steps without asking the CPU for the next kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: PyTorch allows one capture at a time in a process.
CAPTURING = threading.Lock()


class RecordedLoops:
    """Loops with one setting, recorded for each power of two of images and replayed on other inputs.

    The recorded steps are those that the CPU runs: attention over exactly the filled part of the cache, no masks,
    since each position has kernels of its own in the graph. Several threads and streams may call.

    The other way, not tried for want of a GPU: one recorded step for all positions, with their number in a tensor
    (`torch.nn.attention.varlen.varlen_attn`, `seqused_k`). It would record N times faster and take less memory for the
    graph, but nothing computes it on a CPU, so that no test without a GPU could tell whether it is right.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settings: Any = None
        self._loops: dict[int, Recording] = {}  # by the number of images
        self._last: Recording | None = None

    def __call__(self, settings: Any, loop: Callable[..., Tensor], inputs: list[Tensor], kept: Any = None) -> Tensor:
        """What `loop(*inputs)` returns: (b, …), a copy.

        Args:
            settings: other ones than last time need other recordings.
            loop: uses its tensors only, never their values on the host; what it returns begins with an axis of images.
            inputs: on one GPU, each (b, …); zeros must be valid inputs too.
            kept: what holds other tensors that the loop reads; it lives as long as the recording.
        """
        images = len(inputs[0])
        with self._lock:
            if settings != self._settings or images > max(self._loops, default=0):
                while self._loops:  # their memory goes first
                    self._loops.popitem()[1].close()
                self._settings = settings
            size = recorded_size(images, max(self._loops, default=images))
            if size not in self._loops:
                padded = [torch.cat([x, x.new_zeros(size - images, *x.shape[1:])]) for x in inputs]
                self._loops[size] = self._last = Recording(loop, padded, self._last, kept)
            return self._loops[size](inputs)


def recorded_size(images: int, largest: int) -> int:
    """Of the recording that serves a batch: the next power of two, but not more than the `largest` batch."""
    return min(1 << (images - 1).bit_length(), largest)


class Recording:
    """One loop, recorded for one number of images.

    Recordings that follow each other share a stream and, while they live, memory, so their replays must not overlap.

    Args:
        loop, inputs, kept: as those of `RecordedLoops`. The loop runs once before it is recorded, over all positions,
            so that compilers and libraries do what they do once for each shape.
        before: what was recorded last, and may be closed.
    """

    def __init__(
        self, loop: Callable[..., Tensor], inputs: list[Tensor], before: Recording | None, kept: Any = None
    ) -> None:
        self.kept = kept
        self.device = inputs[0].device
        # A stream of its own: cuBLAS keeps a workspace for each, which recordings that run at once must not share.
        self.stream: torch.cuda.Stream = before.stream if before else torch.cuda.Stream(self.device)
        # The last use of all that is shared.
        self.used: torch.cuda.Event = before.used if before else torch.cuda.Event()
        pool = before.graph.pool() if before and before.graph else None
        self.graph: torch.cuda.CUDAGraph | None = None
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                self.inputs = [tensor.clone() for tensor in inputs]
                loop(*self.inputs)
            graph = torch.cuda.CUDAGraph()
            # Other threads may allocate memory meanwhile.
            with CAPTURING, torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local"):
                self.result = loop(*self.inputs)
            current.wait_stream(self.stream)
        self.graph = graph

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        """The result for b images, no more than were recorded: (b, …), a copy."""
        assert self.graph is not None
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            current.wait_event(self.used)
            for buffer, tensor in zip(self.inputs, inputs, strict=True):
                buffer[: len(tensor)] = tensor
            self.graph.replay()
            result = self.result[: len(inputs[0])].clone()
            self.used.record(current)
        return result

    def close(self) -> None:
        """Give the memory back, once the last replay is done."""
        self.used.synchronize()
        if self.graph is not None:
            self.graph.reset()
        self.graph = None
        del self.inputs, self.result, self.kept
        torch.cuda.empty_cache()
