"""Images at URLs that `fsspec` opens (s3://, gs://, https://, file://, …): folders, Parquet, WebDataset shards.

They are read where they lie. What opening reads is the list of files and, of shards, where their images and labels are;
after that an image costs the bytes of itself (of Parquet: of its row group).
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ctf.errors import InputError
from ctf.files import cache_folder, read_json, write_json
from ctf.images.sources import (
    EXTENSIONS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_NAMES,
    Records,
    check_no_splits,
    labelled_files,
    number_labels,
    printable,
    unknown_split,
)
from ctf.progress import progress_bar
from ctf.torchrun import rank_and_world

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow import ChunkedArray
    from pyarrow.parquet import FileMetaData

CONNECTIONS = 16  # files whose beginnings and ends are read at a time
#: What kinds of storage call size, checksum and time of a file.
STATES = ("size", "ETag", "etag", "Content-MD5", "md5Hash", "mtime", "LastModified", "Last-Modified", "last_modified")
KEPT_ROW_GROUPS = 4  # decoding threads are a batch or two apart
Result = TypeVar("Result")


class UnreachableError(InputError):
    """An image may be sound, but its bytes did not come: it must not be left out as unreadable."""


def is_url(source: str) -> bool:
    """Whether `url_records` reads it: not the Hub's data sets, which `datasets` knows."""
    return "://" in source and not source.startswith("hf://")


def url_records(source: str, split: str | None) -> Records:
    """The records of a folder, a .parquet or .tar file, a folder of them, or a pattern ("s3://bucket/train-*.tar").

    Raises:
        InputError: nothing there, nothing in it, a missing package or permission, a damaged file, an unknown split.
    """
    with reading(source):
        import fsspec

        fs, root = fsspec.core.url_to_fs(source)
        if "*" in root:
            found = fs.glob(root, detail=True)
            root = root[: root.index("*")].rpartition("/")[0]
        elif root.endswith((".tar", ".parquet")):
            found, root = {root: fs.info(root)}, root.rpartition("/")[0]
        else:
            found = fs.find(root, detail=True)
        root = root.rstrip("/") + "/"
        files = sorted(path.removeprefix(root) for path in found)
        if not files:
            raise FileNotFoundError("there are no files")
    for suffix, read_shards in (".tar", tar_records), (".parquet", parquet_records):
        if shards := [path for path in files if path.endswith(suffix)]:
            paths = [root + path for path in of_split(source, shards, split)]
            return replace(read_shards(source, fs, paths), files=partial(states, fs, paths, found))
    return replace(folder_records(source, fs, root, files, split), files=partial(states, fs, sorted(found), found))


