"""What a training run writes: names, settings, checkpoints, milestones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ctf.files import read_json, read_json_lines
from ctf.hub import CONFIG

#: What a run folder holds beside its config.json.
RUN_LOG, RUN_MODEL, RUN_CHECKPOINTS, RUN_MILESTONES = "log.jsonl", "model.safetensors", "checkpoints", "milestones"
RUN_CHANGES = "changes.jsonl"
#: Of a checkpoint: a file, or a folder of parts.
NAME = re.compile(r"step-\d+(\.safetensors)?")


def run_settings(run: Path) -> dict[str, Any] | None:
    """What a run folder was made from; None of a folder that is no run."""
    config = read_json(run / CONFIG) if (run / CONFIG).exists() else None
    return config if isinstance(config, dict) and "loop" in config else None


def run_changes(run: Path) -> list[dict[str, Any]]:
    """Settings that a run changed when it was resumed: "step", after which, and by name [before, from then on]."""
    return read_json_lines(run / RUN_CHANGES) if (run / RUN_CHANGES).exists() else []


def last_entries(run: Path) -> dict[str, float]:
    """The last value of each entry of a run's log."""
    last: dict[str, float] = {}
    for line in read_json_lines(run / RUN_LOG) if (run / RUN_LOG).exists() else []:
        last |= line
    return last


def checkpoint_path(run: Path, step: int, part: int = 0, parts: int = 1) -> Path:
    """The file of a checkpoint after `step` steps, or of a part of it: each process writes one if weights are cut."""
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
    """The checkpoints of a run folder that are there in all parts, each a file or a folder, the newest last."""
    found = (path for path in (run / RUN_CHECKPOINTS).glob("step-*") if re.fullmatch(NAME, path.name))
    return sorted(filter(checkpoint_files, found), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step-").removesuffix(".safetensors"))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run folder."""
    return max(checkpoints(run), default=None, key=step_of)


def milestone_path(run: Path, step: int, suffix: str = "") -> Path:
    """Where the weights after `step` steps are kept."""
    return run / RUN_MILESTONES / f"step-{step:08d}{suffix}.safetensors"
