"""Labels of a folder of images that stand in tables inside of it: metadata files, and those of Tiny ImageNet."""

from __future__ import annotations

import io
import posixpath
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ctf.classes import composed, is_number
from ctf.errors import InputError, first_line, shortened
from ctf.images.records import Labels, class_name, label_column, label_like, number_labels, one_class, printable, warn

if TYPE_CHECKING:
    from pyarrow import Table

#: From a file's path below a folder to what is in the file.
Read = Callable[[str], bytes]

METADATA = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})  # the names that `datasets` reads
WNIDS, WORDS, ANNOTATIONS = "wnids.txt", "words.txt", "val_annotations.txt"


def label_tables(files: Sequence[str]) -> list[str]:
    """The paths below a folder that `metadata_labels` and `tiny_imagenet_labels` read."""
    names = METADATA | {WNIDS, WORDS, ANNOTATIONS} if WNIDS in files else METADATA
    return [path for path in files if posixpath.basename(path) in names]


def metadata_labels(
    source: str, tables: Sequence[str], images: Sequence[str], read: Read, column: str | None
) -> Labels | None:
    """Labels of `images` from the metadata files; None without labels there, one class if `column` is "".

    As for `datasets`, the column "file_name" holds paths from the folder of the metadata file on.

    Raises:
        InputError: a file that cannot be read, images without a row, or no such column; and as `label_column` and
            `number_labels`.
    """
    if column == "":
        return one_class(len(images))
    values: dict[str, Any] = {}
    found = column
    for path in tables:
        if posixpath.basename(path) not in METADATA:
            continue
        table = read_table(source, path, read)
        if "file_name" not in table.column_names:
            warn(f"{source}/{path} is not read: it has no column 'file_name'")
            continue
        columns = [name for name in table.column_names if name != "file_name"]
        found = label_column(columns, label_like(table.schema), column, source)
        if found is not None:
            names = [composed(str(name)) for name in table["file_name"].to_pylist()]
            paths = [posixpath.normpath(posixpath.join(posixpath.dirname(path), name)) for name in names]
            for file, value in zip(paths, label_values(source, path, read, table, found), strict=True):
                if file in values and values[file] != value:
                    raise InputError(f"{source}/{path}: {printable(file)} has several labels: leave it one row")
                values[file] = value
    if not values:
        if column is None:
            return None
        raise InputError(
            f"{source} has no metadata.csv with a column {column!r}: leave out '#{column}', or add the file"
        )
    keys = [composed(path) for path in images]
    if without := [printable(key) for key in keys if key not in values]:
        raise InputError(f"{source}: metadata have no row for {shortened(without)}: add rows, or move the images away")
    return number_labels([values[key] for key in keys], None, str(found), source, keys)


def label_values(source: str, path: str, read: Read, table: Table, column: str) -> list[Any]:
    """A column of labels; of a .csv as text where they are names, such as 01, true or 2020-01-01."""
    from pyarrow import types

    kind = table[column].type
    if path.endswith(".csv") and not (types.is_string(kind) or types.is_floating(kind)):
        texts = read_table(source, path, read, text=column)[column].to_pylist()
        if not all(text is None or is_number(text) for text in texts):
            return texts
    return table[column].to_pylist()


def tiny_imagenet_labels(source: str, tables: Sequence[str], images: Mapping[str, str], read: Read) -> Labels | None:
    """Labels of images in Tiny ImageNet's folder as it is published, numbered as in wnids.txt and named by words.txt.

    None without wnids.txt, and for images without labels, as in its folder "test".

    Args:
        source: what to call the folder in a message.
        tables: paths below it.
        images: path → name of its class folder, a WordNet id unless the images are listed in val_annotations.txt.
        read: called with the path of a table.

    Raises:
        InputError: an image whose class is not in wnids.txt, or a table that cannot be read.
    """
    if WNIDS not in tables:
        return None

    def columns(path: str, count: int) -> list[list[Any]]:
        return [column.to_pylist() for column in read_table(source, path, read).columns[:count]]

    wnids = columns(WNIDS, 1)[0]
    wnid_of = dict(images)
    for path in tables:
        if posixpath.basename(path) == ANNOTATIONS:
            folder = posixpath.join(posixpath.dirname(path), "images")
            listed = zip(*columns(path, 2), strict=True)
            wnid_of |= {key: wnid for name, wnid in listed if (key := f"{folder}/{name}") in images}
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if label_of.keys().isdisjoint(wnid_of.values()):
        return None
    if unknown := [printable(path) for path, wnid in wnid_of.items() if wnid not in label_of]:
        raise InputError(f"{source}: no class in {WNIDS} for {shortened(unknown)}: add it, or move the images away")
    words = dict(zip(*columns(WORDS, 2), strict=True)) if WORDS in tables else {}
    return np.array([label_of[wnid] for wnid in wnid_of.values()], np.int64), distinct_names(wnids, words)


def distinct_names(wnids: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """The first of each WordNet id's names, with the id where several ids have it: "crane (n02012849)"."""
    names = [class_name(words.get(wnid, wnid).partition(",")[0]) for wnid in wnids]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True)]


def read_table(source: str, path: str, read: Read, text: str | None = None) -> Table:
    """A .csv, .jsonl, .parquet or .txt file, the last with tabs between columns and without a header.

    The column `text` of a .csv is not converted to numbers.
    """
    from pyarrow import ArrowException, csv, json, parquet, string

    data = read(path)
    file, whole = io.BytesIO(data), max(1, len(data))  # types are inferred from the first block: from all of it
    try:
        if path.endswith(".csv"):
            convert = csv.ConvertOptions(column_types={text: string()}, strings_can_be_null=True) if text else None
            table = csv.read_csv(file, csv.ReadOptions(block_size=whole), convert_options=convert)
        elif path.endswith(".txt"):
            options = csv.ReadOptions(block_size=whole, autogenerate_column_names=True)
            table = csv.read_csv(file, options, csv.ParseOptions(delimiter="\t", quote_char=False))
        elif path.endswith(".jsonl"):
            table = json.read_json(file, json.ReadOptions(block_size=whole))
        else:
            table = parquet.read_table(file)
        if twice := [name for name, count in Counter(table.column_names).items() if count > 1]:
            raise InputError(f"{source}/{path} has several columns called {printable(twice[0])!r}: rename them")
        return table
    except (ArrowException, UnicodeDecodeError) as error:  # names of columns are decoded when they are asked for
        raise InputError(f"{source}/{path} cannot be read ({first_line(error)}): write it again") from None