@contextmanager
def reading(what: str, error_type: type[InputError] = InputError) -> Iterator[None]:
    """Turn whatever goes wrong with `what`, a URL or a file's path, into an error of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each kind of storage has errors of its own
        reason = (str(error).strip() or "nothing more is known").splitlines()[0]
        raise error_type(
            f"{what} cannot be read ({type(error).__name__}: {reason}): "
            "check the URL, its credentials and packages, and what it holds"
        ) from None


def of_split(source: str, shards: list[str], split: str | None) -> list[str]:
    """The shards that have `split` as a word of their path; all without it."""
    words = {path: re.split(r"[^A-Za-z0-9]+", path) for path in shards}
    if split is None:
        return shards
    if chosen := [path for path in shards if split in words[path]]:
        return chosen
    raise unknown_split(source, split, sorted(SPLIT_NAMES.intersection(set().union(*words.values()))))


def folder_records(source: str, fs: AbstractFileSystem, root: str, files: Sequence[str], split: str | None) -> Records:
    """One sub-folder per class, or a flat folder, as of local ones; but sub-folders without images are not seen."""
    images = [path for path in files if f".{path.rpartition('.')[2].lower()}" in EXTENSIONS and path[0] != "."]
    subfolders = sorted({path.partition("/")[0] for path in images if "/" in path})
    if split is not None:
        if split not in subfolders:
            raise unknown_split(source, split, [name for name in subfolders if name in SPLIT_NAMES])
        inside = [path.removeprefix(f"{split}/") for path in images if path.startswith(f"{split}/")]
        return folder_records(source, fs, f"{root}{split}/", inside, None)
    check_no_splits(source, subfolders)
    images.sort(key=lambda path: (path.partition("/")[0], path))

    def read(path: str) -> bytes:
        with reading(f"{source}: {path}", UnreachableError):
            return fs.cat_file(root + path)

    return labelled_files(source, subfolders, images, read)


def states(fs: AbstractFileSystem, paths: Sequence[str], found: dict[str, dict[str, Any]]) -> list[str]:
    """Each path with the size, checksum and time that its storage gives, in the list `found` or when it is asked."""

    def state(path: str) -> str:
        info = found[path]
        if info.get("size") is None:  # as in a list of links over HTTP
            with reading(path):
                info = fs.info(path)
        return " ".join([path, *(str(info[name]) for name in STATES if name in info)])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        return list(pool.map(state, paths))


def each(read: Callable[[str], Result], paths: Sequence[str]) -> list[Result]:
    """`read` of each path, several at a time. The processes of torchrun begin at different ones."""
    rank, world = rank_and_world()
    order = sorted(range(len(paths)), key=lambda number: ((number - rank) % world, number))
    results = {}
    with (
        ThreadPoolExecutor(CONNECTIONS) as pool,
        progress_bar(len(paths), "open shards", "file", hidden=rank > 0) as bar,
    ):
        for number, result in zip(order, pool.map(read, [paths[number] for number in order]), strict=True):
            results[number] = result
            bar.update()
    return [results[number] for number in range(len(paths))]


# WebDataset


def tar_records(source: str, fs: AbstractFileSystem, paths: Sequence[str]) -> Records:
    """Images under `jpg`, `png` or `webp`, with labels under `cls` or in `json`'s "label", as WebDataset has them."""
    shards = each(lambda path: tar_index(fs, path), paths)
    counts = [len(shard["names"]) for shard in shards]
    shard_of = np.repeat(np.arange(len(paths)), counts)
    names = [name for shard in shards for name in shard["names"]]
    starts, ends = (np.concatenate([np.array(shard[key], np.int64) for shard in shards]) for key in ("starts", "ends"))
    values = [label for shard in shards for label in shard["labels"]]
    if all(value is None for value in values):
        labels, class_names = np.zeros(len(values), dtype=np.int64), ["image"]
    else:
        labels, class_names = number_labels(values, None, "cls", source)

    def encoded(index: int) -> bytes:
        path, start, end = paths[shard_of[index]], int(starts[index]), int(ends[index])
        with reading(path, UnreachableError):
            data = fs.cat_file(path, start=start, end=end)
            if len(data) != end - start:
                raise EOFError(f"{len(data)} bytes came of the {end - start} of {names[index]}")
            return data

    return Records(labels, class_names, lambda index: f"row {index} ({names[index]})", encoded)


def tar_index(fs: AbstractFileSystem, path: str) -> dict[str, list[Any]]:
    """Where the images of a .tar file are: names, starts, ends and labels (None where there is none).

    To find out takes a walk through the whole file, so it is kept in the cache folder, where other processes find it.
    """
    with reading(path):
        facts = f"{fs.protocol} {path} {sorted(fs.info(path).items(), key=str)}"
        cached = cache_folder() / "tar" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"
        if cached.exists():
            return read_json(cached)
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            index = read_tar(archive)
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # which tarfile takes for an end
                raise tarfile.ReadError(f"it is truncated or damaged at byte {archive.offset}")
    write_json(cached, index)
    return index


