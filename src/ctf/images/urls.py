"""Images at URLs that `fsspec` opens (s3://, gs://, https://, file://, …): folders, Parquet, WebDataset shards; local
WebDataset shards too.

They are read where they lie. What opening reads is the list of files and, of shards, where their images and labels are;
after that an image costs the bytes of itself (of Parquet: of its row group).
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ctf.cache import cache_folder, from_cache
from ctf.errors import InputError, shortened
from ctf.files import read_json, write_json
from ctf.images.folders import folder_records, shard_ending
from ctf.images.formats import is_hidden
from ctf.images.records import (
    LABEL_LIKE,
    Records,
    column_labels,
    image_column,
    is_image_column,
    label_column,
    number_labels,
    one_class,
    printable,
    warn,
    warn_of_folders,
)
from ctf.images.splits import find_split, split_of, unchosen_split
from ctf.progress import progress_bar
from ctf.torchrun import rank_and_world

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from pyarrow import ChunkedArray
    from pyarrow.dataset import ParquetFileFragment
    from pyarrow.fs import PyFileSystem

CONNECTIONS = 16  # files whose beginnings and ends are read at a time
#: What kinds of storage call size, checksum and time of a file.
STATES = ("size", "ETag", "etag", "Content-MD5", "md5Hash", "mtime", "LastModified", "Last-Modified", "last_modified")
LABEL_LENGTH = 200  # characters of a field that may be a label: longer ones are captions
KEPT_ROW_GROUPS = 4  # decoding threads are a batch or two apart
Item = TypeVar("Item")
Result = TypeVar("Result")


class UnreachableError(InputError):
    """An image may be sound, but its bytes did not come: it must not be left out as unreadable."""


def is_url(source: str) -> bool:
    """Whether `url_records` reads it: not the Hub's data sets, which `datasets` knows."""
    return "://" in source and not source.startswith("hf://")


def url_records(source: str, split: str | None, column: str | None) -> Records:
    """The records of a folder, a .parquet or .tar file, a folder of them, or a pattern ("s3://bucket/train-*.tar").

    `column` is that of the labels, if it is chosen.

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
        files = [path for path in sorted(path.removeprefix(root) for path in found) if not is_hidden(path)]
        if not files:
            raise FileNotFoundError("there are no files")

    def read(path: str) -> bytes:
        with reading(f"{source}: {path}", UnreachableError):
            return fs.cat_file(root + path)

    def state(path: str) -> str:
        info = found[root + path]
        if info.get("size") is None:  # as in a list of links over HTTP
            with reading(f"{source}: {path}"):
                info = fs.info(root + path)
        return " ".join(str(info[name]) for name in STATES if name in info)

    suffix = shard_ending(source, files)
    if suffix is None:
        return folder_records(source, files, read, state, split, column)
    return shard_records(source, fs, root, files, state, split, column, suffix)


def shard_records(
    source: str,
    fs: AbstractFileSystem,
    root: str,
    files: Sequence[str],
    state: Callable[[str], str],
    split: str | None,
    column: str | None,
    suffix: str,
) -> Records:
    """The records of those `files` below `root` that end in `suffix`; `state` tells versions of a file apart."""
    shards = of_split(source, [path for path in files if path.endswith(suffix)], split)
    read_shards = tar_records if suffix == ".tar" else parquet_records
    records = read_shards(source, fs, [root + path for path in shards], column)
    return replace(records, files=lambda: [f"{path} {state(path)}" for path in shards])


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
            "check the path or URL, its credentials and packages, and what it holds"
        ) from None


#: Shards as `datasets` and the Hub call them: "data/train_extra-00000-of-00001.parquet" is of the split train_extra.
NUMBERED = re.compile(r"([^/]+)-\d+-of-\d+\.\w+$")


def of_split(source: str, shards: list[str], split: str | None) -> list[str]:
    """The shards that have `split`, or another spelling of it, as a word of their path; all without it.

    Raises:
        InputError: none has it; or none is asked for, and files that no pattern chose name several.
    """
    named = {path: match[1] for path in shards if (match := NUMBERED.search(path))}
    if split is None:
        found = {name for path in shards if (name := split_of(path))}
        if not found.isdisjoint(named.values()):  # beside "train" other such names are splits too
            found |= {*named.values()}
        if len(found) > 1 and "*" not in source:
            raise unchosen_split(source, found)
        return shards
    if split in named.values():
        return [path for path in shards if named.get(path) == split]
    words = {path: re.split(r"[^A-Za-z0-9]+", path) for path in shards}
    if split in set().union(*words.values()):
        return [path for path in shards if split in words[path]]
    split = find_split(source, split, sorted({name for path in shards if (name := split_of(path))}))
    return [path for path in shards if split_of(path) == split]


def each(read: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`read` of each item, several at a time. The processes of torchrun begin at different ones."""
    rank, world = rank_and_world()
    order = sorted(range(len(items)), key=lambda number: ((number - rank) % world, number))
    results = {}
    with (
        ThreadPoolExecutor(CONNECTIONS) as pool,
        progress_bar(len(items), "open shards", "file", hidden=rank > 0) as bar,
    ):
        for number, result in zip(order, pool.map(read, [items[number] for number in order]), strict=True):
            results[number] = result
            bar.update()
    return [results[number] for number in range(len(items))]


