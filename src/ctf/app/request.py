"""What a visitor asks for: a control for each setting of each stage, checked values, the address that holds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints
from urllib.parse import urlencode

import numpy as np

from ctf.app.classes import Classes
from ctf.errors import InputError
from ctf.sampling.settings import SETTINGS, Sampling
from ctf.stages.stage import Stage

#: At once: a page of them, and what a machine without a GPU makes in seconds.
MOST_IMAGES = 16
#: Whole numbers that JavaScript does not round.
LARGEST_SEED = 2**53 - MOST_IMAGES
#: From, to and step of the settings that are moved rather than typed.
SPANS = {"cfg_scale": (0.0, 10.0, 0.1), "temperature": (0.0, 2.0, 0.05), "top_p": (0.01, 1.0, 0.01)}


@dataclass(frozen=True)
class Control:
    """A setting of a stage that a visitor may change.

    Attributes:
        stage, setting: whose, and which of `Sampling`.
        value: the model's own.
        whole: whether it is a whole number.
        choices: the words that it may be, if it is one.
        span: from, to and step, if it is moved on a slider.
    """

    stage: str
    setting: str
    value: Any
    whole: bool = False
    choices: tuple[str, ...] = ()
    span: tuple[float, float, float] | None = None

    @property
    def key(self) -> str:
        """As `StagePipeline.sampling` and the command know it: `fine_temperature`."""
        return f"{self.stage}_{self.setting}"

    def read(self, value: Any) -> Any:
        """What a form or an address holds as the setting's own type; None is none. Raises InputError: no number."""
        if value is None or self.choices:
            return value
        return number(self.key, value, self.whole)


def number(name: str, value: Any, whole: bool = True) -> int | float:
    """A number from a form (often a float) or an address (a text). Raises InputError: it is none, or not whole."""
    try:
        read = int(value) if whole else float(value)
        if isinstance(value, bool) or not math.isfinite(read) or (isinstance(value, float) and value != read):
            raise ValueError
        return read
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} {str(value)[:40]!r} must be a {'whole ' * whole}number") from None


def controls_of(stage: Stage) -> list[Control]:
    """The settings that change something in this stage: those of steps and order only where it has a choice."""
    own, hints, found = stage.resolved(), get_type_hints(Sampling), []
    several = len(stage.possible_steps) > 1
    pointless = {
        "steps": not several,
        "schedule": not several,
        "order": not several or len(stage.possible_orders) == 1,
        "order_seed": not several or not {"random", "locality"} & {*stage.possible_orders},
        "cfg_schedule": stage.possible_steps[-1] == 1,
        **dict.fromkeys(("sampler", "noise", "filter"), True),  # for the command line and Python
    }
    for name in SETTINGS:
        if pointless.get(name, False):
            continue
        value, types = getattr(own, name), {hints[name], *get_args(hints[name])}
        if name == "order":
            found.append(Control(stage.name, name, value, choices=stage.possible_orders))
        elif isinstance(value, str):
            choices = tuple(word for word in get_args(hints[name]) if word != "linear")  # another word for steps
            found.append(Control(stage.name, name, value, choices=choices))
        else:
            span = SPANS.get(name)
            if name == "steps":
                span = (stage.possible_steps[0], stage.possible_steps[-1], 1)
            elif span:
                span = (span[0], max(span[1], value), span[2])
            found.append(Control(stage.name, name, value, int in types, span=span))
    return found


@dataclass(frozen=True)
class ImageRequest:
    """Images to make. Its address leads back to the same ones.

    Attributes:
        label: what `Classes.find` reads: a name, an index, or words that find one or several classes.
        num: how many images, up to `MOST_IMAGES`.
        seed: image i uses seed + i.
        settings: in place of the model's own, see `StagePipeline.sampling`.

    Raises:
        InputError: a number out of bounds.
    """

    label: str = ""
    num: int = 8
    seed: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.num <= MOST_IMAGES:
            raise InputError(f"num {self.num}: ask for 1 to {MOST_IMAGES} images at a time")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"seed {self.seed}: give a whole number from 0 to 2^53 − {MOST_IMAGES}")

    def labels(self, classes: Classes) -> list[int]:
        """A class index for each image, evenly spread over those found. Raises InputError: no such class."""
        found = classes.find(self.label)
        return [found[i] for i in np.linspace(0, len(found) - 1, self.num).round().astype(int)]

    def query(self) -> str:
        """The part of the address behind "?"."""
        settings = {name: value for name, value in self.settings.items() if value is not None}
        return urlencode({"label": self.label, "num": self.num, "seed": self.seed, **settings})

    @classmethod
    def from_form(cls, controls: list[Control], label: Any, num: Any, seed: Any, values: Any) -> ImageRequest:
        """Read what a form, an address or a program gives; `values` are settings by their keys, None is none.

        Raises:
            InputError: a number that is none, or a setting that there is not.
        """
        if not isinstance(values, Mapping):
            raise InputError('settings: give names and values, such as {"coarse_temperature": 0.9}')
        known = {control.key: control for control in controls}
        if unknown := values.keys() - known.keys():
            raise InputError(f"no setting {min(unknown)[:40]!r}: there are {', '.join(known)}")
        settings = {name: known[name].read(value) for name, value in values.items()}
        return cls("" if label is None else str(label), int(number("num", num)), int(number("seed", seed)), settings)

    @classmethod
    def from_query(cls, controls: list[Control], query: Mapping[str, str]) -> ImageRequest:
        """The opposite of `query`; raises InputError as `from_form`."""
        values = dict(query)
        first = {name: values.pop(name, getattr(cls, name)) for name in ("label", "num", "seed")}
        return cls.from_form(controls, **first, values=values)