def read_tar(archive: tarfile.TarFile) -> dict[str, list[Any]]:
    """What `tar_index` returns. Members with the same name up to its first dot, one after another, are one example."""
    index: dict[str, list[Any]] = {"names": [], "starts": [], "ends": [], "labels": []}
    example, label, image = None, None, None

    def end_example() -> None:
        if image is not None:
            start = image.offset_data
            values = printable(image.name), start, start + image.size, label
            for column, value in zip(index.values(), values, strict=True):
                column.append(value)

    for member in archive:
        folder, _, name = member.name.rpartition("/")
        name, _, extension = name.partition(".")
        if not (member.isfile() and name and extension):
            continue
        if (folder, name) != example:
            end_example()
            example, label, image = (folder, name), None, None
        if extension.lower() in IMAGE_COLUMNS:
            image = member
        elif extension in ("cls", "json") and (file := archive.extractfile(member)):
            if extension == "cls":
                label = int(file.read())
            elif label is None:
                label = json.loads(file.read()).get("label")
    end_example()
    return index


# Parquet


@dataclass(frozen=True)
class Table:
    """A Parquet file whose labels have been read, and whose images have not.

    Attributes:
        metadata: pyarrow's, with the number of rows of each row group.
        column: of the images.
        labels: one for each row, None where there is none.
        label_column: where they are from; None if the table has none.
        class_names: as `datasets` stores them, if it wrote the table.
    """

    fs: AbstractFileSystem
    path: str
    metadata: FileMetaData
    column: str
    labels: list[Any]
    label_column: str | None
    class_names: list[str] | None

    @classmethod
    def open(cls, fs: AbstractFileSystem, path: str) -> Table:
        import datasets
        import pyarrow.parquet as pq

        with reading(path), fs.open(path, "rb", cache_type="none") as stream, pq.ParquetFile(stream) as file:
            columns = file.schema_arrow.names
            column = next((name for name in IMAGE_COLUMNS if name in columns), None)
            if column is None:
                raise InputError(
                    f"{path} has columns {', '.join(columns)}: name the one that holds the images {IMAGE_COLUMNS[0]!r}"
                )
            labels, label_column, class_names = [None] * file.metadata.num_rows, None, None
            if label_column := next((name for name in LABEL_COLUMNS if name in columns), None):
                labels = file.read([label_column])[label_column].to_pylist()
                feature = datasets.Features.from_arrow_schema(file.schema_arrow)[label_column]
                class_names = getattr(feature, "names", None)
            return cls(fs, path, file.metadata, column, labels, label_column, class_names)

    def images(self, group: int) -> ChunkedArray:
        """The images of a row group."""
        import pyarrow.parquet as pq

        with (
            reading(self.path, UnreachableError),
            self.fs.open(self.path, "rb", cache_type="none") as stream,
            pq.ParquetFile(stream, metadata=self.metadata) as file,
        ):
            return file.read_row_group(group, [self.column])[self.column]


def parquet_records(source: str, fs: AbstractFileSystem, paths: Sequence[str]) -> Records:
    """Tables with a column of images and one of labels. Images are read a row group at a time: best in order."""
    tables = each(lambda path: Table.open(fs, path), paths)
    groups = [(table, group) for table in tables for group in range(table.metadata.num_row_groups)]
    starts = np.cumsum([0] + [table.metadata.row_group(group).num_rows for table, group in groups])
    kept: OrderedDict[int, ChunkedArray] = OrderedDict()
    lock = Lock()

    def encoded(index: int) -> bytes:
        group = int(np.searchsorted(starts, index, side="right")) - 1
        with lock:  # one thread reads, since the others want the same rows
            if group not in kept:
                table, number = groups[group]
                kept[group] = table.images(number)
            rows = kept[group]
            kept.move_to_end(group)
            if len(kept) > KEPT_ROW_GROUPS:
                kept.popitem(last=False)
        value = rows[index - int(starts[group])].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise OSError("no image in this row")
        return data

    values = [label for table in tables for label in table.labels]
    labelled = next((table for table in tables if table.label_column), None)
    labels, class_names = np.zeros(len(values), np.int64), ["image"]
    if labelled:
        labels, class_names = number_labels(values, labelled.class_names, str(labelled.label_column), source)
    return Records(labels, class_names, lambda index: f"row {index}", encoded)
