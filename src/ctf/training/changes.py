"""Settings that a resumed run may change, and the record of its changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctf.errors import InputError
from ctf.files import flattened, write_json, write_text
from ctf.hub import CONFIG
from ctf.run_folder import RUN_CHANGES, run_changes, run_settings

#: Paths of data, settings that are only shown or stored beside the weights, the optimizer's, and the loop's.
MAY_CHANGE = {
    *("images", "tokens", "held_out", "held_out_split", "coarse_map", "predicts", "given", "perceptual_source"),
    *("tokenizer", "sampling", "optimizer", "loop"),
}
#: Exceptions: the order of the data or the content of a checkpoint depends on them.
FIXED = {"optimizer.name", "loop.seed", "loop.batch_size", "loop.ema"}


def changed_settings(run: Path, settings: dict[str, Any]) -> dict[str, list[Any]]:
    """Settings that differ from the run's config.json, by name: [before, now].

    The run's name, `loop.resume`, and settings that only one of two versions of the program has do not count.
    `start_from` may be left out: its weights are in the checkpoint.

    Raises:
        InputError: a changed setting that is fixed.
    """
    before = dict(flattened(run_settings(run) or {}))
    now = dict(flattened(json.loads(json.dumps(settings))))  # tuples are lists in config.json
    if now.get("start_from") is None:
        now.pop("start_from", None)
    else:
        before["start_from"] = before.get("started.source")  # which a run that left it out has in place of it
    common = [name for name in now if name in before and name not in ("out", "loop.resume")]
    changed = {name: [before[name], now[name]] for name in common if before[name] != now[name]}
    if fixed := [name for name in changed if name in FIXED or name.split(".")[0] not in MAY_CHANGE]:
        trained = ", ".join(f"{name} {changed[name][0]}, not {changed[name][1]}" for name in fixed)
        raise InputError(
            f"{run} was trained with {trained}: resume with the settings in its config.json, or choose another --out"
        )
    return changed


def write_settings(run: Path, done: int, settings: dict[str, Any], changed: dict[str, list[Any]]) -> None:
    """Write config.json, and changes.jsonl with a line for each start that changed settings.

    Args:
        run: its folder.
        done: steps before this start.
        settings: from now on.
        changed: from `changed_settings`.
    """
    # Steps after `done` were lost with a damaged checkpoint: they are done again with the settings of now.
    lines = [{**line, "step": min(line["step"], done)} for line in run_changes(run)] if done else []
    if done and changed:
        lines.append({"step": done, **changed})
    if lines or (run / RUN_CHANGES).exists():
        write_text(run / RUN_CHANGES, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(run / CONFIG, settings)
