"""ImageSet: images of one size at random access, decoded in threads, unreadable ones left out."""

from __future__ import annotations

import io
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from ctf.errors import InputError, shortened
from ctf.fingerprint import text_fingerprint
from ctf.images.crop import Crop, center_crop
from ctf.images.records import Records, warn
from ctf.images.sources import open_records
from ctf.images.splits import match_split
from ctf.images.urls import UnreachableError, is_url, url_records

MAX_ASPECT = 100  # longer by shorter side: a crop from a hair-thin image would first make it as long as it is thin
MAX_SIZE = 8192
MIN_WHITE = 1 << 12  # 16-bit images below it are 8-bit or 12-bit numbers in wider ones, and would be black
#: Splits that are made of any source: what is held out, and the rest.
MADE_SPLITS = ("held-out", "not-held-out")
# What Pillow warns of in an image, `decode` refuses or does not mind.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageSet:
    """A set of images, each decoded to `size` × `size` RGB by ADM's centre crop when it is read.

    Attributes:
        source: what `open_images` was given.
        size: pixels per side.
        labels: int64 (n,); all zeros where the source has none.
        class_names: the name of each label; ["image"] where the source has no labels.
    """

    def __init__(self, records: Records, source: str, size: int) -> None:
        self.source = source
        self.size = size
        self.labels = records.labels
        self.class_names = records.class_names
        self._records = records
        self._unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> ImageSet:
        """These images only, int64 (m,), in this order."""
        return ImageSet(self._records.subset(indices), self.source, self.size)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with a file of the source: its name, size or time. No image is read."""
        return text_fingerprint(self._records.files())

    def name(self, index: int) -> str:
        """The name of image `index` in a message, in one line."""
        return self._records.name(index)

    def read(self, index: int, size: int | None = None, crop: Crop = center_crop) -> np.ndarray:
        """Image `index`: uint8 (size, size, 3). `size` replaces the set's own, for crops that need a margin.

        Raises:
            InputError: the image is damaged, or more than `decode` takes. It is then in `skipped` too.
            UnreachableError: its bytes did not come from a URL.
        """
        try:
            return decode(self._records.encoded(index), size or self.size, crop)
        except UnreachableError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged bytes
            if isinstance(error, RangeError):
                warn(f"{self.source}: grey images whose range is not known are left out: convert them to 8 bits")
            self._unreadable[index] = self._records.name(index)
            raise InputError(
                f"{self.source}: {self._unreadable[index]} is not a readable image ({error}): fix or remove it"
            ) from None

    def as_many_pixels(self, count: int) -> int:
        """How many of these images have no more pixels than `count` of 64 × 64: from 1 to `count`."""
        return max(1, min(count, count * 64**2 // self.size**2))

    def batches(
        self, batch_size: int, part: range | None = None, crop: Crop = center_crop, workers: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Images in order, decoded ahead in threads: (indices (b,), uint8 images (b, size, size, 3), labels (b,)).

        Batches are cut each `batch_size` images from the first; unreadable images are left out of theirs, so b can be
        smaller, and are named in `skipped`.

        Args:
            batch_size: images per batch, unreadable ones included.
            part: indices of the images, all by default. No others are read.
            crop: called with each image and the set's size; what it returns stands in place of (size, size, 3).
            workers: decoding threads; by default one per core, at most 16.

        Raises:
            InputError: not one image of the set is readable.
            UnreachableError: the bytes of one did not come from a URL.
        """

        def read(index: int) -> np.ndarray | None:
            try:
                return self.read(index, crop=crop)
            except UnreachableError:
                raise
            except InputError:
                return None

        part = range(len(self)) if part is None else part
        blocks = [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
        with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as pool:
            pending: deque[Iterator[np.ndarray | None]] = deque()
            for position, block in enumerate(blocks):
                while len(pending) < 3 and position + len(pending) < len(blocks):  # this batch and two ahead
                    pending.append(pool.map(read, blocks[position + len(pending)]))
                images = pending.popleft()
                readable = [(index, image) for index, image in zip(block, images, strict=True) if image is not None]
                if readable:
                    indices = np.array([index for index, _ in readable], dtype=np.int64)
                    yield indices, np.stack([image for _, image in readable]), self.labels[indices]
        if len(self._unreadable) == len(self):
            raise InputError(f"{self.source}: not one image is readable. {self.report_skipped()}")

    @property
    def skipped(self) -> list[str]:
        """Names of the unreadable images met so far, in the order of the set."""
        return [self._unreadable[index] for index in sorted(self._unreadable)]

    def report_skipped(self) -> str:
        """One line that counts the unreadable images met so far and names the first ones; "" if there were none."""
        return report_skipped(self.skipped, len(self))


def report_skipped(names: Sequence[str], count: int) -> str:
    """One line on unreadable images, by `names`, of `count`; "" if there were none."""
    if not names:
        return ""
    return f"Left out {len(names)} of {count} images as unreadable: {shortened(names)}"


def decode(
    encoded: bytes,
    size: int,
    crop: Crop = center_crop,
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
) -> np.ndarray:
    """Bytes of an image file → uint8 (size, size, 3): transparency on white, then the crop, ADM's by default.

    Like ADM, turns nothing: an EXIF orientation is not applied.

    Args:
        encoded: the file.
        size, crop: what `crop` is called with.
        formats: those that are read, in Pillow's words; all without it.
        most_pixels: Pillow's `Image.MAX_IMAGE_PIXELS` (89 million unless it is changed) without it.

    Raises:
        ValueError: more pixels than that, or sides of more than 100 : 1: a small file of such an image takes gigabytes;
            or what `to_rgb` raises.
        Exception: whatever Pillow raises on damaged bytes.
    """
    with Image.open(io.BytesIO(encoded), formats=formats) as image:
        most_pixels = most_pixels or Image.MAX_IMAGE_PIXELS
        if most_pixels and image.width * image.height > most_pixels:
            raise ValueError(f"{image.width} × {image.height} pixels, at most {most_pixels:,} are allowed")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise ValueError(f"{image.width} × {image.height} pixels, sides of at most {MAX_ASPECT} : 1 are allowed")
        return np.asarray(crop(to_rgb(image), size))


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image in any of Pillow's modes, transparency on white.

    16-bit grey keeps its upper byte, as 16-bit colour does in Pillow. Floats from 0 to 1 become 0 to 255.

    Raises:
        RangeError: other numbers, of which nobody knows what is white: Pillow would clip them.
    """
    transparent = image.info.get("transparency")
    if image.mode[0] in "IF":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if image.mode == "F" and low >= 0 and high <= 1:
            grey = np.round(values * 255)
        elif image.mode != "F" and (low == high == 0 or (low >= 0 and MIN_WHITE <= high < 1 << 16)):
            grey = values >> 8
        else:
            raise RangeError(f"mode {image.mode} with values from {low:g} to {high:g}: convert it to 8 bits")
        image = Image.fromarray(grey.astype(np.uint8))
        if isinstance(transparent, int):  # one shade, of 16 bits
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif image.mode == "L" and isinstance(transparent, int) and (tile := getattr(image, "tile", None)):
        scale = {"L;2": 85, "L;4": 17}.get(tile[0][3], 1)  # Pillow scales the pixels, but not the shade
        image.info["transparency"] = transparent * scale
    elif image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)  # of a 16-bit PNG
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


class RangeError(ValueError):
    """Numbers of more than 8 bits without a known range."""


def splits_overlap(split: str | None, other: str | None) -> bool:
    """Whether two splits of one source share images: one is all of it, both are one, or one alone is made of all."""
    if split is None or other is None or match_split(other, [split]) is not None:
        return True
    return len({split, other} & {*MADE_SPLITS}) == 1


def open_images(source: str, split: str | None = None, size: int = 64) -> ImageSet:
    """Open a set of images.

    Args:
        source: one of
            "emoji"          the bundled 64 × 64 emoji, splits "train" and "test". 54 classes, six designs by nine
                             categories: "noto animals";
            "emoji-subgroups"
                             the same under 98 of Unicode's subgroups: "animal-bird". Without 238 of them that are no
                             emoji of Unicode 17 and so have no subgroup;
            "emoji-subgroups-by-design"
                             483 pairs of design and subgroup: "noto animal-bird". Also without the pairs that have
                             fewer than five training images;
            a folder         with one sub-folder of images per class; or with a metadata.csv, .jsonl or .parquet of the
                             columns "file_name" and "label"; or Tiny ImageNet's; or flat, which is one class;
            a .parquet file, a folder of them, or a folder that `datasets` saved;
            a .tar file, a pattern ("path/*.tar") or a folder of them: WebDataset shards with images under `jpg`,
                             `png`, … and labels under `cls` or in `json`'s "label";
            "hf://name"      a data set of the Hugging Face Hub, "hf://owner/name/config" where it has several;
            another URL      "s3://…", "gs://…", "https://…", "file://…": such a folder, file or pattern, read where it
                             lies. (Of local Parquet `datasets` makes a copy first.)
            Labels of another column: "x.parquet#fine_label"; "x.parquet#" is one class.
        split: which part, where the source has several; None takes all, and refuses a folder of splits. In a folder it
            is a sub-folder, also one in each class. Other spellings and cases of a split ("val", "Validation") will do.
            Of any source: "held-out", every tenth image of each class, and "not-held-out", the others.
        size: pixels per side of the images that come out.

    Raises:
        InputError: nothing there, nothing in it, an unknown split, or labels that are missing, outside the class names
            or in one of several columns; at a URL also what its storage refuses, or a package that it needs.
    """
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"size={size}: images have 1 to {MAX_SIZE} pixels per side")
    made = split in MADE_SPLITS
    place, column = split_column(source)
    open_source = url_records if is_url(place) else open_records
    records = open_source(place, None if made else split, column)
    if not len(records.labels):
        raise InputError(f"{source} has no images" + (f" in its split {split!r}" if split and not made else ""))
    if made:
        held_out = every_tenth(records.labels)
        if not held_out.any():
            raise InputError(f"{source}: no class has ten images, so none can be held out: add some, or name no split")
        records = records.subset(np.flatnonzero(held_out == (split == MADE_SPLITS[0])))
    return ImageSet(records, source, size)


def split_column(source: str) -> tuple[str, str | None]:
    """Source and column of labels, unless "#" is in a file's name: "a.tar#class" → "a.tar", "class"."""
    place, _, column = source.rpartition("#")
    return (place, column) if place and "/" not in column and not os.path.exists(source) else (source, None)


def every_tenth(labels: np.ndarray) -> np.ndarray:
    """Whether an image is the tenth, twentieth … of its class: bool (n,)."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    chosen = np.empty(len(labels), dtype=bool)
    chosen[order] = (np.arange(len(labels)) - first) % 10 == 9
    return chosen
