"""The folder of a training run: its settings, log, checkpoints and milestones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ctf.files import read_json, read_json_lines
from ctf.hub import CONFIG

#: The files and folders of a run beside its config.json.
RUN_LOG, RUN_MODEL, RUN_CHECKPOINTS, RUN_MILESTONES = "log.jsonl", "model.safetensors", "checkpoints", "milestones"
RUN_CHANGES = "changes.jsonl"
#: A checkpoint is a file, or a folder of parts.
CHECKPOINT_NAME = re.compile(r"step-\d+(\.safetensors)?")


def run_settings(run: Path) -> dict[str, Any] | None:
    """The settings of a run; None for a folder that is not a run."""
    config = read_json(run / CONFIG) if (run / CONFIG).exists() else None
    return config if isinstance(config, dict) and "loop" in config else None


def run_changes(run: Path) -> list[dict[str, Any]]:
    """The settings that changed when a run was resumed: for each time the "step", and name → [before, after]."""
    return read_json_lines(run / RUN_CHANGES) if (run / RUN_CHANGES).exists() else []


def last_entries(run: Path) -> dict[str, float]:
    """The last value of each entry in a run's log."""
    last: dict[str, float] = {}
    for line in read_json_lines(run / RUN_LOG) if (run / RUN_LOG).exists() else []:
        last |= line
    return last


def last_evaluation(run: Path) -> dict[str, float]:
    """The last value of each metric of a run's evaluations, by its name "held_out/…" or "train/…"."""
    return {name: value for name, value in last_entries(run).items() if "/" in name}


def checkpoint_path(run: Path, step: int, part: int = 0, parts: int = 1) -> Path:
    """The file of a checkpoint after `step` steps, or of one part: with sharded weights each process writes its own."""
    folder, name = run / RUN_CHECKPOINTS, f"step-{step:08d}"
    return folder / f"{name}.safetensors" if parts == 1 else folder / name / f"{part:05d}-of-{parts:05d}.safetensors"


def checkpoint_files(checkpoint: Path) -> list[Path]:
    """The file or the parts of a checkpoint, in order; none if a part is missing."""
    if not checkpoint.is_dir():
        return [checkpoint]
    by_count: dict[int, list[Path]] = {}
    for file in sorted(checkpoint.glob("*-of-*.safetensors")):
        by_count.setdefault(int(file.stem[-5:]), []).append(file)
    return next((files for count, files in sorted(by_count.items()) if len(files) == count), [])


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, each a file or a folder, the newest last."""
    found = (path for path in (run / RUN_CHECKPOINTS).glob("step-*") if CHECKPOINT_NAME.fullmatch(path.name))
    return sorted(filter(checkpoint_files, found), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-").removesuffix(".safetensors"))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run folder; None if there is none."""
    return max(checkpoints(run), default=None, key=step_of)


def milestone_path(run: Path, step: int, suffix: str = "") -> Path:
    """The file of the weights after `step` steps, which are kept for good."""
    return run / RUN_MILESTONES / f"step-{step:08d}{suffix}.safetensors"
