"""The first stage of the next batch while the others and the decoder work on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import torch
from torch import Tensor


def prefetch(calls: Iterable[Callable[[], Tensor]], device: torch.device) -> Iterator[Tensor]:
    """The result of each call, in order.

    On a GPU the next call already runs, on a stream of its own, while the caller works with a result: the first
    stage is memory-bound; overlap it with the compute-bound later stages and decoder. Elsewhere calls are lazy.
    """
    if device.type != "cuda":
        yield from (call() for call in calls)
        return
    ahead = _stream_ahead(device)
    begun: list[tuple[Tensor, torch.cuda.Event]] = []
    for call in calls:
        ahead.wait_stream(torch.cuda.current_stream(device))  # the call's inputs may still be written there
        with torch.cuda.stream(ahead):
            begun.append((call(), ahead.record_event()))
        if len(begun) > 1:
            yield _ready(*begun.pop(0))
    for result, event in begun:
        yield _ready(result, event)


@lru_cache
def _stream_ahead(device: torch.device) -> torch.cuda.Stream:
    """One stream for all calls: PyTorch reuses memory that was freed on a stream on that stream only."""
    return torch.cuda.Stream(device)


def _ready(result: Tensor, event: torch.cuda.Event) -> Tensor:
    """The result, for use on the stream that its caller is on."""
    stream = torch.cuda.current_stream(result.device)
    stream.wait_event(event)
    result.record_stream(stream)
    return result
