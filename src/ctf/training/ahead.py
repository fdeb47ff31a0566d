"""The next batches while the device works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ctf.training.objective import Batch

AHEAD = 2


def ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches, on `device`.

    For a GPU a thread reads them ahead into pinned memory, from which they are copied without waiting. Elsewhere they
    are read when they are asked for.
    """
    if device.type != "cuda":
        yield from (tuple(tensor.to(device) for tensor in batch) for batch in batches)
        return
    with ThreadPoolExecutor(1) as reader:  # one: an iterator is read by one thread at a time
        pending: deque[Future[Batch]] = deque()
        while True:
            while len(pending) < AHEAD:
                pending.append(reader.submit(_pinned, batches))
            yield tuple(tensor.to(device, non_blocking=True) for tensor in pending.popleft().result())


def _pinned(batches: Iterator[Batch]) -> Batch:
    return tuple(tensor.pin_memory() for tensor in next(batches))
