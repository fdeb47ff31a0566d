"""What a visitor should not send, and what is said of it."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from ctf.app.pictures import MOST_BYTES, data_url


def image(width=6, height=4, mode="RGB"):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).convert(mode)


def encoded(picture, kind, **settings):
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def bomb(width, height):
    """A PNG of a few kilobytes that holds so many white pixels."""
    data = zlib.compressobj(9)
    rows = b"".join(data.compress(b"\0" + b"\xff" * ((width + 7) // 8)) for _ in range(height)) + data.flush()
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HOSTILE = {
    "nothing": (None, "no picture"),
    "a number": (7, "no picture"),
    "a path": ("/etc/passwd", "no picture: give one as a data URL"),
    "an address": ("http://127.0.0.1:9/x.png", "no picture: give one as a data URL"),
    "a file's address": ("file:///etc/passwd", "no picture: give one as a data URL"),
    "a path as a type": ("data:../../etc/passwd", "no picture: give one as a data URL"),
    "a file as Gradio has it": ({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "no picture"),
    "no base64": ("data:image/png;base64,%%%%", "not valid base64"),
    "empty": (data_url(b""), "cannot be read as an image"),
    "not an image": (data_url(b"MZ" + b"\0" * 100), "cannot be read as an image"),
    "text that says PNG": (data_url(b"\x89PNG\r\n\x1a\n" + b"<script>"), "cannot be read as an image"),
    "truncated": (data_url(encoded(image(200, 200), "PNG")[:500]), "cannot be read as an image"),
    "a truncated JPEG": (data_url(encoded(image(200, 200), "JPEG")[:500]), "cannot be read as an image"),
    "huge": (data_url(b"\0" * (MOST_BYTES + 3)), "the picture has 8 MiB: give one of at most 8"),
    "a bomb": (data_url(bomb(8192, 8192)), "8192 × 8192 pixels, at most 16,777,216 are allowed"),
    "a larger bomb": (data_url(bomb(30_000, 30_000)), "cannot be read as an image"),
    "hair-thin": (data_url(bomb(8192, 8)), "sides of at most 100 : 1"),
    "a format that others read for us": (data_url(encoded(image(), "EPS")), "cannot be read as an image"),
    "a TIFF": (data_url(encoded(image(), "TIFF")), "cannot be read as an image"),
}
