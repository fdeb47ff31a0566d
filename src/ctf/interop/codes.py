"""LlamaGen's folders of pre-extracted codes, into token sets and back.

A folder holds, for image i = 0, 1, …, n − 1, `imagenet{size}_codes/{i}.npy` of shape [1, A, N] and
`imagenet{size}_labels/{i}.npy` of shape [1], both int64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ctf.errors import InputError
from ctf.files import atomic_path, existing, write_npy
from ctf.fingerprint import text_fingerprint
from ctf.images.records import numbered_classes
from ctf.layout import Layout, square_layout
from ctf.progress import progress_bar
from ctf.tokens.token_set import TokenIndex, TokenSet, check_range, read_integers, read_npy
from ctf.tokens.tokenize import augmentation_names
from ctf.tokens.writer import TokenWriter, known_codebook

#: Of the ten-crop set, and of the second one that LlamaGen puts beside it.
CROP_RANGES = (1.1, 1.05)
BLOCK = 1024  # images in memory at once


def import_codes(
    folder: str | Path,
    out: str | Path,
    size: int = 256,
    codebook_size: int = 16_384,
    *,
    second: str | Path | None = None,
    count: int | None = None,
    num_classes: int = 1000,
    codebook: Tensor | None = None,
    shard_size: int = 8192,
    progress: bool = True,
) -> TokenSet:
    """Read LlamaGen's codes into a token set at `out`, in the order of their numbers.

    Started again after an interruption, it continues with the shards that are missing.

    Args: those of `ctf convert codes`, and

        folder: its source.
        codebook: [K, d] of the tokenizer that made the codes, if at hand: the set then knows it from others.
        shard_size: images per shard.
        progress: show a bar with rate and remaining time.

    Raises:
        InputError: a folder or number is missing, a file is damaged, of another shape or not of integers, a code
            or label is out of range, or the two folders disagree on a label. The message names the file.
    """
    roots = _roots(folder, second)
    folders = [existing(root / f"imagenet{size}_{kind}", "folder") for root in roots for kind in ("codes", "labels")]
    count = _check_numbers(folders, count)
    shape = read_npy(folders[0] / "0.npy").shape
    if len(shape) != 3 or shape[0] != 1:
        raise InputError(f"{folders[0] / '0.npy'} has the shape {list(shape)}: LlamaGen's codes are [1, A, N]")
    settings = TokenIndex(
        codebook_size=codebook_size,
        layout=square_layout(shape[2]),
        augmentations=_augmentations(shape[1], len(roots)),
        class_names=numbered_classes(num_classes),
        shard_size=shard_size,
        codebook=known_codebook(codebook, codebook_size),
        source="LlamaGen codes",
        image_size=size,
        inputs=count,
        files=text_fingerprint(str(folder.resolve()) for folder in folders),  # a damaged file may be replaced meanwhile
    )
    writer = TokenWriter(out, settings)
    _check_unchanged(writer, folders)
    missing, dtype = writer.missing(), np.min_scalar_type(codebook_size - 1)
    finished = count - sum(len(writer.inputs(shard)) for shard in missing)
    with progress_bar(count, "import", "image", finished, hidden=not progress) as bar:
        for shard in missing:
            codes, labels = [], []
            for number in writer.inputs(shard):
                code, label = _read_image(folders, number, shape, codebook_size, num_classes)
                codes.append(code.astype(dtype))
                labels.append(label)
                bar.update()
            writer.add(shard, np.concatenate(codes), np.concatenate(labels))
    return writer.close()


def export_codes(
    token_set: TokenSet,
    folder: str | Path,
    size: int | None = None,
    *,
    second: str | Path | None = None,
    progress: bool = True,
) -> None:
    """Write a token set as LlamaGen's codes: byte for byte the files that `import_codes` read.

    Args: those of `ctf convert to-codes`, and

        token_set: what to write.
        folder: its out.
        progress: show a bar with rate and remaining time.

    Raises:
        InputError: a folder exists already, the size is not known, or the augmentations have no halves.
    """
    size = size or token_set.index.image_size
    if size is None:
        raise InputError(f"{token_set.folder} does not know its image size: give size, for the folder names")
    if size < 1:
        raise InputError(f"size {size} must be at least 1: it names folders for images of so many pixels per side")
    if token_set.layout != Layout.square(math.isqrt(token_set.num_tokens)):
        raise InputError(f"{token_set.folder} holds {token_set.layout.words}: LlamaGen's codes are those of one square")
    roots = _roots(folder, second)
    if token_set.num_augmentations % len(roots):
        raise InputError(
            f"{token_set.num_augmentations} augmentations cannot be halved: export without a second folder"
        )
    for path in (root / f"imagenet{size}_{kind}" for root in roots for kind in ("codes", "labels")):
        if path.exists():
            raise InputError(f"{path} already exists: choose another folder or delete this one")
    part = token_set.num_augmentations // len(roots)
    for number, root in enumerate(roots):
        with (
            atomic_path(root / f"imagenet{size}_codes") as codes,
            atomic_path(root / f"imagenet{size}_labels") as labels,
            progress_bar(len(token_set), "export", "image", hidden=not progress) as bar,
        ):
            codes.mkdir()
            labels.mkdir()
            images = (image for block in token_set.blocks(BLOCK) for image in block.numpy())
            for i, (image, label) in enumerate(zip(images, token_set.labels, strict=True)):
                write_npy(codes / f"{i}.npy", image[None, number * part : (number + 1) * part])  # [1, A, N]
                write_npy(labels / f"{i}.npy", label[None])
                bar.update()


def _roots(folder: str | Path, second: str | Path | None) -> list[Path]:
    """One folder of codes or two. Raises InputError: both are the same."""
    roots = [Path(root) for root in (folder, second) if root is not None]
    if len({root.resolve() for root in roots}) < len(roots):
        raise InputError(f"{folder} is given twice: name another second folder")
    return roots


def _check_numbers(folders: Sequence[Path], count: int | None) -> int:
    """n, after making sure that every folder holds 0.npy … (n − 1).npy."""
    numbers = [
        {int(match[1]) for path in folder.iterdir() if (match := re.fullmatch(r"(0|[1-9]\d{0,11})\.npy", path.name))}
        for folder in folders
    ]
    if count is not None and count < 1:
        raise InputError(f"count {count}: import at least 1 image")
    wanted = range(count or max(max(found, default=0) for found in numbers) + 1)
    for folder, found in zip(folders, numbers, strict=True):
        if missing := len(wanted) - sum(i in wanted for i in found):
            first = next(i for i in wanted if i not in found)
            raise InputError(
                f"{folder} lacks {first}.npy ({missing:,} of {len(wanted):,} missing): extract or copy them again"
            )
    return len(wanted)


def _check_unchanged(writer: TokenWriter, folders: Sequence[Path]) -> None:
    """Raise InputError, which names the first, if a file is newer than the shard that was written from it."""
    for shard in filter(writer.is_finished, range(len(writer))):
        written = writer.written(shard)
        for path in (folder / f"{i}.npy" for folder in folders for i in writer.inputs(shard)):
            if path.stat().st_mtime_ns > written:
                raise InputError(
                    f"{path} has changed since {writer.folder} was written: choose another folder, or delete "
                    f"{writer.folder} to import again"
                )


def _augmentations(each: int, sets: int) -> list[str]:
    """Names of the augmentations of `sets` folders with `each` of them, as far as the number tells what they are."""
    if each == 10:
        return augmentation_names("ten-crop", CROP_RANGES[:sets])
    if each <= 2 and sets == 1:
        return ["none", "flip"][:each]
    return [str(augmentation) for augmentation in range(each * sets)]


def _read_image(
    folders: Sequence[Path], i: int, shape: tuple[int, ...], codebook_size: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Image i: its codes [1, A, N] of all sets side by side, and its label [1]."""
    paths = [folder / f"{i}.npy" for folder in folders]
    codes = [_read(path, shape, codebook_size, "codebook size") for path in paths[::2]]
    labels = [_read(path, (1,), num_classes, "number of classes") for path in paths[1::2]]
    if labels[0] != labels[-1]:
        raise InputError(f"{paths[-1]} has label {labels[-1][0]}, {paths[1]} has {labels[0][0]}: not the same images")
    return np.concatenate(codes, axis=1), labels[0]


def _read(path: Path, shape: tuple[int, ...], limit: int, limit_name: str) -> np.ndarray:
    array = read_integers(path, shape)
    check_range(array, limit, f"values of {path}", limit_name)
    return array
