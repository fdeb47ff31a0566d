"""The crops: ADM's centre crop, and LlamaGen's ten crops."""

from __future__ import annotations

import numpy as np
from PIL import Image


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop to `size` × `size`: the resize that published scores on ImageNet depend on.

    Halve with a box filter while the shorter side is at least 2 × size, bring the shorter side to `size`
    with a bicubic filter, crop the centre. An image that is already `size` × `size` comes back unchanged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def ten_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 (S, S, 3) → (10, size, size, 3): top left, top right, bottom left, bottom right, centre, and the mirror
    image of each in the same order.

    LlamaGen's order, so that crop i of one code set is crop i of another. S is `int(size * crop_range)` ≥ size.
    """
    margin = image.shape[0] - size
    middle = round(margin / 2)  # torchvision's rounding, which LlamaGen's crops have
    corners = [(0, 0), (0, margin), (margin, 0), (margin, margin), (middle, middle)]
    crops = np.stack([image[top : top + size, left : left + size] for top, left in corners])
    return np.concatenate([crops, crops[:, :, ::-1]])
