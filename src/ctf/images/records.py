"""Records: encoded images at random access with their labels, whatever layout they come from."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctf.classes import composed
from ctf.errors import InputError, shortened
from ctf.images.formats import image_endings
from ctf.torchrun import rank_and_world

if TYPE_CHECKING:
    from pyarrow import Field

IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")
LABEL_COLUMNS = ("label", "cls", "labels")
LABEL_LIKE = re.compile("label|class|categor|target|cls", re.IGNORECASE)
LABEL_TYPES = re.compile(r"u?int\d|bool|(large_)?string|dictionary")  # pyarrow's; floats are more often scores
MAX_CLASSES = 1 << 20  # a larger number in a label column is a mistake, and a list of that many names takes the memory
#: int64 labels (n,), each in [0, number of classes), and the class names.
Labels = tuple[np.ndarray, list[str]]


@dataclass(frozen=True)
class Records:
    """Encoded images at random access.

    Attributes:
        labels: int64 (n,), each in [0, len(class_names)).
        class_names: one per label.
        name: index → what to call that image in a message, in one line.
        encoded: index → the bytes of an image file. Called from several threads.
        files: a line for each file that images and labels are read from, with what changes when the file does.
    """

    labels: np.ndarray
    class_names: list[str]
    name: Callable[[int], str]
    encoded: Callable[[int], bytes]
    files: Callable[[], list[str]] = list

    def subset(self, rows: np.ndarray) -> Records:
        """These images only, int64 (m,), in this order."""
        return Records(
            self.labels[rows],
            self.class_names,
            lambda index: self.name(int(rows[index])),
            lambda index: self.encoded(int(rows[index])),
            self.files,
        )


def warn(message: str) -> None:
    """A warning of one line, from the first of torchrun's processes only."""
    if rank_and_world()[0] == 0:
        warnings.warn(message, stacklevel=2)


def warn_of_namesake(name: str, *files: str) -> None:
    """Say that `name` is what is bundled, if a folder here is called so too, and holds one of `files` where given."""
    if os.path.isdir(name) and (not files or any(os.path.exists(os.path.join(name, file)) for file in files)):
        warn(f"{name} is the bundled one; the folder here is ./{name}")


