"""Pictures between the web app and the model: uploads that are checked, and images as it shows them.

No file is read or written: a picture comes and goes as a data URL, `data:image/png;base64,…`.
"""

from __future__ import annotations

import base64
import re
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ctf.errors import InputError
from ctf.images.sheet import png_bytes
from ctf.samples.complete import read_picture

#: Of an uploaded file, 8 MiB, and of the picture in it.
MOST_BYTES = 8 << 20
MOST_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def read_upload(url: Any) -> Image.Image:
    """A picture that a visitor gave, in RGB.

    Raises:
        InputError: no data URL, too many bytes or pixels, damaged, or of another format.
    """
    if not isinstance(url, str) or not (found := re.match(r"data:[\w/.+-]{0,60};base64,", url)):
        raise InputError("no picture: give one as a data URL (data:image/png;base64,…), not as an address or a file")
    if (len(url) - found.end()) * 3 // 4 > MOST_BYTES:
        raise InputError(f"the picture has {len(url) * 3 / 4 / 2**20:.0f} MiB: give one of at most {MOST_BYTES >> 20}")
    try:
        encoded = base64.b64decode(url[found.end() :], validate=True)
    except ValueError:
        raise InputError("the picture is not valid base64: send it again") from None
    return read_picture(encoded, "the upload", FORMATS, MOST_PIXELS)


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


def tile_sheet(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """uint8 (n, h, w, 3) in rows of `columns`, `gap` white pixels around each: uint8 (H, W, 3)."""
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    padded = np.full((rows * columns, height + gap, width + gap, 3), 255, np.uint8)
    padded[:count, :height, :width] = tiles
    grid = padded.reshape(rows, columns, height + gap, width + gap, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * (height + gap), columns * (width + gap), 3)


def file_name(*parts: str) -> str:
    """Words as a part of a file's name."""
    return "-".join(re.sub(r"\W+", "-", part).strip("-") for part in parts)
