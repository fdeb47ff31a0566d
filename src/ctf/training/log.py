"""The log of a run: means since the last line, one JSON object a line, and TensorBoard if wanted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.files import read_json_lines, write_text
from ctf.run_folder import RUN_LOG
from ctf.training.processes import ALONE, Processes


class Log:
    """Appends to `run/log.jsonl`; on resuming, lines beyond the resumed step are dropped first.

    Args:
        run: folder of the run.
        start: steps that the run had done when it was resumed; 0 begins a new log.
        tensorboard: write TensorBoard events under `run/tensorboard` too.
        silent: write nothing, for all processes but the first.

    Attributes:
        evaluated: the log has an evaluation of step `start` already.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, run: Path, start: int, tensorboard: bool = False, silent: bool = False) -> None:
        self._file = self._events = None
        path = run / RUN_LOG
        kept = [line for line in read_json_lines(path) if line["step"] <= start] if start and path.exists() else []
        self.evaluated = any(line["step"] == start and "learning_rate" not in line for line in kept)
        if silent:
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "TensorBoard is not installed: pip install -e '.[track]' in a checkout of ctf"
                ) from None
            self._events = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a line for `step`, with six significant digits."""
        if self._file is not None:
            rounded = {key: float(f"{value:.6g}") for key, value in values.items()}
            self._file.write(json.dumps({"step": step, **rounded}) + "\n")
            self._file.flush()
        if self._events is not None:
            for key, value in values.items():
                self._events.add_scalar(key, value, step)

    def close(self) -> None:
        for file in (self._file, self._events):
            if file is not None:
                file.close()


class Meter:
    """Means of metrics. Sums stay on the device, so that only `line` and `not_finite` wait for it."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}
        self._counts: dict[str, float] = {}
        self._steps = 0
        self._since = time.perf_counter()

    def add(self, values: dict[str, Tensor], weight: float | Tensor = 1.0) -> None:
        """Add scalars, to be averaged over the steps that have them."""
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, torch.zeros_like(value)) + value.detach() * weight
            self._weights[key] = self._weights.get(key, 0.0) + weight

    def end_step(self, counts: dict[str, float]) -> None:
        """Close a step; `counts` are added up instead of averaged."""
        self._steps += 1
        for key, value in counts.items():
            self._counts[key] = self._counts.get(key, 0.0) + value

    def not_finite(self) -> str | None:
        """The name of a metric that was infinite or NaN since the last line, or None."""
        return next((key for key, value in self._sums.items() if not bool(value.isfinite())), None)

    def line(self, processes: Processes = ALONE) -> dict[str, float]:
        """Means over all processes, counts and speed since the last line; starts the next one."""
        pairs = [torch.stack([x, torch.as_tensor(self._weights[key]).to(x)]) for key, x in self._sums.items()]
        sums = processes.sum(torch.stack(pairs)).tolist()
        means = {key: value / weight for key, (value, weight) in zip(self._sums, sums, strict=True) if weight}
        speed = self._steps / (time.perf_counter() - self._since)
        counts = self._counts
        self._reset()
        return {**means, **counts, "steps_per_second": speed}
