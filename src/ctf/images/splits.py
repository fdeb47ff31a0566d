"""Names of splits, as people spell them: train, Training, training_set, train2017, val, dev, …"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from ctf.errors import InputError

#: What each word means; the spellings are those of `datasets`.
SPLIT_OF = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("val", "valid", "validation", "dev"),
        "test": ("test", "testing", "eval", "evaluation"),
    }.items()
    for word in words
}
_WORDS = "|".join(sorted(SPLIT_OF, key=len, reverse=True))
# A word alone in any case, or the first of "trainA" and "TestImages"; not that of "trainer" or "TESTAMENT".
_WORD = re.compile(rf"(?<![A-Za-z])(?:(?i:{_WORDS})(?![A-Za-z])|(?:{_WORDS}|{_WORDS.title()})(?=[A-Z]))")


def split_of(name: str) -> str | None:
    """ "train", "validation" or "test", if such a word is in a name."""
    found = _WORD.search(name)
    return SPLIT_OF[found[0].lower()] if found else None


def splits_among(names: Iterable[str]) -> list[str]:
    """The splits among `names`, all in one folder: only such a word, or the same name as another but for it.

    So "seg_train" and "seg_test" are splits, and "freight train" beside "bus" is a class.
    """
    rest = {name: _WORD.sub("", name, count=1) for name in names if split_of(name)}
    counts = Counter(rest.values())
    return [name for name, other in rest.items() if not other or counts[other] > 1]


def match_split(split: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `split` means: the same, the same in another case, or another spelling of that split.

    None if no name does, or several do.
    """
    names = list(names)
    for form in (str, str.casefold, split_of):
        wanted = form(split)
        found = [name for name in names if wanted is not None and form(name) == wanted]
        if len(found) == 1:
            return found[0]
    return None


def find_split(source: str, split: str, names: Iterable[str]) -> str:
    """`match_split` among all splits of `source`. Raises InputError: it is none of them."""
    names = list(names)
    name = match_split(split, names)
    if name is None:
        raise unknown_split(source, split, names)
    return name


def unchosen_split(source: str, names: Iterable[str]) -> InputError:
    """The error of a source whose splits, all of them `names`, would be taken together: test images trained on."""
    return InputError(f"{source} holds splits: choose one of {', '.join(sorted(map(str, names)))} with --split")


def unknown_split(source: str, split: str, splits: Iterable[str]) -> InputError:
    """The error for a split that `source` does not have."""
    return InputError(f"{source} has no split {split!r}: it has {', '.join(splits) or 'none, so name no split'}")