# WebDataset


def tar_records(source: str, fs: AbstractFileSystem, paths: Sequence[str], column: str | None) -> Records:
    """Images under `jpg`, `png`, …, with labels under `cls` or in a field of `json`, as WebDataset has them."""
    shards = each(lambda path: tar_index(fs, path), paths)
    counts = [len(shard["names"]) for shard in shards]
    shard_of = np.repeat(np.arange(len(paths)), counts)
    names = [name for shard in shards for name in shard["names"]]
    starts, ends = (np.concatenate([np.array(shard[key], np.int64) for shard in shards]) for key in ("starts", "ends"))
    columns = sorted({name for shard in shards for name in shard["columns"]})
    candidates = [name for name in columns if LABEL_LIKE.search(name)]
    passed: Counter[str] = Counter()
    for shard in shards:
        passed.update(shard["passed"])
    if passed:
        what = shortened([f"{count} {extension}" for extension, count in passed.most_common()])
        warn(f"{source}: passed over what is neither image nor label, or has no image right beside it: {what}")
    column = label_column(columns, candidates, "cls" if column is None and "cls" in columns else column, source)
    if column is None:
        warn_of_folders(source, names)
        labels = one_class(len(names))
    else:
        found = [shard["columns"].get(column, [None] * count) for shard, count in zip(shards, counts, strict=True)]
        labels = number_labels([value for part in found for value in part], None, column, source)

    def encoded(index: int) -> bytes:
        path, start, end = paths[shard_of[index]], int(starts[index]), int(ends[index])
        with reading(path, UnreachableError):
            data = fs.cat_file(path, start=start, end=end)
            if len(data) != end - start:
                raise EOFError(f"{len(data)} bytes came of the {end - start} of {names[index]}")
            return data

    return Records(*labels, lambda index: f"row {index} ({names[index]})", encoded)


def tar_index(fs: AbstractFileSystem, path: str) -> dict[str, Any]:
    """The places of the images in a .tar file: names, starts, ends, columns of what may be labels; and what is `passed`
    over, by its extension.

    To find out takes a walk through the whole file, so it is kept in the cache folder, where other processes find it.
    """
    with reading(path):
        facts = f"passed {fs.protocol} {path} {sorted(fs.info(path).items(), key=str)}"
        cached = cache_folder() / "tar" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"
        return from_cache(cached, read_json, lambda: walk_tar(fs, path), write_json)[0]


def walk_tar(fs: AbstractFileSystem, path: str) -> dict[str, list[Any]]:
    """The result of `tar_index`, from the file itself. Raises tarfile.ReadError: it is truncated."""
    with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
        index = read_tar(archive)
        file.seek(archive.offset)
        end = file.read(2 * tarfile.RECORDSIZE)  # tarfile takes a damaged header for an end, and stops at the first one
        if len(end) < tarfile.BLOCKSIZE or end.strip(tarfile.NUL):
            raise tarfile.ReadError(f"it is truncated or damaged at byte {archive.offset}, or several in one")
    return index