def printable(name: str) -> str:
    """A file's name with line breaks and bytes that are no UTF-8 as escapes: what JSON and a terminal can hold."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], name)


def class_name(name: str) -> str:
    """A class name in one line and in one Unicode form."""
    return printable(composed(name))


def image_column(columns: Sequence[str], source: str) -> str:
    """The column that holds the images: "image" or the like, or an ending. Raises InputError: there is none."""
    known = [*(name for name in IMAGE_COLUMNS if name in columns), *filter(is_image_column, columns)]
    if not known:
        raise InputError(f"{source} has columns {', '.join(columns)}: name the one that holds the images 'image'")
    return known[0]


def is_image_column(name: str) -> bool:
    """Whether a column, or a part of a WebDataset example, holds images by its name."""
    return name.lower() in IMAGE_COLUMNS or f".{name.lower()}" in image_endings()


def label_like(fields: Iterable[Field], class_labels: Collection[str] = ()) -> list[str]:
    """Names of the columns that may hold labels: `class_labels`, and numbers or texts under a name such as "category".

    Args:
        fields: of a pyarrow schema.
        class_labels: columns that have a `ClassLabel` of `datasets`.
    """
    return [
        field.name
        for field in fields
        if field.name in class_labels or (LABEL_LIKE.search(field.name) and LABEL_TYPES.match(str(field.type)))
    ]


def label_column(columns: Sequence[str], candidates: Sequence[str], chosen: str | None, source: str) -> str | None:
    """The column that holds the labels: `chosen`, else "label", "cls" or "labels", else the only one of the candidates.

    None if there is none, or "" is chosen. A warning says what was guessed, or how to choose.

    Raises:
        InputError: no column has the chosen name, or several are candidates.
    """
    if chosen and chosen not in columns:
        raise InputError(f"{source} has no column {chosen!r}: it has {', '.join(columns) or 'none'}")
    if chosen is not None:
        return chosen or None
    if known := [name for name in LABEL_COLUMNS if name in columns]:
        return known[0]
    if len(candidates) > 1:
        raise InputError(
            f"{source} has no column 'label' but several that may hold labels, {', '.join(candidates)}: "
            f"choose one as in '{source}#{candidates[0]}', or none with '{source}#'"
        )
    if candidates:
        warn(f"{source}: labels are those of the column {candidates[0]!r}")
        return candidates[0]
    if others := [name for name in columns if not is_image_column(name) and not name.startswith("__")]:
        warn(f"{source}: none of its columns is taken for labels; choose one as in '{source}#{others[0]}'")
    return None


def column_labels(
    source: str,
    fields: Iterable[Field],
    features: Mapping[str, Any],
    chosen: str | None,
    values: Callable[[str], Sequence[Any]],
) -> Labels | None:
    """Labels of a table; None if no column holds any.

    Args:
        source: for messages.
        fields: of a pyarrow schema.
        features: of `datasets`, of which a `ClassLabel` has class names.
        chosen: as for `label_column`.
        values: from the name of a column to what stands in it.

    Raises:
        InputError: as `label_column` and `number_labels`.
    """
    fields = list(fields)
    named = {name: found for name, feature in features.items() if (found := getattr(feature, "names", None))}
    column = label_column([field.name for field in fields], label_like(fields, named), chosen, source)
    return None if column is None else number_labels(values(column), named.get(column), column, source)


def one_class(count: int) -> Labels:
    """Labels of images that have none."""
    return np.zeros(count, np.int64), ["image"]


def warn_of_folders(source: str, names: Iterable[str]) -> None:
    """Say that folders inside of shards are no classes, if there are several."""
    if len(folders := {name.rpartition("/")[0] for name in names}) > 1:
        warn(
            f"{source}: no example has a label, so all images are one class; if the folders in it are the classes "
            f"({shortened(sorted(folders))}), unpack it"
        )


def number_labels(
    values: Sequence[Any], names: list[str] | None, column: str, source: str, rows: Sequence[str] | None = None
) -> Labels:
    """Labels and class names of what stands in a column of labels.

    Args:
        values: all texts, whose sorted set are the class names; or all whole numbers. Whole floats, which pandas makes
            of integers, are numbers too.
        names: of the numbers; by default "0", "1", …
        column, source, rows: for messages. Rows are called by their numbers without `rows`.

    Raises:
        InputError: a value is neither or missing, or a number is outside the range of the names.
    """

    def place(row: int) -> str:
        return f"{source}: {f'row {row}' if rows is None else printable(rows[row])}"

    texts = any(isinstance(value, str) for value in values)
    for row, value in enumerate(values):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not (isinstance(value, str) and value if texts else whole):
            raise InputError(
                f"{place(row)} has {repr(value)[:40]} in its label column {column!r}: "
                "give every row a whole number, or every row a name"
            )
    if texts:
        strings, positions = np.unique([class_name(value) for value in values], return_inverse=True)
        return positions.astype(np.int64), strings.tolist()
    labels = [int(value) for value in values]
    class_names = [class_name(name) for name in names or numbered_classes(max(labels, default=0) + 1)]
    for row, label in enumerate(labels):
        if not 0 <= label < len(class_names):
            raise InputError(
                f"{place(row)} has the label {label}, outside 0 to {len(class_names) - 1}: "
                "choose a split that has labels, or fix the column"
            )
    return np.array(labels, dtype=np.int64), class_names


def numbered_classes(count: int) -> list[str]:
    """Names of classes that have none: "0", "1", … Raises InputError: more classes than can be meant."""
    if count > MAX_CLASSES:
        raise InputError(f"labels up to {count - 1:,}: number classes from 0, at most {MAX_CLASSES:,} of them")
    return [str(label) for label in range(count)]
