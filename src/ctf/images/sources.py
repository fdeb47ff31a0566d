"""Sources of images: each layout becomes `Records`, encoded images with names and labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctf.errors import InputError, first_line
from ctf.files import existing, file_state, read_json
from ctf.images.folders import folder_records, shard_ending
from ctf.images.formats import is_hidden
from ctf.images.records import (
    LABEL_COLUMNS,
    Labels,
    Records,
    column_labels,
    image_column,
    one_class,
    printable,
    warn_of_folders,
    warn_of_namesake,
)
from ctf.images.splits import find_split, match_split, split_of, unchosen_split
from ctf.images.urls import UnreachableError, of_split, shard_records

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Table

EMOJI = Path(__file__).parent.parent / "assets" / "emoji64.parquet"
EMOJI_SUBGROUPS = EMOJI.with_name("emoji_subgroups.json")  # subgroup → names, after their design where designs differ
EMOJI_LABELLINGS = ("emoji", "emoji-subgroups", "emoji-subgroups-by-design")
MIN_TRAIN_IMAGES = 5  # the smallest subgroup has as many


def open_records(source: str, split: str | None, column: str | None) -> Records:
    """The records of `source`, in any of the layouts that `open_images` describes, with the labels of `column`."""
    if source in EMOJI_LABELLINGS and (column is None or not os.path.exists(source)):
        if column is not None:
            raise InputError(f"{source} has no columns to choose: leave out '#{column}'")
        warn_of_namesake(source)
        return emoji_records(source, split)
    if source.startswith("hf://"):
        place = source.removeprefix("hf://").split("/", 2)
        return dataset_records(source, split, column, "/".join(place[:2]), name=place[2] if len(place) > 2 else None)
    if source.endswith((".tar", ".parquet")) and not Path(source).is_dir():
        paths = [source] if os.path.exists(source) else sorted(glob(source)) or [str(existing(source))]
        root = os.path.commonpath(map(os.path.dirname, paths)) or os.curdir
        files = [os.path.relpath(path, root) for path in paths]
        read_shards = local_tars if source.endswith(".tar") else local_parquet
        return read_shards(source, Path(root), files, split, column)

    bundled = ", ".join(map(repr, EMOJI_LABELLINGS))
    folder = existing(source, f"folder or file of images (bundled: {bundled}; on the Hugging Face Hub: 'hf://name')")
    if not folder.is_dir():
        raise InputError(f"{source} is not a set of images: give a folder, .parquet, .tar, 'hf://name' or 'emoji'")
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
        return dataset_records(source, split, column, None)
    files = files_below(folder, split)
    suffix = shard_ending(source, files)
    if suffix == ".tar":
        return local_tars(source, folder, files, split, column)
    if suffix == ".parquet":
        return local_parquet(source, folder, files, split, column)

    def read(path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except OSError as error:
            if isinstance(error, (FileNotFoundError, PermissionError)) and folder.is_dir():
                raise  # of this file alone, which is left out
            raise UnreachableError(f"{folder / path} cannot be read ({error.strerror}): is its disk there?") from None

    return folder_records(str(folder), files, read, lambda path: file_state(folder / path), split, column)


def local_tars(source: str, root: Path, files: Sequence[str], split: str | None, column: str | None) -> Records:
    """The records of the WebDataset shards among `files` below `root`, read where they lie."""
    from fsspec.implementations.local import LocalFileSystem

    def state(path: str) -> str:
        return file_state(root / path)

    return shard_records(source, LocalFileSystem(), f"{root}{os.sep}", files, state, split, column, ".tar")


def local_parquet(source: str, root: Path, files: Sequence[str], split: str | None, column: str | None) -> Records:
    """The records of the Parquet files among `files` below `root`, by way of the cache of `datasets`."""
    shards = sorted(path for path in files if path.endswith(".parquet"))
    if split is not None and match_split(split, ["train"]) and not any(map(split_of, shards)):
        split = None  # as `datasets` calls what has no splits
    shards = of_split(source, shards, split)
    return dataset_records(source, None, column, "parquet", data_files=[escape(str(root / path)) for path in shards])


def files_below(folder: Path, split: str | None) -> list[str]:
    """Paths below a folder of all files that are not hidden, and with "/" at their end of folders that hold nothing.

    If a sub-folder is called `split`, the others are listed as empty, since they may be large. Links to a folder
    above are passed over.

    Raises:
        OSError: a folder that may not be read, whose class would be missing without a word.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for root, subfolders, names in os.walk(folder, onerror=fail, followlinks=True):
        below = [Path(root, name) for name in subfolders if not is_hidden(name)]
        subfolders[:] = [path.name for path in below if not _leads_up(path)]
        if root == str(folder) and split is not None and split in subfolders:
            found += [f"{name}/" for name in subfolders if name != split]
            subfolders[:] = [split]
        place = os.path.relpath(root, folder)
        prefix = "" if place == os.curdir else f"{place}/"
        if prefix and not names and not subfolders:
            found.append(prefix)
        found += [prefix + name for name in names if not is_hidden(name)]
    return found


