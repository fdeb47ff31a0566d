"""What a visitor asks for: a control for each setting of each stage, checked values, the address that holds them."""

from __future__ import annotations

import dataclasses
import json
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
        component, options: Gradio's component for it, and what that takes.
    """

    stage: str
    setting: str
    value: Any
    component: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """As `StagePipeline.sampling` and the command know it: `fine_temperature`."""
        return f"{self.stage}_{self.setting}"


def controls_of(stage: Stage) -> list[Control]:
    """The settings that change something in this stage: those of steps and order only where it has a choice."""
    own, hints, found = stage.resolved(), get_type_hints(Sampling), []
    steps, orders = stage.possible_steps, stage.possible_orders
    pointless = {"sampler", "noise", "filter"}  # for the command line and Python
    if steps[-1] == 1:
        pointless |= {"cfg_schedule"}
    if len(steps) == 1:
        pointless |= {"steps", "schedule", "order", "order_seed"}
    if len(orders) == 1:
        pointless |= {"order"}
    if not {"random", "locality"} & {*orders}:
        pointless |= {"order_seed"}
    for name in (name for name in SETTINGS if name not in pointless):
        value: Any = getattr(own, name)
        component, options = "Number", dict[str, Any](precision=0, minimum=0)
        if isinstance(value, str):
            words = orders if name == "order" else get_args(hints[name])
            component, options = "Dropdown", {"choices": [*words]}
        elif name == "steps" or name in SPANS:
            low, high, step = SPANS.get(name, (steps[0], steps[-1], 1))
            component, options = "Slider", {"minimum": low, "maximum": max(high, value), "step": step}
        found.append(Control(stage.name, name, value, component, options))
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
        InputError: a number out of bounds, or none.
    """

    label: str = ""
    num: int = 8
    seed: int = 0
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.num) is not int or not 1 <= self.num <= MOST_IMAGES:
            raise InputError(f"num {self.num}: ask for 1 to {MOST_IMAGES} images at a time")
        if type(self.seed) is not int or not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"seed {self.seed}: give a whole number from 0 to 2^53 − {MOST_IMAGES}")

    def labels(self, classes: Classes) -> list[int]:
        """A class index for each image, evenly spread over those found. Raises InputError: no such class."""
        found = classes.find(self.label)
        return [found[i] for i in np.linspace(0, len(found) - 1, self.num).round().astype(int)]

    def query(self) -> str:
        """The part of the address behind "?"."""
        return urlencode({"label": self.label, "num": self.num, "seed": self.seed, **self.settings})

    @classmethod
    def from_query(cls, controls: list[Control], query: Mapping[str, str]) -> ImageRequest:
        """The opposite of `query`. Raises InputError: a setting that is none of the controls'."""
        known = ("label", "num", "seed", *(control.key for control in controls))
        if unknown := query.keys() - {*known}:
            raise InputError(f"no setting {min(unknown)[:40]!r}: there are {', '.join(known)}")
        values: dict[str, Any] = {name: text if name == "label" else _parsed(text) for name, text in query.items()}
        first: dict[str, Any] = {name: values.pop(name) for name in known[:3] if name in values}
        return cls(**first, settings=values)


def _parsed(text: str) -> Any:
    """A number, or the word that it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
