"""Ctrl-C and SIGTERM between steps instead of inside them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Whether Ctrl-C or SIGTERM came."""

    def __init__(self) -> None:
        self._came = self._raises = False

    def __call__(self) -> bool:
        return self._came

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal raises KeyboardInterrupt within the block, also one that came before it."""
        self._raises = True
        try:
            if self._came:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def catch(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        self._came = True
        if self._raises:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Yields what says whether a signal came; none stops anything in the block, but where it is told to."""
    interrupts = Interrupts()
    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, interrupts.catch) for number in signals]
    except ValueError:  # not the main thread: no signals arrive here
        yield interrupts
        return
    try:
        yield interrupts
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
