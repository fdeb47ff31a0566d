"""End of a run in which a process hangs, with a message that names the process."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from collections import deque
from typing import Any, Literal, get_args

import torch.distributed as dist

from ctf.training.processes import Processes

Phase = Literal["reading a batch", "training", "saving", "evaluating"]
#: Step, index in `PHASES`, and a count that grows while the process lives.
Place = tuple[int, int, int]
#: In the order of a step: the process that is behind keeps the others waiting.
PHASES: tuple[Phase, ...] = get_args(Phase)
#: Number of processes that read the places of all: the second one does if the first one hangs.
READERS = 2


class Watch:
    """While it is entered, a thread publishes the place of this process in the run.

    Args:
        processes: of the run; a single one is not watched.
        patience: seconds that this process may stay in one phase of one step.
    """

    def __init__(self, processes: Processes, patience: float) -> None:
        self.processes, self.patience = processes, patience
        self._step, self._phase, self._since = 0, 0, time.monotonic()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def now(self, step: int, phase: Phase) -> None:
        """Note that this process begins a phase of a step."""
        self._step, self._phase, self._since = step, PHASES.index(phase), time.monotonic()

    def __enter__(self) -> Watch:
        self._since = time.monotonic()
        if self.processes.world > 1:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        rank, pause = self.processes.rank, min(5.0, self.patience / 4)
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        keys = [f"ctf-watch/{rank}" for rank in range(self.processes.world)]
        seen: deque[list[Place]] = deque(maxlen=3)
        for beat in itertools.count(1):
            if self._left.wait(pause):
                return
            store.set(keys[rank], json.dumps([self._step, self._phase, beat]))
            if rank >= READERS or time.monotonic() - self._since < self.patience * (1 + rank / 4):
                seen.clear()
                continue
            seen.append(_read(store, keys))
            if len(seen) == seen.maxlen:
                print(f"ctf: error: {blame(seen[0], seen[-1], self.patience)}", file=sys.stderr, flush=True)
                os._exit(1)  # `sys.exit` ends only this thread; the training thread hangs. torchrun ends the others.


def _read(store: Any, keys: list[str]) -> list[Place]:
    """The published place of each process; zeros for one that has published none."""
    return [tuple(json.loads(store.get(key))) if store.check([key]) else (0, 0, 0) for key in keys]


def blame(before: list[Place], now: list[Place], patience: float) -> str:
    """A message that names the process that keeps the others waiting: a silent one, else those that are behind.

    Args:
        before, now: place of each process, some beats apart.
        patience: seconds, for the message.
    """
    silent = [rank for rank, (old, new) in enumerate(zip(before, now, strict=True)) if old[2] == new[2]]
    behind = [rank for rank, place in enumerate(now) if place[:2] == min(now)[:2]]
    late = silent or behind
    what = "no answer from" if silent else "all others wait for" if len(late) < len(now) else "no progress of"
    step, phase, _ = now[late[0]]
    return (
        f"{what} process{'es' * (len(late) > 1)} {', '.join(map(str, late))} of {len(now)}, in step {step} "
        f"({PHASES[phase]}), for {patience:g} s and more: look at its machine and what it printed, then continue with "
        "--loop.resume true; if the work only takes that long, raise loop.patience"
    )
