"""Deferral of Ctrl-C and SIGTERM to the end of a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Calling it says whether Ctrl-C or SIGTERM came."""

    def __init__(self) -> None:
        self._came = self._raises = False

    def __call__(self) -> bool:
        return self._came

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block a signal raises KeyboardInterrupt, also one that came before it."""
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
    """In this block a signal is only noted, except in `Interrupts.at_once`."""
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
