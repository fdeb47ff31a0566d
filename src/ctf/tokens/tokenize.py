"""Images → token set: the encoder over every image and each of its augmentations."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from ctf.errors import InputError, shortened
from ctf.fingerprint import fingerprint
from ctf.images import ImageSet, center_crop, ten_crop, ten_shift, to_tensor
from ctf.images.records import warn
from ctf.progress import progress_bar
from ctf.tokenizer.interface import Tokenizer
from ctf.tokens.token_set import TokenIndex, TokenSet
from ctf.tokens.writer import TokenWriter
from ctf.torchrun import wait_until

Augmentation = Literal["none", "flip", "ten-shift", "ten-crop"]

#: In the order of `ctf.images.ten_crop`.
CROPS = ["top-left", "top-right", "bottom-left", "bottom-right", "center"]
LARGEST_RANGE = 4.0  # of a crop; LlamaGen's are 1.1 and 1.05


def tokenize_images(
    images: ImageSet,
    tokenizer: Tokenizer,
    folder: str | Path,
    augmentation: Augmentation = "flip",
    crop_ranges: Sequence[float] = (1.1,),
    split: str | None = None,
    batch_size: int = 64,
    shard_size: int = 8192,
    device: str | torch.device = "cpu",
    progress: bool = True,
    rank: int = 0,
    world: int = 1,
) -> TokenSet | None:
    """Encode all images in float32 (on a GPU cuDNN's convolutions round to TF32) and write their tokens to `folder`.

    Several processes share the shards, and each reads the images of its shards only. After an interruption a new call,
    with any number of processes, writes the missing shards. The batches of a shard do not depend on the process that
    writes it, so the files are the same. A complete folder is left as it is.

    Args: those of `ctf tokenize`, and

        images: the images; unreadable ones are left out and named in the index.
        tokenizer: used as a copy in eval mode; the original is not moved or changed.
        folder: where to write the token set.
        split: the split that `images` was opened with, for the record.
        progress: show a bar with rate and remaining time.
        rank: the number of this process, from 0; the first one waits for the others.
        world: the number of processes.

    Returns:
        The set; None in every process but the first.

    Raises:
        InputError: the image size does not fit the tokenizer, a number is out of range, no image is readable,
            or the folder holds a token set with other settings, or of files that have changed since.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size}: encode at least 1 image at a time")
    if augmentation not in get_args(Augmentation):
        known = ", ".join(get_args(Augmentation))
        raise InputError(f"augmentation {augmentation!r} does not exist: choose one of {known}")
    if augmentation == "ten-crop" and not (crop_ranges and all(1 <= r <= LARGEST_RANGE for r in crop_ranges)):
        raise InputError(f"crop ranges {list(crop_ranges)}: give one or more, from 1 to {LARGEST_RANGE:g}, e.g. 1.1")

    # On the CPU, whatever the tokenizer's device: normalising elsewhere may round the codebook differently.
    encoder = copy.deepcopy(tokenizer).cpu().float().eval()
    settings = TokenIndex(
        codebook_size=tokenizer.codebook_size,
        layout=tokenizer.layout((images.size, images.size)),
        augmentations=augmentation_names(augmentation, crop_ranges),
        class_names=list(images.class_names),
        shard_size=shard_size,
        codebook=fingerprint(encoder.codebook),
        residual=encoder.residual_fingerprint,
        source=images.source,
        split=split,
        image_size=images.size,
        inputs=len(images),
        files=images.fingerprint() if rank == 0 else None,  # processes on other machines may read copies
    )
    launcher = os.getppid()
    writer = TokenWriter(folder, settings)
    missing = writer.missing(rank, world)
    if world > 1 and rank == 0 and missing:
        writer.begin()  # before a kill, or it would not be known which images the other processes read
    encoder = encoder.to(device)
    sizes = [int(images.size * r) for r in crop_ranges] if augmentation == "ten-crop" else [images.size]
    dtype = np.min_scalar_type(tokenizer.codebook_size - 1)
    name = f"tokenize, process 1 of {world}" if world > 1 else "tokenize"
    total = sum(len(writer.inputs(shard)) for shard in range(rank, len(writer), world))  # images of this process
    finished = total - sum(len(writer.inputs(shard)) for shard in missing)
    with progress_bar(total, name, "image", finished, hidden=rank > 0 or not progress) as bar:
        for shard in missing:
            inputs = writer.inputs(shard)
            tokens = [np.empty((0, len(settings.augmentations), settings.layout.num_tokens), dtype)]
            read = [np.empty(0, int)]
            for indices, crops, _ in images.batches(batch_size, inputs, partial(center_crops, sizes=sizes)):
                pixels = [crops[:, number, :size, :size] for number, size in enumerate(sizes)]
                views = [view for part in pixels for view in augmented(part, images.size, augmentation)]
                tokens.append(encode(encoder, views, device).astype(dtype))
                read.append(indices)
                bar.update(len(indices))
            indices = np.concatenate(read)
            skipped = [images.name(index) for index in sorted({*inputs}.difference(indices.tolist()))]
            writer.add(shard, np.concatenate(tokens), images.labels[indices], skipped)
            bar.update(len(skipped))
    if rank > 0:
        return None
    for shard in writer.missing():
        wait_until(partial(writer.is_finished, shard), launcher)
    made = writer.close()
    if lost := [images.class_names[label] for label in np.setdiff1d(images.labels, made.labels)]:
        warn(f"{folder}: not one image is readable of the classes {shortened(lost)}")
    return made


def augmentation_names(augmentation: Augmentation, crop_ranges: Sequence[float]) -> list[str]:
    """A names, in the order of `augmented` over the crop ranges: "none", "flip"; "top-left", …; "1.1/top-left", …"""
    ten = [f"{crop}{mirror}" for mirror in ("", "/flip") for crop in CROPS]
    if augmentation == "ten-crop":
        return [f"{r}/{name}" for r in crop_ranges for name in ten]
    if augmentation == "ten-shift":
        return ten
    return ["none", "flip"] if augmentation == "flip" else ["none"]


def center_crops(image: Image.Image, _: int, sizes: Sequence[int]) -> np.ndarray:
    """The centre crop for each crop range, at the top left of uint8 (R, S, S, 3) with the largest size S.

    LlamaGen resizes for each range, it does not crop one from another.
    """
    crops = np.zeros((len(sizes), max(sizes), max(sizes), 3), np.uint8)
    for crop, size in zip(crops, sizes, strict=True):
        crop[:size, :size] = np.asarray(center_crop(image, size))
    return crops


def augmented(pixels: np.ndarray, size: int, augmentation: Augmentation) -> np.ndarray:
    """uint8 (b, S, S, 3) → (A, b, size, size, 3) for one crop range."""
    if augmentation == "ten-crop":
        return np.stack([ten_crop(image, size) for image in pixels], axis=1)
    if augmentation == "ten-shift":
        return np.stack([ten_shift(image) for image in pixels], axis=1)
    return np.stack([pixels, pixels[:, :, ::-1]]) if augmentation == "flip" else pixels[None]


@torch.inference_mode()
def encode(tokenizer: Tokenizer, views: list[np.ndarray], device: str | torch.device) -> np.ndarray:
    """A views, each uint8 (b, size, size, 3) → int64 tokens [b, A, N]; one view at a time, to bound memory."""
    tokens = [tokenizer.encode(to_tensor(torch.from_numpy(view).to(device))) for view in views]
    return torch.stack(tokens, dim=1).cpu().numpy()
