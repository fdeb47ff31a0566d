"""Options of `ctf train` that only some types of stages have, of the user's own kinds too."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ctf.errors import InputError
from ctf.stages.settings import BUILT_IN

#: The field of a training's settings that holds them.
FIELD = "kind_settings"


def settings_of_kinds(config: type | None, arguments: Sequence[str]) -> tuple[type, ...]:
    """Dataclasses whose fields are options beside those of `config`; none where that is not of a stage's training.

    They are those of ctf's kinds and, before them, that of the kind which the arguments or their YAML files name.

    Raises:
        InputError: there is no such kind.
    """
    if config is None or FIELD not in (field.name for field in fields(config)):
        return ()
    kinds = [kind for path in option_values(arguments, "config") if (kind := _kind_in(path))]
    kinds += option_values(arguments, "kind")
    if not kinds:
        return BUILT_IN
    from ctf.stages.registry import find_kind

    return tuple(dict.fromkeys((find_kind(kinds[-1]).Settings, *BUILT_IN)))


def option_values(arguments: Sequence[str], name: str) -> list[str]:
    """The values of an option, given as `--name value` or `--name=value`."""
    return [
        after if word == f"--{name}" else word.split("=", 1)[1]
        for word, after in pairwise([*arguments, ""])
        if word == f"--{name}" or word.startswith(f"--{name}=")
    ]


def _kind_in(path: str) -> str | None:
    """The kind of stage that a YAML file names. Of a file that cannot be read, the parser says why."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    kind = values.get("kind") if isinstance(values, dict) else None
    return kind if isinstance(kind, str) else None


def add_options(parser: Any, config: type, kinds: Sequence[type]) -> None:
    """Options for the fields of `config`, and of `settings_of_kinds`.

    Raises:
        InputError: two settings of one name.
    """
    if "loop" in (field.name for field in fields(config)):  # a run's config.json also says what it started from
        parser.add_argument("--started", type=dict, default=None, help=SUPPRESS)
    if not kinds:
        parser.add_class_arguments(config)
        return
    parser.add_class_arguments(config, skip={FIELD})
    taken, known = {field.name for field in fields(config)}, set[str]()
    for settings in kinds:
        names = {field.name for field in fields(settings)}
        if both := names & taken:
            raise InputError(f"{settings.__name__} has a setting {min(both)}, which every training has: rename it")
        parser.add_class_arguments(settings, skip=names & known)
        known |= names


def training_of(config: Any, values: Mapping[str, Any], kinds: Sequence[type]) -> Any:
    """The `config` of parsed values.

    Raises:
        InputError: a setting of another kind than its own.
    """
    found = {field.name: values[field.name] for field in fields(config) if field.name != FIELD}
    if not kinds:
        return config(**found)
    from ctf.stages.registry import kind_settings

    given = {f.name: values[f.name] for settings in kinds for f in fields(settings) if values[f.name] != f.default}
    return config(**found, kind_settings=kind_settings(values["kind"], **given))
