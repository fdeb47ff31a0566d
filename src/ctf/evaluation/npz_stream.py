"""Images in an .npz, written and read batch by batch: 50,000 of them need not fit in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ctf.errors import InputError
from ctf.files import atomic_path, existing


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
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with _entry(archive, "arr_0", np.dtype(np.uint8), (count, *size, 3)) as file:
            for batch in batches:
                file.write(np.ascontiguousarray(batch).data)
        if labels is not None:
            with _entry(archive, "labels", labels.dtype, labels.shape) as file:
                file.write(labels.tobytes())


@contextmanager
def _entry(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:  # dated 1980
        header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, header)
        yield file


class ImageArray:
    """`arr_0` of an .npz, which is read as a stream and never loaded whole.

    Attributes:
        shape: (n, H, W, 3).
        labels: int64 (n,), or None if the file has none.

    Raises:
        InputError: missing, truncated, without `arr_0`, or not uint8 [n, H, W, 3] with n > 0.
    """

    shape: tuple[int, int, int, int]
    labels: np.ndarray | None

    def __init__(self, path: str | Path) -> None:
        self.path = existing(path, "file of images")
        with self._images() as (_, shape, dtype):
            pass
        if dtype != np.uint8:
            raise InputError(f"{path}: arr_0 holds {dtype} values: convert the images to uint8 from 0 to 255")
        if len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise InputError(f"{path}: arr_0 has the shape {list(shape)}: images are [n, height, width, 3], n positive")
        self.shape = shape
        self.labels = self._read_labels()

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Stream uint8 (b, H, W, 3), in order; b is `batch_size`, less in the last.

        Raises:
            InputError: the file is damaged.
        """
        count, *image = self.shape
        with self._images() as (file, _, _):
            for start in range(0, count, batch_size):
                shape = (min(batch_size, count - start), *image)
                pixels = file.read(int(np.prod(shape)))
                if len(pixels) != np.prod(shape):
                    raise EOFError("fewer images than it says")
                yield np.frombuffer(bytearray(pixels), np.uint8).reshape(shape)  # a copy that may be written to

    @contextmanager
    def _images(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
        """`arr_0` behind its header, and what the header says."""
        with self._reading(), zipfile.ZipFile(self.path) as archive:
            if "arr_0.npy" not in archive.namelist():
                names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
                raise InputError(f"{self.path} holds {names or 'nothing'}: the images must be called arr_0")
            with archive.open("arr_0.npy") as file:
                read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
                shape, fortran, dtype = read(file)
                if fortran:
                    raise InputError(f"{self.path}: arr_0 is in Fortran order: save np.ascontiguousarray(images)")
                yield file, shape, dtype

    def _read_labels(self) -> np.ndarray | None:
        with self._reading(), np.load(self.path, allow_pickle=False) as arrays:
            labels = arrays.get("labels")
        if labels is not None and (labels.shape != self.shape[:1] or labels.dtype.kind not in "iu"):
            raise InputError(
                f"{self.path}: labels are {labels.dtype} {list(labels.shape)} for {self.shape[0]} images: "
                "one integer per image is needed"
            )
        return None if labels is None else labels.astype(np.int64)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise InputError(f"{self.path} is truncated or not an .npz ({error}): copy or write it again") from None
