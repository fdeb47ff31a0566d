"""Weights in VAR's files: bare, or within its training checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ctf.errors import InputError
from ctf.weights import name_of, read_checkpoint, read_state_dict


def read_part(source: str | Path | Mapping[str, Any], part: str, allow_namespace: bool = False) -> dict[str, Tensor]:
    """The weights in `source`, as `read_state_dict`, or those called `part` in a training checkpoint of VAR.

    Raises:
        InputError: as `read_state_dict`.
    """
    held = source if isinstance(source, Mapping) else read_checkpoint(source, allow_namespace)
    for name in ("trainer", part):
        if isinstance(held, Mapping):
            held = held.get(name, held)
    if not isinstance(held, Mapping):
        raise InputError(f"{name_of(source)} holds a {type(held).__name__}, not a dictionary of weights")
    return read_state_dict(held)
