"""File names of pictures."""

from __future__ import annotations

from functools import cache

from PIL import Image

#: What Pillow opens beside pictures: documents, vector graphics, films, measurements, icons.
NO_PICTURES = frozenset(
    {"BUFR", "CUR", "EPS", "FITS", "FLI", "GBR", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PDF", "WMF"}
    | {"XBM", "XPM"}
)
#: What operating systems and tools leave behind, beside names that begin with a dot.
SYSTEM = frozenset(
    {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__"}
    | {"thumbs.db", "desktop.ini"}
)


@cache
def image_endings() -> frozenset[str]:
    """Endings of the pictures that the installed Pillow reads: ".jpg", ".png", …"""
    registered = Image.registered_extensions()  # also fills `Image.OPEN`
    return frozenset(end for end, kind in registered.items() if kind in Image.OPEN and kind not in NO_PICTURES)


def ending(path: str) -> str:
    """The last extension in lower case, with its dot."""
    _, dot, last = path.rpartition(".")
    return f".{last.lower()}" if dot and "/" not in last else ""


def is_image(path: str) -> bool:
    """Whether a file has the ending of a picture."""
    return ending(path) in image_endings()


def is_hidden(path: str) -> bool:
    """Whether a file or folder, or one above it, belongs to an operating system or a tool and to no set of images."""
    return any(part.startswith(".") or part.casefold() in SYSTEM for part in path.split("/"))
