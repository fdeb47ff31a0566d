"""Images as the web app shows them: as data URLs, `data:image/png;base64,…`."""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ctf.images.sheet import png_bytes


def data_url(data: bytes, kind: str = "image/png") -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def item(image: Image.Image, caption: str = "", name: str = "image", **notes: str) -> dict[str, Any]:
    """An image for Gradio's Gallery, which downloads it as `name`.png; `notes` go into its PNG.

    Gradio would write it to a file and serve that; a value with an address of its own and no path is left alone.
    """
    return {"image": {"url": data_url(png_bytes(image, **notes)), "orig_name": f"{name}.png"}, "caption": caption}


def difference(before: Image.Image, after: Image.Image) -> Image.Image:
    """What changed from one image to another of the same size: grey where nothing did, brighter where it grew."""
    return Image.fromarray(np.uint8(128 + (np.asarray(after, np.int16) - np.asarray(before, np.int16)) // 2))


def label_colours(labels: Tensor) -> Image.Image:
    """Labels (rows, columns) as a pixel each: equal colours are equal labels."""
    colours = np.random.default_rng(0).integers(40, 230, (int(labels.max()) + 1, 3), np.uint8)
    return Image.fromarray(colours[labels.numpy()])


def file_name(*parts: str) -> str:
    """Words as a part of a file's name."""
    return "-".join(re.sub(r"\W+", "-", part).strip("-") for part in parts)
