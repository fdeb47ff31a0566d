"""Which settings a resumed run may change, and the record of those that it did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctf.errors import InputError
from ctf.files import flattened, write_json, write_text
from ctf.hub import CONFIG
from ctf.run_folder import RUN_CHANGES, run_changes, run_settings

#: Where data lies, what is only shown or stored beside the weights, how the optimizer goes on, and the loop.
MAY_CHANGE = {
    *("images", "tokens", "held_out", "held_out_split", "coarse_map", "predicts", "given", "perceptual_source"),
    "start_from",
    *("tokenizer", "sampling", "optimizer", "loop"),
}
#: Of these, what the order of the data and the content of a checkpoint depend on.
STAY = {"optimizer.name", "loop.seed", "loop.batch_size", "loop.ema"}


def changed_settings(run: Path, settings: dict[str, Any]) -> dict[str, list[Any]]:
    """What differs from the settings in the run's config.json, by name: [before, now].

    Left out are the run's own name, `loop.resume`, and what only another version of the program has.

    Raises:
        InputError: a setting that must stay.
    """
    before = dict(flattened(run_settings(run) or {}))
    now = dict(flattened(json.loads(json.dumps(settings))))  # tuples are lists in config.json
    common = [name for name in now if name in before and name not in ("out", "loop.resume")]
    changed = {name: [before[name], now[name]] for name in common if before[name] != now[name]}
    if other := [name for name in changed if name in STAY or name.split(".")[0] not in MAY_CHANGE]:
        said = ", ".join(f"{name} {changed[name][0]}, not {changed[name][1]}" for name in other)
        raise InputError(
            f"{run} was trained with {said}: resume with the settings in its config.json, or choose another --out"
        )
    return changed


def write_settings(run: Path, done: int, settings: dict[str, Any], changed: dict[str, list[Any]]) -> None:
    """Write config.json, and changes.jsonl: after which step which settings became others.

    Args:
        run: its folder.
        done: steps before this start.
        settings: from now on.
        changed: those of `changed_settings`.
    """
    # Steps that a damaged checkpoint has taken back are done again, with what holds now.
    lines = [{**line, "step": min(line["step"], done)} for line in run_changes(run)] if done else []
    if done and changed:
        lines.append({"step": done, **changed})
    if lines or (run / RUN_CHANGES).exists():
        write_text(run / RUN_CHANGES, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(run / CONFIG, settings)
