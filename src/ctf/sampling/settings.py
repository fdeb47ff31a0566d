"""Sampling: how a stage draws, with defaults that travel with its weights; free of heavy imports."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from ctf.errors import InputError

#: Which positions a step takes: fixed before anything is drawn, or the most confident draws.
FixedOrder = Literal["raster", "random", "halton", "locality"]
Order = Literal[FixedOrder, "confidence"]
#: How the number of known positions grows with the steps.
Schedule = Literal["cosine", "arccos", "uniform"]
CfgSchedule = Literal["constant", "linear"]


@dataclass(frozen=True)
class Sampling:
    """Settings of one stage.

    Attributes:
        cfg_scale: classifier-free guidance; 1 is none.
        temperature: divides the guided logits; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to cumulative probability p; 1 keeps all.
        cfg_schedule: guidance at every step alike, or growing from 1 to cfg_scale with the share of known positions.
        steps: in how many the stage draws; None is the kind's own choice.
        order: of the positions; None is the kind's own choice.
        schedule: how many positions each step takes, see `group_sizes`.
        order_seed: of the orders random and locality; all images share one order.

    Raises:
        InputError: a setting without meaning; the message names it and its range.
    """

    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_schedule: CfgSchedule = "constant"
    steps: int | None = None
    order: Order | None = None
    schedule: Schedule = "cosine"
    order_seed: int = 0

    def __post_init__(self) -> None:
        for name, kind, what in (
            *((name, Integral, "a whole number") for name in ("top_k", "steps", "order_seed")),
            *((name, Real, "a number") for name in ("cfg_scale", "temperature", "top_p")),
        ):
            value = getattr(self, name)
            if not (name == "steps" and value is None) and (isinstance(value, bool) or not isinstance(value, kind)):
                raise InputError(f"{name} {value!r} must be {what}")
        choices = {
            "cfg_schedule": get_args(CfgSchedule),
            "order": (None, *get_args(Order)),
            "schedule": get_args(Schedule),
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                words = ", ".join(word for word in allowed if word)
                raise InputError(f"{name} {value!r} does not exist: choose one of {words}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps {self.steps} must be at least 1")
        if not 0 <= self.order_seed < 2**32:
            raise InputError(f"order_seed {self.order_seed} must be from 0 to 2^32 − 1")
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

    def cfg_scale_at(self, known: float) -> float:
        """Guidance where a share `known` of the positions is known."""
        return self.cfg_scale if self.cfg_schedule == "constant" else 1 + (self.cfg_scale - 1) * known

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
