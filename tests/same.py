"""What tests compare: files byte for byte, images pixel for pixel."""

from pathlib import Path

import numpy as np


def contents(folder):
    """The bytes of every file, by its path in the folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def equal(images, others):
    """Whether as many images have the same pixels; of any type that NumPy takes."""
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(images, others, strict=True))
