"""Sampling: how a stage draws, with defaults that travel with its weights; free of heavy imports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ctf.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Settings of one stage.

    Attributes:
        cfg_scale: classifier-free guidance; 1 is none.
        temperature: divides the guided logits; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to cumulative probability p; 1 keeps all.

    Raises:
        InputError: a setting without meaning; the message names it and its range.
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = isinstance(field.default, int)
            if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
                raise InputError(f"{field.name} {value!r} must be {'a whole number' if whole else 'a number'}")
        if not 0 <= self.cfg_scale < math.inf:
            raise InputError(f"cfg_scale {self.cfg_scale} must be at least 0 and finite (1 is no guidance)")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature {self.temperature} must be at least 0 and finite (0 is greedy)")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k} must be at least 0 (0 keeps all)")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} must be in (0, 1] (1 keeps all)")

    @property
    def guided(self) -> bool:
        """Whether every image takes two rows, one of them unconditional."""
        return self.cfg_scale != 1

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sampling:
        """From JSON. Raises InputError: names that do not exist, or values without meaning."""
        if unknown := [name for name in values if name not in SETTINGS]:
            raise InputError(f"no sampling setting {unknown[0]!r}: there are {', '.join(SETTINGS)}")
        return cls(**values)


SETTINGS = tuple(field.name for field in dataclasses.fields(Sampling))


def overridden(stages: Sequence[tuple[str, Sampling]], overrides: Mapping[str, Any]) -> dict[str, Sampling]:
    """The settings of each stage, (name, defaults) in order, with `overrides` in place of single defaults.

    A name alone, such as `temperature`, is that of the first stage; with a stage's name before it, such as
    `fine_temperature`, it is that stage's. None is no override.

    Raises:
        InputError: no such setting or stage, or a value without meaning.
    """
    changes: dict[str, dict[str, Any]] = {name: {} for name, _ in stages}
    for key, value in overrides.items():
        places = [(name, setting) for name in changes for setting in SETTINGS if key == f"{name}_{setting}"]
        if key in SETTINGS:
            places = [(stages[0][0], key)]
        if not places:
            later = " or ".join(f"{name}_" for name in [*changes][1:])
            later = later and f", or {later} before one of them"
            raise InputError(f"no sampling setting {key!r}: there are {', '.join(SETTINGS)}{later}")
        if value is not None:
            changes[places[0][0]][places[0][1]] = value
    settings = {}
    for name, defaults in stages:
        try:
            settings[name] = dataclasses.replace(defaults, **changes[name])
        except InputError as error:
            raise InputError(str(error) if name == stages[0][0] else f"{name}_{error}") from None
    return settings