def _leads_up(path: Path) -> bool:
    """Whether a folder is a link to one that it lies in, also by way of other links: its files would come again."""
    return path.is_symlink() and any(above.resolve().is_relative_to(path.resolve()) for above in path.parents)


def emoji_records(source: str, split: str | None) -> Records:
    """The bundled emoji, 64 × 64, labelled as `source` says. Read without `datasets`, which imports slowly."""
    import pyarrow.parquet as pq

    table = pq.read_table(EMOJI)
    splits = table["split"].to_numpy()
    if split is not None:
        split = find_split(source, split, sorted(set(splits)))
    labels, class_names = emoji_labels(source, table)
    labelled = labels >= 0
    rows = np.flatnonzero(labelled if split is None else labelled & (splits == split))
    files = table["image"].combine_chunks()
    encoded, paths = files.field("bytes"), files.field("path")
    everything = Records(labels, class_names, lambda index: paths[index].as_py(), lambda index: encoded[index].as_py())
    return everything.subset(rows)


def emoji_labels(source: str, table: Table) -> tuple[np.ndarray, list[str]]:
    """int64 label of each row of `table`, −1 for rows without a class, and class names. No split changes them.

    Classes of subgroups have at least `MIN_TRAIN_IMAGES` training images.
    """
    styles = table["style"].to_pylist()
    if source == "emoji":
        labels = table["label"].to_numpy().astype(np.int64)
        first_rows = np.unique(labels, return_index=True)[1].tolist()
        return labels, [f"{styles[row]} {table['category'][row]}" for row in first_rows]

    subgroup_of = {name: subgroup for subgroup, names in read_json(EMOJI_SUBGROUPS).items() for name in names}
    classes = []
    for style, name in zip(styles, table["name"].to_pylist(), strict=True):
        subgroup = subgroup_of.get(name) or subgroup_of.get(f"{style}/{name}")
        classes.append(f"{style} {subgroup}" if subgroup and source == "emoji-subgroups-by-design" else subgroup)
    train = Counter(name for name, split in zip(classes, table["split"].to_pylist(), strict=True) if split == "train")
    class_names = sorted(name for name, count in train.items() if name and count >= MIN_TRAIN_IMAGES)
    label_of = {name: label for label, name in enumerate(class_names)}
    return np.array([label_of.get(name, -1) for name in classes], dtype=np.int64), class_names


def dataset_records(source: str, split: str | None, label: str | None, layout: str | None, **files: Any) -> Records:
    """Anything that the `datasets` library opens: Parquet, a saved data set (layout None), the hub.

    `label` is the column of labels, if it is chosen.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is raised too
    try:
        opened = datasets.load_from_disk(source) if layout is None else datasets.load_dataset(layout, **files)
        splits = opened if isinstance(opened, dict) else {str(opened.split or "train"): opened}
        if split is None and len(splits) > 1:
            raise unchosen_split(source, splits)
        dataset = next(iter(splits.values())) if split is None else splits[find_split(source, split, splits)]
        column = image_column(dataset.column_names, source)
        labels = dataset_labels(dataset, source, label)
        # decode=False: the library would stop at the first damaged image; ImageSet skips it.
        images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except InputError:
        raise
    except Exception as error:  # the library lets through whatever its readers of tar, Parquet and the hub raise
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        raise InputError(f"{source} cannot be opened as a set of images: {reason}") from None

    def name(index: int) -> str:
        path = (images[index][column] or {}).get("path")
        return f"row {index}" + (f" ({printable(path)})" if path else "")

    def encoded(index: int) -> bytes:
        image = images[index][column]
        if image is None:
            raise OSError("no image in this row")
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()

    def files_and_states() -> list[str]:
        if source.startswith("hf://"):  # of the Hub's files `datasets` keeps the bytes in all
            info = next(iter(splits.values())).info
            return [f"{info.download_size} {info.dataset_size}"]
        # A saved data set's state.json is written anew with its content.
        pattern = "*.parquet" if layout == "parquet" else "state.json"
        one = [source] if Path(source).exists() else glob(source)
        paths = map(str, Path(source).rglob(pattern)) if Path(source).is_dir() else one
        return [f"{path} {file_state(path)}" for path in sorted(paths)]

    return Records(*labels, name, encoded, files_and_states)


def dataset_labels(dataset: Dataset, source: str, chosen: str | None) -> Labels:
    """Labels from a column, or from a field of WebDataset's "json". Raises InputError: as `column_labels`."""
    schema = dataset.features.arrow_schema
    fields = list(schema)
    known = any(name in dataset.column_names for name in LABEL_COLUMNS)
    if isinstance(dataset.features.get("json"), dict) and not (known and chosen is None):
        fields += schema.field("json").type

    def values(column: str) -> list[Any]:
        if column in dataset.column_names:
            return dataset[column][:]
        return [(row or {}).get(column) for row in dataset["json"][:]]

    labels = column_labels(source, fields, dataset.features, chosen, values)
    if labels is None and "__key__" in dataset.column_names:
        warn_of_folders(source, dataset["__key__"][:])
    return labels or one_class(len(dataset))
