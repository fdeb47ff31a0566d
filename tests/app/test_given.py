"""Files from visitors are decoded with limits."""

import re
import struct
import zlib

import pytest
from image_files import image_bytes, pixels, png_of

from ctf.errors import InputError


def bomb(width, height):
    """A PNG of a few kilobytes that holds so many white pixels."""
    data = zlib.compressobj(9)
    rows = b"".join(data.compress(b"\0" + b"\xff" * ((width + 7) // 8)) for _ in range(height)) + data.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))


HOSTILE = {
    "nothing": (None, "cannot be read as an image"),
    "empty": (b"", "cannot be read as an image"),
    "not an image": (b"MZ" + b"\0" * 100, "cannot be read as an image"),
    "text that says PNG": (b"\x89PNG\r\n\x1a\n" + b"<script>", "cannot be read as an image"),
    "truncated": (image_bytes(pixels(0, 200, 200))[:500], "cannot be read as an image"),
    "a truncated JPEG": (image_bytes(pixels(0, 200, 200), "JPEG")[:500], "cannot be read as an image"),
    "a bomb": (bomb(8192, 8192), "8192 × 8192 pixels, at most 16,777,216 are allowed"),
    "a larger bomb": (bomb(30_000, 30_000), "cannot be read as an image"),
    "hair-thin": (bomb(8192, 8), "sides of at most 100 : 1"),
    "a format that others read for us": (image_bytes(pixels(0), "EPS"), "cannot be read as an image"),
    "a TIFF": (image_bytes(pixels(0), "TIFF"), "cannot be read as an image"),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(studio, data, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        studio.upload(data)
    assert len(str(caught.value)) < 300


def test_rows_to_keep_are_at_most_those_of_the_picture(studio):
    given = studio.upload(image_bytes(pixels(0, 16, 16)))
    kept = [studio.marked(given, rows)["keep"].count("1") for rows in (-1, 1, 10**15)]
    assert kept == [0, studio.columns, studio.rows * studio.columns]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "JPEG"])
def test_pictures_are_read_and_cropped(studio, kind):
    given = studio.upload(image_bytes(pixels(0, 30, 40), kind))
    assert (given.image.size, given.image.mode, given.settings) == ((16, 16), "RGB", {})
