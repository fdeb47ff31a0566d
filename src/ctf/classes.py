"""Class names: which class a label means, and labels of one list of classes in another."""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from ctf.errors import InputError, did_you_mean, nearest, shortened

if TYPE_CHECKING:
    import numpy as np


def class_index(names: Sequence[str], label: int | str) -> int:
    """The index of a class in `names`.

    Args:
        names: of the classes, in order.
        label: an index as an int; or a name. Names are equal if their letters are, however Unicode composes them.
            Where no class has a number for its name, a number in a string is an index too.

    Raises:
        InputError: no such class, or several of this name.
    """
    if isinstance(label, str):
        same = [i for i, name in enumerate(names) if name == label]
        same = same or [i for i, name in enumerate(names) if composed(name) == composed(label)]
        if len(same) > 1:
            raise InputError(f"class {label!r} is the name of several, {', '.join(map(str, same))}: give one's index")
        if same:
            return same[0]
        if not is_number(label) or any(map(is_number, names)):
            similar = find_classes(names, label)
            hint = did_you_mean([names[i] for i in similar] if similar and label else nearest(label, names), "{!r}")
            hint = hint or ": `ctf info MODEL --classes WORD` searches their names"
            raise InputError(f"class {label!r} does not exist{hint}")
        label = int(label)
    try:
        index = -1 if isinstance(label, bool) else operator.index(label)
    except TypeError:
        raise InputError(f"class {label!r}: give a name, or an index as a whole number") from None
    if not 0 <= index < len(names):
        raise InputError(f"class {label}: the model has the classes 0 … {len(names) - 1}")
    return index


def find_classes(names: Sequence[str], words: str) -> list[int]:
    """The indices of the classes whose name holds each of some words, or parts of words, in any case and order."""
    parts = composed(words).casefold().split()
    return [i for i, name in enumerate(names) if all(part in composed(name).casefold() for part in parts)]


def typed_index(names: Sequence[str], label: int | str) -> int:
    """`class_index` of a label on a command line, where a number without quotes may be meant for a name.

    Raises:
        InputError: as `class_index`; a number that is the name of one class and the index of another.
    """
    if not isinstance(label, str) and str(label) in names and (named := class_index(names, str(label))) != label:
        if not 0 <= label < len(names):
            return named
        raise InputError(
            f"label {label} is ambiguous: write a list of all labels, '[\"{label}\"]' with the class of this name, or "
            f"'[\"{names[label]}\"]' with the one of this index"
        )
    return class_index(names, label)


def typed_label(names: Sequence[str], index: int) -> int | str:
    """The label to type on a command line for a class: its index, or its name if a class is called like the index."""
    return names[index] if str(index) in names else index


def renumbered(
    labels: np.ndarray, names: Sequence[str], known: Sequence[str], whose: str, other: str = "the model's"
) -> np.ndarray:
    """Labels that count in `names`, counted in `known` instead: the class of the same name.

    Args:
        labels: integers (n,) below len(names).
        names: of the classes that the labels count.
        known: of the classes to count in, more or fewer, in any order.
        whose, other: what to call the two in a message.

    Returns:
        int64 (n,).

    Raises:
        InputError: a label's class is not one of `known`; the message names it.
    """
    import numpy as np

    if list(names) == list(known):
        return labels
    index_of: dict[str, int] = {}
    for index, name in enumerate(map(composed, known)):
        index_of[name] = -1 if name in index_of else index  # a name that occurs twice says nothing
    found = np.array([index_of.get(composed(name), -1) for name in names], dtype=np.int64)[labels]
    if (found < 0).any():
        missing = names[int(labels[found < 0][0])]
        raise InputError(
            f"{whose} has images of the class {missing!r}, which is none of {other} classes ({shortened(known)}): take "
            "them out, or name its classes alike"
        )
    return found


def check_same(names: Sequence[str], others: Sequence[str], whose: str, theirs: str) -> None:
    """Raise InputError, which names the first class that differs, unless these are the same classes in order."""
    both = zip_longest(map(composed, names), map(composed, others), fillvalue="none")
    for place, (here, there) in enumerate(both):
        if here != there:
            raise InputError(
                f"{whose} and {theirs} have different classes: class {place} is {here} there, {there} here"
            )


def is_number(text: str) -> bool:
    """True if a text is a whole number as Python writes it."""
    return re.fullmatch(r"-?[1-9][0-9]*|0", text) is not None


def composed(name: str) -> str:
    """A name in Unicode's form NFC: macOS stores "é" as two characters, keyboards type one."""
    return unicodedata.normalize("NFC", name)
