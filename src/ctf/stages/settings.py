"""Settings that only some types of stages have; free of heavy imports so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ctf.sampling.settings import YOUNG


@dataclass(frozen=True)
class KindSettings:
    """A type of stage's own settings, here none: a subclass is a kind's `Settings`, its fields options of `ctf train`.

    Their values reach the kind's `configure` by keyword.
    """


#: What a masked stage is trained for, see `MaskedSettings`.
Rounds = Literal["one", "any", "scales"]


@dataclass(frozen=True)
class MaskedSettings(KindSettings):
    """Settings of masked stages.

    Attributes:
        rounds: what to train for: "one" round, in which all labels are hidden, as in the paper's stage 2, "any" number
            of them, hiding a random share (MaskGIT), or a round for each of several "scales", hiding a random scale and
            those behind it; null is one where labels are given, else any.
    """

    rounds: Rounds | None = None


@dataclass(frozen=True)
class NextScaleSettings(KindSettings):
    """Settings of next-scale stages.

    Attributes:
        drop_path: probability of leaving out a branch of the last block for an image, in training; blocks before it
            have less, the first none. Null is VAR's, 1/10 at a depth of 24 and in proportion.
    """

    drop_path: float | None = field(default=None, metadata=YOUNG)


#: Those of ctf's own kinds, all of them options of every stage's training.
BUILT_IN: tuple[type[KindSettings], ...] = (MaskedSettings, NextScaleSettings)
