"""Where images come from: each layout becomes `Records`, encoded images with names and labels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctf.errors import InputError
from ctf.files import existing, file_state, read_json

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Table

EMOJI = Path(__file__).parent.parent / "assets" / "emoji64.parquet"
EMOJI_SUBGROUPS = EMOJI.with_name("emoji_subgroups.json")  # subgroup → names, after their design where designs differ
EMOJI_LABELLINGS = ("emoji", "emoji-subgroups", "emoji-subgroups-by-design")
MIN_TRAIN_IMAGES = 5  # the smallest subgroup has as many
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test"})
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img")
LABEL_COLUMNS = ("label", "cls", "labels")
LAYOUTS = {".tar": "webdataset", ".parquet": "parquet"}
MAX_CLASSES = 1 << 20  # a larger number in a label column is a mistake, and a list of that many names takes the memory


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


def open_records(source: str, split: str | None) -> Records:
    """The records of `source`, in any of the layouts that `open_images` describes."""
    if source in EMOJI_LABELLINGS:
        return emoji_records(source, split)
    if source.startswith("hf://"):
        return dataset_records(source, split, source.removeprefix("hf://"))
    for suffix, layout in LAYOUTS.items():
        if source.endswith(suffix) and not Path(source).is_dir():
            if not glob(source):
                existing(source)
            return dataset_records(source, split, layout, data_files=source)

    embedded = ", ".join(map(repr, EMOJI_LABELLINGS))
    folder = existing(source, f"folder or file of images (embedded: {embedded}; on the Hugging Face Hub: 'hf://name')")
    if not folder.is_dir():
        raise InputError(f"{source} is not a set of images: give a folder, .parquet, .tar, 'hf://name' or 'emoji'")
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
        return dataset_records(source, split, None)
    for suffix, layout in LAYOUTS.items():
        # Not a search of the whole tree, which may be a million images in class folders.
        if any(next((folder / place).glob(f"*{suffix}"), None) for place in (".", "data", *SPLIT_NAMES)):
            return dataset_records(source, split, layout, data_dir=source)
    return folder_records(folder, split)


def emoji_records(source: str, split: str | None) -> Records:
    """The embedded emoji, 64 × 64, labelled as `source` says. Read without `datasets`, which imports slowly."""
    import pyarrow.parquet as pq

    table = pq.read_table(EMOJI)
    splits = table["split"].to_numpy()
    if split is not None and split not in splits:
        raise unknown_split(source, split, sorted(set(splits)))
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


def folder_records(folder: Path, split: str | None) -> Records:
    """One sub-folder per class (class names: the sorted sub-folder names), or a flat folder, which is one class."""
    subfolders = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    if split is not None:
        if split not in subfolders:
            raise unknown_split(str(folder), split, [name for name in subfolders if name in SPLIT_NAMES])
        return folder_records(folder / split, None)
    check_no_splits(str(folder), subfolders)
    files = image_files(folder, recursive=False)
    for name in subfolders:
        files += image_files(folder / name, recursive=True)
    relative = [os.path.relpath(path, folder) for path in files]
    records = labelled_files(str(folder), subfolders, relative, lambda name: (folder / name).read_bytes())
    return replace(records, files=lambda: [f"{name} {file_state(folder / name)}" for name in relative])


def check_no_splits(folder: str, subfolders: list[str]) -> None:
    """InputError if the sub-folders are splits."""
    if subfolders and SPLIT_NAMES.issuperset(subfolders):
        raise InputError(f"{folder} holds splits, not classes: choose one of {', '.join(subfolders)}")


def labelled_files(folder: str, subfolders: list[str], files: list[str], read: Callable[[str], bytes]) -> Records:
    """Records of a folder of classes, or a flat one.

    Args:
        folder: what to call it in a message.
        subfolders: sorted names.
        files: paths of the images below the folder, by sub-folder.
        read: from such a path to what is in the file.

    Raises:
        InputError: no images, or images in the folder beside sub-folders.
    """
    label_of = {name: label for label, name in enumerate(subfolders)}
    labels = [label_of.get(path.partition("/")[0]) if "/" in path else None for path in files]
    if subfolders and None in labels:
        first = files[labels.index(None)]
        raise InputError(f"{folder} holds both images and sub-folders: move the images ({first}, …) into a class")
    if not files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}): is it the right folder?")
    return Records(
        labels=np.array([label or 0 for label in labels], dtype=np.int64),
        class_names=[printable(name) for name in subfolders] or ["image"],
        name=lambda index: printable(files[index]),
        encoded=lambda index: read(files[index]),
    )


def image_files(folder: Path, recursive: bool) -> list[str]:
    """Paths of the image files in `folder`, sorted."""
    found = []
    for root, subfolders, names in os.walk(folder, followlinks=True):
        found += [os.path.join(root, name) for name in names if os.path.splitext(name)[1].lower() in EXTENSIONS]
        if not recursive:
            subfolders.clear()
    return sorted(found)


def printable(name: str) -> str:
    """A file's name with line breaks and bytes that are no UTF-8 as escapes: what JSON and a terminal can hold."""
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], name)


