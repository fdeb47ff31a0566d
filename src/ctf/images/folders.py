"""Folders of images, on disk or at a URL: classes, splits, tables of labels, and what is passed over."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from ctf.errors import InputError, shortened
from ctf.images.formats import ending, is_image
from ctf.images.records import Labels, Records, class_name, one_class, printable, warn
from ctf.images.splits import match_split, split_of, splits_among, unknown_split
from ctf.images.tables import METADATA, Read, label_tables, metadata_labels, tiny_imagenet_labels

SHARDS = (".tar", ".parquet")
#: Where labels may stand that are not read.
TABLES = frozenset({".csv", ".tsv", ".txt", ".json", ".jsonl"})


def shard_ending(source: str, files: Sequence[str]) -> str | None:
    """ ".tar" or ".parquet" if these files are shards; None if they are images, also beside their unpacked archives.

    Raises:
        InputError: there are both, and nothing says which are meant.
    """
    image = next(filter(is_image, files), None)
    for suffix in SHARDS:
        shards = [path for path in files if path.endswith(suffix) and posixpath.basename(path) not in METADATA]
        if image is None and shards:
            return suffix
        folders = with_parents(posixpath.dirname(path) for path in files) if shards else set()
        for shard in shards:
            place = posixpath.dirname(shard)  # shards deeper in are among the files that class folders may hold
            if (place in ("", "data") or split_of(place)) and shard.removesuffix(suffix) not in folders:
                raise InputError(
                    f"{source} holds both shards ({printable(shard)}) and images ({printable(str(image))}): move one "
                    f"of them away, or give the shards as '{posixpath.join(source, place, '*' + suffix)}'"
                )
    return None


def folder_records(
    source: str,
    files: Sequence[str],
    read: Read,
    state: Callable[[str], str],
    split: str | None,
    column: str | None,
) -> Records:
    """Records of a folder of images.

    Labels come from metadata files, where there are any; else from sub-folders, one per class, whose names in the form
    NFC are the class names; a flat folder is one class. What is passed over is said in a warning.

    Args:
        source: what to call the folder in a message.
        files: paths below it, without hidden ones; those of empty folders end in "/".
        read: called with such a path.
        state: from such a path to what changes when the file does.
        split: a sub-folder, or folders deeper in that are splits. None takes everything.
        column: of the labels in the metadata files; None finds it, "" reads none.

    Raises:
        InputError: no images, splits beside each other, images beside class folders, or what `metadata_labels` raises.
    """
    tables = label_tables(files)
    every: defaultdict[str, list[str]] = defaultdict(list)  # by folder
    for path in sorted({*files}.difference(tables)):
        every[posixpath.dirname(path)].append(path)
    places = {folder: folder for folder in every} if split is None else of_split(source, every, split)
    images = {folder: found for folder in places if (found := [path for path in every[folder] if is_image(path)])}
    pictures = {folder for folder, found in every.items() if any(map(is_image, found))}
    tables = [path for path in tables if _lies_above(path, images) or not _lies_above(path, pictures)]  # of this split
    others = [path for folder in places for path in every[folder] if not (is_image(path) or path.endswith("/"))]
    check_no_splits(source, [places[folder] for folder in images])
    endings = Counter(ending(path) or "without an ending" for path in others)
    passed = shortened([f"{count} {name}" for name, count in endings.most_common()])
    if not images:
        raise InputError(f"{source} holds no images{f' but {passed}' if passed else ''}: is it the right folder?")
    ordered = sorted(path for paths in images.values() for path in paths)
    labelled = metadata_labels(source, tables, ordered, read, column)
    if labelled is None and column is None:
        class_of = {path: places[posixpath.dirname(path)].partition("/")[0] for path in ordered}
        labelled = tiny_imagenet_labels(source, tables, class_of, read)
    if labelled is None:
        ordered, labelled = folder_labels(source, images, places)
    labels, class_names = labelled
    if passed:
        unread = len(class_names) == 1 and not TABLES.isdisjoint(endings)
        hint = "; labels are read from metadata.csv, with the columns file_name and label" if unread else ""
        warn(f"{source}: passed over files that are no images: {passed}{hint}")
    return Records(
        labels,
        class_names,
        name=lambda index: printable(ordered[index]),
        encoded=lambda index: read(ordered[index]),
        files=lambda: [f"{path} {state(path)}" for path in (*tables, *ordered)],
    )


def _lies_above(table: str, folders: Iterable[str]) -> bool:
    """Whether the folder of a table is one of `folders`, or holds one."""
    place = posixpath.join(posixpath.dirname(table), "")
    return any(f"{folder}/".startswith(place) for folder in folders)


# Splits


def with_parents(folders: Iterable[str]) -> set[str]:
    """Folders and all that they lie in, but the one of all, which is "": "a/b" → "a" and "a/b"."""
    found: set[str] = set()
    for folder in set(folders):
        while folder and folder not in found:
            found.add(folder)
            folder = posixpath.dirname(folder)
    return found


def subfolders_of(folders: Iterable[str]) -> dict[str, list[str]]:
    """Folder → sorted names of its sub-folders; "" is the folder of all."""
    found = defaultdict(list)
    for folder in sorted(with_parents(folders)):
        parent, name = posixpath.split(folder)
        found[parent].append(name)
    return found


def of_split(source: str, folders: Iterable[str], split: str) -> dict[str, str]:
    """The folders of a split → the same without the split: "train/cat" and "cat/train" → "cat".

    Raises:
        InputError: no folder is that split.
    """
    subfolders = subfolders_of(folders)
    splits = {parent: splits_among(names) for parent, names in subfolders.items()}
    found = {parent: name for parent, names in splits.items() if (name := match_split(split, names))}
    if split in subfolders.get("", ()):  # any folder, whatever its name
        found = {"": split}
    if not found:
        raise unknown_split(source, split, sorted({name for names in splits.values() for name in names}))
    roots = {posixpath.join(parent, name) for parent, name in found.items()}
    depth = min(root.count("/") for root in roots)
    roots = {root for root in roots if root.count("/") == depth}
    chosen = {}
    for folder in folders:
        parts = folder.split("/")
        if "/".join(parts[: depth + 1]) in roots:
            above = parts[:depth] if len(roots) > 1 else []  # class folders, or a mere place such as "data"
            chosen[folder] = "/".join([*above, *parts[depth + 1 :]])
    return chosen


def check_no_splits(source: str, folders: Iterable[str]) -> None:
    """Refuse splits where classes belong: test images would be trained on.

    Raises:
        InputError: two splits beside each other at any level, or at the top one that holds folders, or nothing else.
    """
    subfolders = subfolders_of(folders)
    for parent, names in subfolders.items():
        splits = splits_among(names)
        if len(splits) > 1 or (splits and not parent and (len(names) == 1 or splits[0] in subfolders)):
            raise InputError(
                f"{f'{source}/{parent}'.rstrip('/')} holds splits, not classes: choose one of {', '.join(splits)} with "
                "--split, or rename them if they are classes"
            )
        if splits and not parent:
            warn(f"{source}: the folder {splits[0]!r} is taken for a class; move it away if it is a split")


# Labels


def folder_labels(source: str, images: Mapping[str, list[str]], places: Mapping[str, str]) -> tuple[list[str], Labels]:
    """Paths of the images by class, and their labels.

    Args:
        source: as for `folder_records`.
        images: paths by their folder.
        places: folder → the same without the split; of folders without images too.

    Raises:
        InputError: images beside class folders.
    """
    tops = {folder: place.partition("/")[0] for folder, place in places.items()}
    if empty := {*tops.values()} - {tops[folder] for folder in images} - {""}:
        warn(f"{source}: folders without images are no classes: {shortened(sorted(map(printable, empty)))}")
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for folder, paths in images.items():
        classes[class_name(tops[folder])] += paths
    flat = sorted(classes.pop("", []))
    if not classes:
        return flat, one_class(len(flat))
    if flat:
        raise InputError(
            f"{source} holds both images and sub-folders: move the images ({printable(flat[0])}, …) into a class"
        )
    class_names = sorted(classes)
    if len(classes) == 1 and (common := posixpath.commonpath(images)) not in {"", *images}:
        below = printable(f"{source}/{common}")
        warn(f"{source}: all images are one class, {class_names[0]!r}; if the classes are below it, give {below}")
    ordered = [path for name in class_names for path in sorted(classes[name])]
    return ordered, (np.repeat(np.arange(len(classes)), [len(classes[name]) for name in class_names]), class_names)
