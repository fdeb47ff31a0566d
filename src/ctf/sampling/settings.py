"""Sampling: how a stage draws, with defaults that travel with its weights; free of heavy imports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args

from ctf.errors import InputError, did_you_mean, nearest

#: Which positions a step takes: fixed before anything is drawn, or the most confident draws.
FixedOrder = Literal["raster", "random", "halton", "locality", "scales"]
Order = Literal[FixedOrder, "confidence"]
#: How the number of known positions grows with the steps.
Schedule = Literal["cosine", "arccos", "uniform"]
#: How guidance grows.
CfgSchedule = Literal["constant", "steps", "known"]
#: Limits of temperature and guidance: beyond them every sample is the most probable token or a uniform one, and
#: float32 overflows.
SMALLEST, LARGEST = 1e-6, 1e6

#: Metadata of fields that are younger than published results, which are found while these are at their defaults.
YOUNG = {"young": True}


@dataclass(frozen=True)
class Sampling:
    """Settings of one stage.

    Attributes:
        cfg_scale: classifier-free guidance, at most 1e6; 1 is none.
        temperature: divides the guided logits, from 1e-6 to 1e6; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to cumulative probability p; 1 keeps all.
        cfg_schedule: guidance at every step alike ("constant"), or growing from 1 in the first step to cfg_scale in the
            last ("steps"). "known" grows with the share of positions known before the step, and so never reaches
            cfg_scale.
        steps: number of steps; None is the kind's default.
        order: of the positions; None is the kind's default.
        schedule: how many positions each step takes, see `group_sizes`.
        order_seed: of the orders random and locality; all images share one order.
        sampler: how a step chooses labels: "independent", "confidence" or one of yours, "file.py:Class"; None is the
            sampler of the order.
        noise: on the confidence, in nats; step t of T has 1 − t/T of it (MaskGIT's 4.5).
        filter: one of yours after top-k and top-p, "file.py:function": float32 logits (…, V) → the same, −inf for what
            is never drawn.

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
    sampler: str | None = field(default=None, metadata=YOUNG)
    noise: float = field(default=4.5, metadata=YOUNG)
    filter: str | None = field(default=None, metadata=YOUNG)

    def __post_init__(self) -> None:
        for name, kind, what in (
            *((name, Integral, "a whole number") for name in ("top_k", "steps", "order_seed")),
            *((name, Real, "a number") for name in ("cfg_scale", "temperature", "top_p", "noise")),
            *((name, str, "a name") for name in ("sampler", "filter")),
        ):
            value: Any = getattr(self, name)
            optional = name in ("steps", "sampler", "filter")
            if not (optional and value is None) and (isinstance(value, bool) or not isinstance(value, kind)):
                raise InputError(f"{name} {value!r} must be {what}")
            if value is not None and hasattr(value, "item"):  # of NumPy, which JSON does not know
                object.__setattr__(self, name, value.item())
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
        if not 0 <= self.cfg_scale <= LARGEST:
            raise InputError(f"cfg_scale {self.cfg_scale} must be from 0 to {LARGEST:.0e} (1 is no guidance)")
        if self.temperature != 0 and not SMALLEST <= self.temperature <= LARGEST:
            raise InputError(
                f"temperature {self.temperature} must be 0, which is greedy, or from {SMALLEST:.0e} to {LARGEST:.0e}"
            )
        if not 0 <= self.noise <= LARGEST:
            raise InputError(f"noise {self.noise} must be from 0 to {LARGEST:.0e}")
        if self.sampler == "independent" and self.order == "confidence":
            raise InputError("sampler independent settles all positions at once: choose another order than confidence")
        if self.top_k < 0:
            raise InputError(f"top_k {self.top_k} must be at least 0 (0 keeps all)")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p {self.top_p} must be in (0, 1] (1 keeps all)")

    @property
    def guided(self) -> bool:
        """Whether every image takes two rows, one of them unconditional."""
        return self.cfg_scale != 1

    def cfg_scale_at(self, step: int, steps: int, known: float) -> float:
        """Guidance in step `step` of 0 … steps − 1, before which a share `known` of the positions is known."""
        if self.cfg_schedule == "known":
            share = known
        elif self.cfg_schedule == "steps" and steps > 1:
            share = step / (steps - 1)
        else:
            return self.cfg_scale
        return 1 + (self.cfg_scale - 1) * share

    def for_file(self) -> dict[str, Any]:
        """What a model's file keeps: all but the user's own code, which is named at every call."""
        values = dataclasses.asdict(self)
        return {name: None if name in USER_CODE and is_own(value) else value for name, value in values.items()}

    @classmethod
    def of_file(cls, values: Mapping[str, Any]) -> Sampling:
        """From a model's file, as `of`.

        Raises:
            InputError: as `of`; the file names code to run, which files of others must not.
        """
        values = dict(values)
        if named := [str(values[name]) for name in USER_CODE if is_own(values.get(name))]:
            raise InputError(
                f"the file names code to run ({named[0]}): take it out, and give it as an option if it is yours"
            )
        return cls.of(values)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sampling:
        """From JSON. Raises InputError: names that do not exist, or values without meaning."""
        if unknown := [name for name in values if name not in SETTINGS]:
            raise InputError(f"no sampling setting {unknown[0]!r}: there are {', '.join(SETTINGS)}")
        return cls(**values)


#: Settings that may name a user's code.
USER_CODE = ("sampler", "filter")


def is_own(value: Any) -> bool:
    """Whether a setting names a user's code, as "file.py:name"."""
    return isinstance(value, str) and ":" in value


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
            known = [*SETTINGS, *(f"{name}_{setting}" for name in [*changes][1:] for setting in SETTINGS)]
            hint = did_you_mean(nearest(key, known)).replace(":", ";", 1)
            raise InputError(f"no sampling setting {key!r}: there are {', '.join(SETTINGS)}{later}{hint}")
        if value is not None:
            changes[places[0][0]][places[0][1]] = value
    settings = {}
    for name, defaults in stages:
        try:
            settings[name] = dataclasses.replace(defaults, **changes[name])
        except InputError as error:
            raise InputError(str(error) if name == stages[0][0] else f"{name}_{error}") from None
    return settings
