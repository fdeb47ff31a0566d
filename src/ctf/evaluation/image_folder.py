"""Images as a folder: a PNG each, a list of what they show, and a contact sheet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ctf.errors import InputError
from ctf.files import atomic_path, existing, read_json, write_json
from ctf.images.sheet import contact_sheet, save_png

SHEET = "sheet.png"
SHEET_COLUMNS = 8
SHEET_IMAGES = 64


def write_folder(
    path: Path, batches: Iterable[np.ndarray], labels: Sequence[int], class_names: Sequence[str], seed: int
) -> None:
    """Write `000000-class-0003.png` …, `samples.json` (a list of them) and `sheet.png` (the first 64), atomically.

    Args:
        path: the folder.
        batches: uint8 (b, H, W, 3).
        labels: one per image.
        class_names: the name of each label.
        seed: of the first image; image i has seed + i.
    """
    names = [f"{i:06d}-class-{label:04d}.png" for i, label in enumerate(labels)]
    shown: list[np.ndarray] = []
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for name, image in zip(names, (image for batch in batches for image in batch), strict=True):
            Image.fromarray(image).save(temporary / name)
            if len(shown) < SHEET_IMAGES:
                shown.append(image)
        facts = [
            {"file": name, "label": label, "class": class_names[label], "seed": seed + i}
            for i, (name, label) in enumerate(zip(names, labels, strict=True))
        ]
        write_json(temporary / "samples.json", facts)
        save_png(temporary / SHEET, sheet(shown))


def sheet(images: Sequence[np.ndarray]) -> Image.Image:
    """Up to 64 images, eight in a row; small ones at twice their size."""
    images = images[:SHEET_IMAGES]
    rows = [images[start : start + SHEET_COLUMNS] for start in range(0, len(images), SHEET_COLUMNS)]
    return contact_sheet(rows, scale=2 if images[0].shape[0] <= 64 else 1)


class ImageFolder:
    """The PNGs of a folder in the order of their names, `sheet.png` left out.

    Attributes:
        shape: (n, H, W, 3).
        labels: int64 (n,) from `samples.json`, or None without it.

    Raises:
        InputError: no folder, no PNG in it, one that is unreadable or not 8-bit RGB, or images of several sizes.
    """

    shape: tuple[int, int, int, int]
    labels: np.ndarray | None

    def __init__(self, path: str | Path) -> None:
        path = existing(path, "folder of images")
        self._files = sorted(file for file in path.glob("*.png") if file.name != SHEET)
        if not self._files:
            raise InputError(f"{path} holds no PNG images: give an .npz, or a folder with a PNG per image")
        sizes = {_open(file).size: file.name for file in self._files}
        if len(sizes) > 1:
            several = ", ".join(f"{name} has {height} × {width}" for (width, height), name in list(sizes.items())[:2])
            raise InputError(f"{path} holds images of several sizes ({several}): bring them to one size")
        ((width, height),) = sizes
        self.shape = (len(self._files), height, width, 3)
        self.labels = None
        if (path / "samples.json").exists():
            listed = {fact["file"]: fact["label"] for fact in read_json(path / "samples.json")}
            self.labels = np.array([listed[file.name] for file in self._files], np.int64)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Stream uint8 (b, H, W, 3); b is `batch_size`, less in the last.

        Raises:
            InputError: a file that cannot be read.
        """
        for start in range(0, len(self._files), batch_size):
            yield np.stack([_pixels(file) for file in self._files[start : start + batch_size]])


def _open(file: Path) -> Image.Image:
    """Its size and kind are read, its pixels not yet."""
    try:
        with Image.open(file) as image:
            if image.mode == "RGB":
                return image
    except OSError as error:
        raise _unreadable(file, error) from None
    raise InputError(f"{file} is a PNG of mode {image.mode}: convert the images to RGB of 8 bits")


def _pixels(file: Path) -> np.ndarray:
    try:
        with Image.open(file) as image:
            return np.array(image)
    except (OSError, SyntaxError) as error:  # Pillow raises either for a damaged PNG
        raise _unreadable(file, error) from None


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} cannot be read ({error}): copy or write it again")
