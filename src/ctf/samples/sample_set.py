"""Sample sets: an .npz or a folder of PNGs, read and written batch by batch: 50,000 images need not fit in memory."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from ctf.errors import InputError, shortened
from ctf.files import atomic_path, existing, read_json, write_json
from ctf.images.formats import ending, is_hidden, is_image
from ctf.images.sheet import contact_sheet, save_png
from ctf.samples.manifest import Manifest, manifest_path

SHEET = "sheet.png"
SHEET_COLUMNS = 8
SHEET_IMAGES = 64
LIST = "samples.json"


class SampleSet:
    """Samples of ours or of anyone: an .npz with `arr_0`, or a folder of PNGs.

    Attributes:
        count: number of images.
        image_size: (height, width).
        labels: int64 (count,), or None if not known.
        manifest: how they were made, or None if nothing says so.
    """

    count: int
    image_size: tuple[int, int]
    labels: np.ndarray | None = None
    manifest: Manifest | None = None

    @staticmethod
    def open(path: str | Path) -> SampleSet:
        """Look at the samples at `path` without reading their pixels.

        Raises:
            InputError: see `ImageArray` and `ImageFolder`; or another number or size of images than the manifest says.
        """
        samples = ImageArray(path) if Path(path).suffix == ".npz" else ImageFolder(path)
        if manifest_path(path).exists():
            samples.manifest = manifest = Manifest.load(manifest_path(path))
            if (manifest.count, manifest.image_size) != (samples.count, samples.image_size):
                (h, w), (height, width) = samples.image_size, manifest.image_size
                raise InputError(
                    f"{path} holds {samples.count:,} images of {h} × {w}, {manifest_path(path)} says "
                    f"{manifest.count:,} of {height} × {width}: they do not belong together, sample again"
                )
        return samples

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Stream uint8 (b, H, W, 3), in order; b is `batch_size`, less in the last.

        Raises:
            InputError: damaged images.
        """
        raise NotImplementedError

    def read(self, places: Iterable[int]) -> dict[int, np.ndarray]:
        """The images at these places: uint8 (H, W, 3) each. Raises InputError: damaged images."""
        wanted, start = set(places), 0
        found: dict[int, np.ndarray] = {}
        for batch in self.batches(64):
            found |= {i: batch[i - start].copy() for i in wanted if start <= i < start + len(batch)}
            start += len(batch)
            if len(found) == len(wanted):
                break
        return found


class ImageArray(SampleSet):
    """`arr_0` of an .npz, which is read as a stream and never loaded whole; `labels` of the same file.

    Raises:
        InputError: missing, truncated, without `arr_0`, not uint8 [n, H, W, 3] with n > 0, or other than n labels.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = existing(path, "file of images")
        with self._open() as (archive, _, shape, dtype):
            if dtype != np.uint8:
                raise InputError(f"{path}: arr_0 holds {dtype} values: convert the images to uint8 from 0 to 255")
            if len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
                raise InputError(
                    f"{path}: arr_0 has the shape {list(shape)}: images are [n, height, width, 3], n positive"
                )
            self.count, self.image_size = shape[0], (shape[1], shape[2])
            if "labels.npy" in archive.namelist():
                with archive.open("labels.npy") as file:
                    labels = npy.read_array(file, allow_pickle=False)
                if labels.shape != shape[:1] or labels.dtype.kind not in "iu":
                    raise InputError(
                        f"{path}: labels are {labels.dtype} {list(labels.shape)} for {self.count} images: "
                        "one integer per image is needed"
                    )
                self.labels = labels.astype(np.int64)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        with self._open() as (_, file, _, _):
            for start in range(0, self.count, batch_size):
                shape = (min(batch_size, self.count - start), *self.image_size, 3)
                pixels = file.read(math.prod(shape))
                if len(pixels) != math.prod(shape):
                    raise EOFError("fewer images than it says")
                yield np.frombuffer(bytearray(pixels), np.uint8).reshape(shape)  # a copy that may be written to

    @contextmanager
    def _open(self) -> Iterator[tuple[zipfile.ZipFile, IO[bytes], tuple[int, ...], np.dtype]]:
        """The archive, `arr_0` behind its header, and the shape and dtype that the header gives."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                if "arr_0.npy" not in archive.namelist():
                    names = [name.removesuffix(".npy") for name in archive.namelist()]
                    if {"mu", "sigma"} <= {*names}:
                        raise InputError(f"{self.path} holds moments and no images: give the images themselves")
                    raise InputError(
                        f"{self.path} holds {', '.join(names) or 'nothing'}: the images must be called arr_0"
                    )
                with archive.open("arr_0.npy") as file:
                    read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                    shape, fortran, dtype = read(file)
                    data = archive.getinfo("arr_0.npy").file_size - file.tell()
                    if data != math.prod(shape) * dtype.itemsize and not dtype.hasobject:
                        raise ValueError(f"{data:,} bytes for an array {list(shape)}")
                    if fortran:
                        raise InputError(f"{self.path}: arr_0 is in Fortran order: save np.ascontiguousarray(images)")
                    yield archive, file, shape, dtype
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, MemoryError) as error:
            raise InputError(f"{self.path} is truncated or not an .npz ({error}): copy or write it again") from None


