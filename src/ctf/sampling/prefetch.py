"""The first stage of the next batch while the others and the decoder work on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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
    own, main = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    begun: list[tuple[Tensor, torch.cuda.Event]] = []
    for call in calls:
        own.wait_stream(main)
        with torch.cuda.stream(own):
            begun.append((call(), own.record_event()))
        if len(begun) > 1:
            yield _ready(*begun.pop(0), main)
    for result, event in begun:
        yield _ready(result, event, main)


def _ready(result: Tensor, event: torch.cuda.Event, stream: torch.cuda.Stream) -> Tensor:
    """The result, for use on `stream`."""
    stream.wait_event(event)
    result.record_stream(stream)
    return result
