"""Ctrl-C and SIGTERM between steps instead of inside them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C or SIGTERM came; neither stops anything by itself in the block."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, catch) for number in signals]
    except ValueError:  # not the main thread: no signals arrive here
        yield lambda: False
        return
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