def read_tar(archive: tarfile.TarFile) -> dict[str, Any]:
    """The result of `tar_index`. Members with the same name up to its first dot, one after another, are one example."""
    index: dict[str, Any] = {"names": [], "starts": [], "ends": []}
    rows, passed = [], Counter[str]()
    files = (member for member in archive if member.isfile() and all(key_and_extension(member)[1:]))
    for _, example in groupby(files, lambda member: key_and_extension(member)[:2]):
        row: dict[str, Any] = {}
        images: dict[str, tarfile.TarInfo] = {}
        labels: list[str] = []
        for member in example:
            extension = key_and_extension(member)[2]
            if is_image_column(extension):
                images[extension] = member
            elif extension in ("cls", "json") and (file := archive.extractfile(member)):
                fields = {"cls": int(file.read())} if extension == "cls" else json.loads(file.read())
                fields = fields if isinstance(fields, dict) else {}  # such as a list of boxes
                single = {name: value for name, value in fields.items() if isinstance(value, (int, float, str))}
                row |= {name: value for name, value in single.items() if len(str(value)) <= LABEL_LENGTH}
                labels.append(extension)
            else:
                passed[extension] += 1
        if not images:
            passed.update(labels)
        else:
            image = images[image_column([*images], "")]
            index["names"].append(printable(image.name))
            index["starts"].append(image.offset_data)
            index["ends"].append(image.offset_data + image.size)
            rows.append(row)
    columns = {name: [row.get(name) for row in rows] for name in set().union(*rows)}
    return index | {"columns": columns, "passed": passed}


def key_and_extension(member: tarfile.TarInfo) -> tuple[str, str, str]:
    """Folder, key and extension of a member: "a", "b" and "c.png" of "a/b.c.png"."""
    folder, _, name = member.name.rpartition("/")
    name, _, extension = name.partition(".")
    return folder, name, extension


# Parquet


def parquet_records(source: str, fs: AbstractFileSystem, paths: Sequence[str], column: str | None) -> Records:
    """Tables with a column of images and one of labels. Images are read a row group at a time: best in order."""
    import datasets
    import pyarrow.dataset as ds

    with reading(source):
        tables = ds.dataset(list(paths), format="parquet", filesystem=unbuffered(fs))
        opened = each(lambda table: table.split_by_row_group(), [*tables.get_fragments()])
        image = image_column(tables.schema.names, source)
        labels = column_labels(
            source,
            tables.schema,
            datasets.Features.from_arrow_schema(tables.schema),
            column,
            lambda name: tables.to_table(columns=[name])[name].to_pylist(),
        )
    groups = [group for groups in opened for group in groups]
    starts = np.cumsum([0] + [group.row_groups[0].num_rows for group in groups])
    rows_of = lru_cache(KEPT_ROW_GROUPS)(lambda number: read_row_group(groups[number], image))
    lock = Lock()

    def encoded(index: int) -> bytes:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        with lock:  # one thread reads, since the others want the same rows
            rows = rows_of(number)
        value = rows[index - int(starts[number])].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            raise OSError("no image in this row")
        return data

    return Records(*(labels or one_class(int(starts[-1]))), lambda index: f"row {index}", encoded)


def read_row_group(group: ParquetFileFragment, column: str) -> ChunkedArray:
    """A column of a row group."""
    with reading(group.path, UnreachableError):
        return group.to_table(columns=[column])[column]


def unbuffered(fs: AbstractFileSystem) -> PyFileSystem:
    """`fs` for pyarrow, which knows what it is going to read: the default buffer of `fs` would read 5 MB beyond."""
    import pyarrow
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    class Unbuffered(FSSpecHandler):
        def open_input_file(self, path: str) -> pyarrow.PythonFile:
            return pyarrow.PythonFile(fs.open(path, "rb", cache_type="none"), mode="r")

    return PyFileSystem(Unbuffered(fs))
