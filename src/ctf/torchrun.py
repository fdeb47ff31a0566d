"""Processes of torchrun that share work through files, without a process group."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ctf.errors import InputError

POLL_SECONDS = 0.2


def rank_and_world() -> tuple[int, int]:
    """The rank of this process and the number of processes: (0, 1) without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def wait_until(done: Callable[[], bool], launcher: int) -> None:
    """Wait for the work of other processes.

    Args:
        done: whether the work is finished; called every 0.2 seconds.
        launcher: `os.getppid()` from before the work began. If torchrun is killed, nothing ends this process, but its
            parent changes.

    Raises:
        InputError: torchrun was killed.
    """
    while not done():
        if "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != launcher:
            raise InputError("torchrun was ended: run the same command again, what is finished is kept")
        time.sleep(POLL_SECONDS)
