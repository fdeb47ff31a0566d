"""Images to compare with, in any layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ctf.errors import InputError
from ctf.evaluation.manifest import manifest_path
from ctf.evaluation.npz_stream import ImageArray
from ctf.evaluation.sample_set import SampleSet
from ctf.images.image_set import open_images
from ctf.progress import progress_bar


@dataclass(frozen=True)
class ReferenceImages:
    """A set of images of any layout, to be read as often as needed.

    Attributes:
        count: images, unreadable ones included.
        size: (height, width).
        batches: batch size → uint8 (b, height, width, 3) in order, unreadable ones left out.
        resize: see `Reference`.
        note: names the unreadable images met so far.
    """

    count: int
    size: tuple[int, int]
    batches: Callable[[int], Iterable[np.ndarray]]
    resize: str | None = None
    note: Callable[[], str] = lambda: ""

    def fingerprint(self, batch_size: int, progress: bool = True) -> str:
        """16 hexadecimal digits of size and pixels: the same for the same images in a folder and in an .npz."""
        digest = hashlib.sha256(repr(self.size).encode())
        with progress_bar(self.count, "fingerprint of the reference", "image", hidden=not progress) as bar:
            for batch in self.batches(batch_size):
                digest.update(np.ascontiguousarray(batch).data)
                bar.update(len(batch))
        return digest.hexdigest()[:16]


def open_reference_images(source: str, split: str | None, image_size: tuple[int, int] | None) -> ReferenceImages:
    """The images of `source`, see `open_reference`; what is not stored as pixels is cropped to `image_size`.

    Raises:
        InputError: nothing there, unreadable, or a split of a source that has none.
    """
    stored = source.endswith(".npz") or manifest_path(source).exists()
    if stored and split is not None:
        raise InputError(f"{source} has no splits: leave out split {split!r}")
    if source.endswith(".npz"):
        array = ImageArray(source)
        return ReferenceImages(array.shape[0], array.shape[1:3], array.batches)
    if stored:
        samples = SampleSet.open(source)
        return ReferenceImages(samples.count, samples.image_size, samples.batches)
    images = open_images(source, split, image_size[0] if image_size else 64)

    def batches(batch_size: int) -> Iterator[np.ndarray]:
        return (batch for _, batch, _ in images.batches(batch_size))

    return ReferenceImages(len(images), (images.size, images.size), batches, "ADM's centre crop", images.report_skipped)
