"""Completion: a part of an image is kept, the model generates the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ctf.completion import split_by_mask
from ctf.errors import InputError
from ctf.files import existing
from ctf.images.image_set import decode
from ctf.images.pixels import to_tensor
from ctf.pipeline import StagePipeline

#: What a picture shows where tokens are generated.
BLANK = 255


def open_picture(path: str | Path) -> Image.Image:
    """An image file in RGB, transparency on white. Raises InputError: missing, damaged, or too large to be meant."""
    return read_picture(existing(path).read_bytes(), str(path))


def read_picture(
    encoded: bytes, name: str, formats: tuple[str, ...] | None = None, most_pixels: int | None = None
) -> Image.Image:
    """The bytes of an image file in RGB, transparency on white; `name` is what to call it, the rest as for `decode`.

    Raises:
        InputError: damaged, of another format, or too large to be meant.
    """
    try:
        pixels = decode(encoded, 0, lambda image, _: image, formats, most_pixels)
    except Exception as error:  # whatever Pillow's decoders raise on damaged bytes
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise InputError(f"{name} cannot be read as an image{reason}: give a PNG, JPEG or WebP file") from None
    return Image.fromarray(pixels)


def region_mask(size: tuple[int, int], region: Sequence[float]) -> np.ndarray:
    """A rectangle to generate as a mask: bool (height, width).

    Args:
        size: (width, height) in pixels.
        region: left, top, right and bottom edge, as shares of the width and the height.

    Raises:
        InputError: no rectangle within the image.
    """
    if len(region) != 4 or not (0 <= region[0] < region[2] <= 1 and 0 <= region[1] < region[3] <= 1):
        raise InputError(
            f"region {list(region)}: give left, top, right and bottom edge as shares from 0 to 1, such as "
            "[0, 0.5, 1, 1] for the lower half"
        )
    (width, height), (left, top, right, bottom) = size, region
    mask = np.zeros((height, width), dtype=bool)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    if not mask.any():
        raise InputError(f"region {list(region)} holds no pixel of {width} × {height}: give a larger one")
    return mask


def known_part(pipeline: StagePipeline, picture: Image.Image, mask: np.ndarray | Image.Image) -> np.ndarray:
    """The kept part of a picture as the tokenizer shows it, and white elsewhere: uint8 (H, W, 3).

    Raises:
        InputError: as `StagePipeline.known_tokens`.
    """
    cropped, where = split_by_mask(picture, mask, pipeline.image_size, pipeline.layout)
    with torch.no_grad():  # all tokens: each scale of several adds to every pixel
        tokens = pipeline.tokenizer.encode(to_tensor(np.array(cropped)[None]).to(pipeline.device))
    image = pipeline.decode(tokens)[0].copy()
    rows, columns = pipeline.layout.finest
    generated = where[pipeline.layout.slices[-1]].view(rows, columns).numpy()
    high, wide = image.shape[0] // rows, image.shape[1] // columns
    image[generated.repeat(high, 0).repeat(wide, 1)] = BLANK
    return image