class ImageFolder(SampleSet):
    """The PNGs of a folder in the order of their names, `sheet.png` left out; labels are those of `samples.json`.

    Raises:
        InputError: no folder, no PNG in it, one that is unreadable or not 8-bit RGB, images of several sizes, or a
            `samples.json` without their labels.
    """

    def __init__(self, path: str | Path) -> None:
        path = existing(path, "folder of images")
        names = sorted(name for name in os.listdir(path) if is_image(name) and not is_hidden(name) and name != SHEET)
        self._files = [path / name for name in names if ending(name) == ".png"]
        if not self._files:
            raise InputError(f"{path} holds no PNG images: give an .npz, or a folder with a PNG per image")
        if others := [name for name in names if ending(name) != ".png"]:
            raise InputError(f"{path} holds pictures that are no PNGs ({shortened(others)}): convert or move them")
        sizes = {}
        for file in self._files:
            with _open(file) as image:
                sizes[image.size] = file.name
        if len(sizes) > 1:
            several = ", ".join(f"{name} has {height} × {width}" for (width, height), name in list(sizes.items())[:2])
            raise InputError(f"{path} holds images of several sizes ({several}): bring them to one size")
        ((width, height),) = sizes
        self.count, self.image_size = len(self._files), (height, width)
        if (path / LIST).exists():
            try:
                listed = {fact["file"]: fact["label"] for fact in read_json(path / LIST)}
                self.labels = np.array([listed[file.name] for file in self._files], np.int64)
            except (TypeError, ValueError, LookupError, OverflowError):
                raise InputError(f"{path / LIST} lacks the label of an image: restore it or delete it") from None

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self._files), batch_size):
            images = []
            for file in self._files[start : start + batch_size]:
                with _open(file) as image:
                    images.append(np.array(image))
            yield np.stack(images)


@contextmanager
def _open(file: Path) -> Iterator[Image.Image]:
    """An image whose size and mode are known; its pixels are read when they are asked for."""
    try:
        with Image.open(file) as image:
            if image.mode != "RGB":
                raise InputError(f"{file} is a PNG of mode {image.mode}: convert the images to RGB of 8 bits")
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as Pillow's decoders raise
        raise InputError(f"{file} cannot be read ({error}): copy or write it again") from None


def write_images(
    path: str | Path, batches: Iterable[np.ndarray], count: int, size: tuple[int, int], labels: np.ndarray | None = None
) -> None:
    """Write `arr_0` and, if given, `labels` as `np.savez` does, atomically, with one batch in memory.

    Stored uncompressed, with zip64 records, `arr_0` first, as ADM's evaluator reads it. The entries have a fixed date:
    equal images are equal bytes.

    Args:
        path: the .npz.
        batches: uint8 (b, H, W, 3), `count` images in all.
        count: number of images.
        size: (H, W).
        labels: int64 (count,).

    Raises:
        InputError: images of another size or number, or labels of another number.
    """
    entries: list[tuple[str, Any, tuple[int, ...], Iterable[np.ndarray]]]
    entries = [("arr_0", np.dtype(np.uint8), (count, *size, 3), batches)]
    if labels is not None:
        entries.append(("labels", labels.dtype, labels.shape, [labels]))
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, dtype, shape, arrays in entries:
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:  # dated 1980
                header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                npy.write_array_header_1_0(file, header)
                written = 0
                for array in arrays:
                    if array.dtype != dtype or array.shape[1:] != shape[1:]:
                        found = f"{array.dtype} {list(array.shape)}"
                        raise InputError(f"{path}: {name} of {found}, but {dtype} {list(shape)} was announced")
                    file.write(np.ascontiguousarray(array).data)
                    written += len(array)
                if written != shape[0]:
                    raise InputError(f"{path}: {written} of {name} came, but {shape[0]} were announced")


def write_folder(
    path: Path, batches: Iterable[np.ndarray], facts: list[dict[str, Any]], before: Sequence[np.ndarray] = ()
) -> None:
    """Write a PNG for each of `facts`, see `folder_list`, `samples.json` (that list) and `sheet.png`, atomically.

    `batches` are uint8 (b, H, W, 3). The sheet shows the first 64, and begins with the images `before`.
    """
    shown = [*before]
    with atomic_path(path) as temporary:
        temporary.mkdir()
        for fact, image in zip(facts, (image for batch in batches for image in batch), strict=True):
            Image.fromarray(image).save(temporary / fact["file"])
            if len(shown) < SHEET_IMAGES:
                shown.append(image)
        write_json(temporary / LIST, facts)
        save_png(temporary / SHEET, sheet(shown))


def folder_list(labels: Sequence[int], class_names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """The entries of `samples.json`, one for each image of a folder."""
    return [
        {"file": f"{i:06d}-class-{label:04d}.png", "label": label, "class": class_names[label], "seed": seed + i}
        for i, label in enumerate(labels)
    ]


def sheet(images: Sequence[np.ndarray]) -> Image.Image:
    """Up to 64 images, eight in a row; small ones at twice their size."""
    images = images[:SHEET_IMAGES]
    rows = [images[start : start + SHEET_COLUMNS] for start in range(0, len(images), SHEET_COLUMNS)]
    return contact_sheet(rows, scale=2 if images[0].shape[0] <= 64 else 1)
