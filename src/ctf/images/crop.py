"""The crops: ADM's centre crop, and LlamaGen's random and ten crops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

#: From an image and a size to an image of size × size, or to several.
Crop = Callable[[Image.Image, int], Image.Image | np.ndarray]


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop to `size` × `size`: the resize that published scores on ImageNet depend on.

    Halve with a box filter while the shorter side is at least 2 × size, bring the shorter side to `size`
    with a bicubic filter, crop the centre. An image that is already `size` × `size` comes back unchanged.
    """
    image = resize(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, fraction: float, draws: Sequence[float]) -> Image.Image:
    """LlamaGen's crop of training images: `size` × `size` anywhere in the image, after its shorter side was resized,
    as `center_crop` does, to a whole number of pixels drawn from `size` to `size / fraction`, rounded up.

    Args:
        image: what to crop.
        size: pixels per side.
        fraction: the smallest part of the shorter side that is kept, in (0, 1].
        draws: uniform numbers in [0, 1), for the resize, the left and the top edge.
    """
    largest = math.ceil(size / fraction)
    image = resize(image, size + int(draws[0] * (largest - size + 1)))
    left, top = (int(u * (side - size + 1)) for u, side in zip(draws[1:], image.size, strict=True))
    return image.crop((left, top, left + size, top + size))


def resize(image: Image.Image, shorter: int) -> Image.Image:
    """ADM's resize of the shorter side to `shorter` pixels."""
    while min(image.size) >= 2 * shorter:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = shorter / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def ten_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (S, S, 3) → (10, size, size, 3): top left, top right, bottom left, bottom right and centre, of the image
    and then of its mirror image.

    LlamaGen's order, so that crop i of one code set is crop i of another. S is `int(size * crop_range)` ≥ size.
    """
    margin = image.shape[0] - size
    middle = round(margin / 2)  # torchvision's rounding, which LlamaGen's crops have
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (middle, middle)]
    both = (image, image[:, ::-1])
    return np.stack([view[top : top + size, left : left + size] for view in both for top, left in corners])


def ten_shift(image: np.ndarray, pixels: int = 1) -> np.ndarray:
    """uint8 (S, S, 3) → (10, S, S, 3): the ten crops of the image with its border repeated `pixels` wide, so that
    nothing is enlarged: moved to each corner, and as it is."""
    return ten_crop(np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), "edge"), image.shape[0])
