"""The classes of a model as a visitor finds them: by design and subject, by name, or by Unicode's keywords."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import get_close_matches

from ctf.classes import class_index, composed, is_number
from ctf.errors import InputError
from ctf.files import read_json
from ctf.images.sources import EMOJI

EMOJI_KEYWORDS = EMOJI.with_name("emoji_keywords.json")  # keyword → subgroups, most of its emoji first → how many
#: Classes of the bundled model that it draws well.
EXAMPLES = (
    *("noto face-smiling", "fluent-emoji food-fruit", "twemoji heart", "noto cat-face"),
    *("noto person-role", "noto plant-flower", "fluent-emoji face-affection"),
)


class Classes:
    """Searches the class names of a model.

    Attributes:
        names: of the classes, in one Unicode form.
        designs: the first words, where the names are pairs such as "noto heart" of a design and a subject; else empty.
        examples: some names to begin with.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = [composed(name) for name in names]
        pairs = [name.partition(" ")[::2] for name in self.names]
        designs, subjects = ({*parts} for parts in zip(*pairs, strict=True))
        paired = all(subjects) and len(designs) > 1 and len(designs) * len(subjects) < 2 * len(pairs)
        self.designs = sorted(designs) if paired else []
        self._pairs = pairs if paired else [("", name) for name in self.names]
        self._subjects = sorted({subject for _, subject in self._pairs})
        self._found_by = {
            keyword: here
            for keyword, subgroups in read_json(EMOJI_KEYWORDS).items()
            if (here := {subgroup: count for subgroup, count in subgroups.items() if subgroup in self._subjects})
        }
        self.examples = [name for name in EXAMPLES if name in self.names]
        self.examples = self.examples or self.names[:: -(-len(self.names) // len(EXAMPLES))]

    def choices(self) -> list[tuple[str, str]]:
        """What to show and what to send for each subject, first for all of them. What is shown holds the keywords, so
        that a drop-down list finds the subject by them. A name that occurs twice is sent as its index."""
        shown = [("all classes, evenly spread", "")]
        if not self.designs:
            times = Counter(self.names)
            return shown + [(f"{n} ({i})", str(i)) if times[n] > 1 else (n, n) for i, n in enumerate(self.names)]
        keywords: dict[str, Counter[str]] = defaultdict(Counter)
        for keyword, subjects in self._found_by.items():
            for subject, count in subjects.items():
                keywords[subject][keyword] = count
        for subject in self._subjects:
            common = ", ".join(keyword for keyword, _ in keywords[subject].most_common())
            shown.append((f"{subject} · {common}" if common else subject, subject))
        return shown

    def parted(self, text: str) -> tuple[str, str]:
        """A class, or what was typed for one → its subject, and the design in it, "" if there is none."""
        design, _, rest = composed(text).strip().partition(" ")
        return (rest, design) if design in self.designs else (composed(text).strip(), "")

    def find(self, text: str) -> list[int]:
        """The classes that a text means.

        Args:
            text: the name of a class or its index; a design, a subject or both; a keyword, or a part of a name, in
                place of the subject. "" means all classes.

        Raises:
            InputError: none. The message names the nearest word.
        """
        if text in self.names or is_number(text):
            return [class_index(self.names, text if text in self.names else int(text))]
        words, design = self.parted(text)
        for subjects in self._meant(words):
            found = [i for i, (d, s) in enumerate(self._pairs) if s in subjects and d == (design or d)]
            if found:
                return found
        near = get_close_matches(words, [*self._subjects, *self._found_by], n=1)
        raise InputError(f"no such class: {text!r}" + "".join(f"; did you mean {word!r}?" for word in near))

    def _meant(self, words: str) -> list[list[str]]:
        """Subjects that some words may mean, the likeliest first."""
        parts = words.casefold().split()
        alike = [s for s in self._subjects if all(part in s.casefold() for part in parts)]
        begun = [[*s] for keyword, s in self._found_by.items() if keyword.startswith(words.casefold())]
        exact = [[s] for s in self._found_by.get(words.casefold(), [])]
        return [[words], *exact, alike, *begun]
