"""Pictures between the web app and the model: uploads that are checked, and images as it shows them.

No file is read or written: a picture comes and goes as a data URL, `data:image/png;base64,…`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from ctf.errors import InputError
from ctf.images.sheet import png_bytes
from ctf.samples.complete import read_picture

#: Of an uploaded file, 8 MiB, and of the picture in it.
MOST_BYTES = 8 << 20
MOST_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
#: Pixels on the screen that an image should have at least.
SHOWN = 128


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


def enlarged(image: Image.Image, shown: int = SHOWN) -> int:
    """Pixels on the screen for an image's width: a whole multiple, so that pixels stay crisp."""
    return image.width * max(1, round(shown / image.width))


def figure(
    image: Image.Image, caption: str, note: str = "", width: int = 0, notes: Mapping[str, str] | None = None
) -> str:
    """An image with a caption, and a second line under it, as HTML; `notes` go into its PNG."""
    width, name = width or enlarged(image), escape(caption, quote=True)
    below, source = f"<small>{escape(note)}</small>" if note else "", data_url(png_bytes(image, **notes or {}))
    return (
        f'<figure style="width:{width}px"><img src="{source}" alt="{name}" width="{width}">'
        f'<figcaption title="{name}">{escape(caption)}{below}</figcaption></figure>'
    )


def token_grid(numbers: Sequence[int], labels: Sequence[int], columns: int) -> str:
    """Tokens as coloured cells: equal colours are equal clusters; which token and cluster each is, is in its title."""
    text = columns <= 8  # more would be too small to read
    cells = "".join(
        f'<i style="--hue:{label * 137.5 % 360:.0f};--light:{45 + label * 7 % 30}%" title="token {number}, cluster '
        f'{label}">{label if text else ""}</i>'
        for number, label in zip(numbers, labels, strict=True)
    )
    return f'<div class="tokens" style="--columns:{columns}">{cells}</div>'


def tile_sheet(tiles: np.ndarray, columns: int, gap: int) -> np.ndarray:
    """uint8 (n, h, w, 3) in rows of `columns`, `gap` white pixels around each: uint8 (H, W, 3)."""
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    padded = np.full((rows * columns, height + gap, width + gap, 3), 255, np.uint8)
    padded[:count, :height, :width] = tiles
    grid = padded.reshape(rows, columns, height + gap, width + gap, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * (height + gap), columns * (width + gap), 3)
