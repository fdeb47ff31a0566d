"""The log of a run: one JSON object a line, and TensorBoard where wanted."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from ctf.errors import InputError
from ctf.files import write_text


class Log:
    """Appends to `run/log.jsonl`; on resuming, lines beyond the resumed step are dropped first.

    Args:
        run: folder of the run.
        start: steps that the run had done when it was resumed; 0 begins a new log.
        tensorboard: write TensorBoard events under `run/tensorboard` too.
        silent: write nothing, as all processes but one must.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, run: Path, start: int, tensorboard: bool = False, silent: bool = False) -> None:
        self._file = self._events = None
        if silent:
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError("TensorBoard is not installed: pip install 'ctf[track]'") from None
            self._events = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        path = run / "log.jsonl"
        kept = [line for line in read_log(path) if line["step"] <= start] if start and path.exists() else []
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

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._file, self._events):
            if file is not None:
                file.close()


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log.jsonl, without a last one that a kill has cut off."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