def dataset_records(source: str, split: str | None, layout: str | None, **files: str) -> Records:
    """Anything that the `datasets` library opens: Parquet, WebDataset, a saved data set (layout None), the hub."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is raised too
    try:
        opened = datasets.load_from_disk(source) if layout is None else datasets.load_dataset(layout, **files)
        splits = opened if isinstance(opened, dict) else {str(opened.split or "train"): opened}
        if split is not None and split not in splits:
            raise unknown_split(source, split, list(splits))
        dataset = splits[split] if split else datasets.concatenate_datasets(list(splits.values()))
        column = next((name for name in IMAGE_COLUMNS if name in dataset.column_names), None)
        if column is None:
            raise InputError(
                f"{source} has columns {', '.join(dataset.column_names)}: "
                f"name the one that holds the images {IMAGE_COLUMNS[0]!r}"
            )
        labels, class_names = dataset_labels(dataset, source)
        # decode=False: the library would stop at the first damaged image; ImageSet skips it.
        images = dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except InputError:
        raise
    except Exception as error:  # the library lets through whatever its readers of tar, Parquet and the hub raise
        cause = error.__cause__ or error
        reason = str(cause).strip().partition("\n")[0]
        raise InputError(f"{source} cannot be opened as a set of images: {type(cause).__name__}: {reason}") from None

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
        pattern = {"parquet": "*.parquet", "webdataset": "*.tar"}.get(layout or "", "state.json")
        paths = map(str, Path(source).rglob(pattern)) if Path(source).is_dir() else glob(source)
        return [f"{path} {file_state(path)}" for path in sorted(paths)]

    return Records(labels, class_names, name, encoded, files_and_states)


def dataset_labels(dataset: Dataset, source: str) -> tuple[np.ndarray, list[str]]:
    """int64 labels (n,) and class names: from the ClassLabel feature, else the sorted strings, else the numbers.

    Raises:
        InputError: labels are missing from some rows, or outside the range of the class names.
    """
    column = next((name for name in LABEL_COLUMNS if name in dataset.column_names), None)
    if column is not None:
        values: list[Any] = dataset[column][:]
    elif isinstance(dataset.features.get("json"), dict) and "label" in dataset.features["json"]:
        column, values = "json", [(row or {}).get("label") for row in dataset["json"][:]]
    else:
        return np.zeros(len(dataset), dtype=np.int64), ["image"]
    return number_labels(values, getattr(dataset.features[column], "names", None), column, source)


def number_labels(values: list[Any], names: list[str] | None, column: str, source: str) -> tuple[np.ndarray, list[str]]:
    """int64 labels (n,) and class names of what stands in a column of labels, whose numbers have these `names`.

    Raises:
        InputError: as `dataset_labels`.
    """
    if all(isinstance(value, str) for value in values):
        strings, positions = np.unique(values, return_inverse=True)
        return positions.astype(np.int64), strings.tolist()
    for row, value in enumerate(values):
        if not isinstance(value, int):
            raise InputError(
                f"{source}: row {row} has {repr(value)[:40]} in its label column {column!r}: give every row a number"
            )
    class_names = names or numbered_classes(max(values, default=0) + 1)
    labels = np.array(values, dtype=np.int64)
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        row = int(outside[0])
        raise InputError(
            f"{source}: row {row} has the label {labels[row]}, outside 0 to {len(class_names) - 1}: "
            "choose a split that has labels, or fix the column"
        )
    return labels, class_names


def numbered_classes(count: int) -> list[str]:
    """Names of classes that have none: "0", "1", … Raises InputError: more classes than can be meant."""
    if count > MAX_CLASSES:
        raise InputError(f"labels up to {count - 1:,}: number classes from 0, at most {MAX_CLASSES:,} of them")
    return [str(label) for label in range(count)]


def unknown_split(source: str, split: str, splits: list[str]) -> InputError:
    """The error for a split that `source` does not have."""
    return InputError(f"{source} has no split {split!r}: it has {', '.join(splits) or 'none, so name no split'}")
