"""Masks of pixels as masks of tokens: the part of an image to keep, and the part to generate."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ctf.errors import InputError
from ctf.images.crop import center_crop
from ctf.images.image_set import RangeError, to_rgb
from ctf.layout import Layout


def split_by_mask(
    image: Image.Image, mask: np.ndarray | Image.Image, size: tuple[int, int], layout: Layout
) -> tuple[Image.Image, Tensor]:
    """An image in the model's size, and the tokens that a mask asks to generate, bool (N,).

    Args:
        image, mask: as for `StagePipeline.known_tokens`.
        size: (height, width) of the model's images.
        layout: of its tokens.

    Raises:
        InputError: sizes that differ, a mask that keeps all or nothing, numbers without a known range; as `fitted`.
    """
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype not in (np.uint8, bool):
            raise InputError(
                f"a mask of {mask.dtype} {list(mask.shape)}: give an array of bool or uint8 [height, width]"
            )
        mask = Image.fromarray(mask)
    if mask.size != image.size:
        raise InputError(
            f"a mask of {mask.width} × {mask.height} pixels for an image of {image.width} × {image.height}: "
            "both must have one size"
        )
    try:
        picture, asked = fitted(to_rgb(image), size), fitted(to_rgb(mask).convert("L"), size)
    except RangeError as error:
        raise InputError(f"the image or its mask has {error}") from None
    generated = cells_in_region(np.asarray(asked) >= 128, layout)
    if generated.all() or not generated.any():
        what = "every token: leave part of the image black" if generated.all() else "nothing: make part of it white"
        if (wide := math.ceil(min(image.size) / min(size))) > 1:  # thinner parts are grey in the model's size
            what += f", at least {wide} pixels wide"
        if size[0] == size[1] and image.width != image.height:
            what += ", within the centre square, which is all that the model sees"
        raise InputError(f"the mask asks for {what}")
    return picture, generated


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An image of a size (height, width), by ADM's centre crop.

    Raises:
        InputError: a model's images are not square, and this one is not of their size.
    """
    height, width = size
    if image.size == (width, height):
        return image
    if height != width:
        raise InputError(f"the model's images are not square: give one of {width} × {height} pixels")
    return center_crop(image, height)


def cells_in_region(mask: np.ndarray, layout: Layout) -> Tensor:
    """Tokens whose cell holds any pixel of a mask: bool (H, W) of the image size → bool (N,).

    Cell (i, j) of a scale of (rows, columns) is the region from i / rows to (i + 1) / rows of the height, and so on.
    """
    pixels = torch.from_numpy(mask)[None].float()  # (1, H, W)
    return torch.cat([F.adaptive_max_pool2d(pixels, grid).flatten() for grid in layout]) > 0
