"""Reference images of any layout, and their features: computed once and kept in a cache."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctf.cache import cache_folder, from_cache
from ctf.errors import InputError
from ctf.evaluation.extraction import Extracted, extract
from ctf.evaluation.features import FeatureExtractor
from ctf.evaluation.statistics import FeatureStatistics
from ctf.images.image_set import open_images
from ctf.progress import progress_bar
from ctf.samples.manifest import is_sample_set
from ctf.samples.sample_set import SampleSet

#: Reference images of precision and recall; ADM's reference batches hold as many.
PRECISION_IMAGES = 10_000
#: Cached features are taken if those of the first image differ from what the extractor gives now by no more than this
#: share: another device rounds that much, other weights or another function do not.
SAME_FEATURES = 1e-3


@dataclass(frozen=True)
class Reference:
    """A reference set and its features in one extractor.

    Attributes:
        images: to read them again; None if the source holds moments only.
        extracted: statistics of all images, and the features of at most 10,000 for precision, recall and the kernel
            distance: spread evenly over the set, because a folder is sorted by class. Or of all, if asked for.
        extractor: fingerprint of what computed the features.
        source: where the images came from.
        count: readable images in `source`; moments from a file may be those of a larger set.
        image_size: (height, width) in pixels; None without images.
        fingerprint: 16 hexadecimal digits of the pixels, and of the moments that came with them.
        origin: "moments from file" or "computed".
        resize: what was done to the images, "ADM's centre crop"; None if they are as they were stored.
        cached: whether the features were read from the cache.
        note: names the images that were left out as unreadable, or says that there are none; "" otherwise.
    """

    images: SampleSet | None
    extracted: Extracted
    extractor: str
    source: str
    count: int
    image_size: tuple[int, int] | None
    fingerprint: str
    origin: str
    resize: str | None
    cached: bool
    note: str

    def check(self, image_size: tuple[int, int], extractor: FeatureExtractor) -> None:
        """Raise InputError unless this is what samples of `image_size` may be compared with in these features."""
        if self.image_size is not None:
            _check_size(self.source, self.image_size, image_size)
        if self.extractor != extractor.fingerprint:
            raise InputError(
                f"the reference {self.source} was opened with other features than {extractor.name}: open it again"
            )

    def facts(self) -> dict[str, Any]:
        """The reference in a result, as plain JSON."""
        names = ("source", "count", "image_size", "fingerprint", "origin", "resize", "cached")
        size = None if self.image_size is None else list(self.image_size)
        return {name: getattr(self, name) for name in names} | {"image_size": size}


def open_reference(
    source: str,
    extractor: FeatureExtractor,
    split: str | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    progress: bool = True,
    all_features: bool = False,
) -> Reference:
    """Reference statistics of `source`; features are read from the cache if these pixels were seen before.

    Args:
        source: as `open_reference_images` takes it. The `mu`, `sigma`, `mu_s` and `sigma_s` of ADM's reference batches
            are taken as they are, for the "inception" extractor, whose moments they hold. A file of moments without
            images, such as pytorch-fid's, is a reference for Fréchet distances alone.
        extractor: computes the features.
        image_size: (height, width) of what will be compared. Images are cropped to it; stored sets must have it.
        split, batch_size, cache: the options of `ctf evaluate samples`.
        progress: show progress bars.
        all_features: keep the features of every image, in the order of the images.

    Raises:
        InputError: see `open_reference_images`; unreadable images; moments of other features.
    """
    if holds_moments_only(source):
        return _reference_of_moments(source, extractor, split)
    images = open_reference_images(source, split, image_size)
    moments = _moments(source) if extractor.name == "inception" and source.endswith(".npz") else None
    fingerprint = _pixel_fingerprint(images, batch_size, progress)
    folder = Path(cache or cache_folder()) / "references"
    keep = images.count if all_features else PRECISION_IMAGES
    more = [f"{keep} features"] if keep > PRECISION_IMAGES else []

    def load(path: Path) -> Extracted:
        found = Extracted.load(path)
        first = extractor(next(images.batches(1))).pool[0]
        if np.linalg.norm(found.features[0] - first) > SAME_FEATURES * np.linalg.norm(first):
            raise ValueError("the extractor has changed in what its fingerprint does not cover")
        return found

    extracted, cached = from_cache(
        folder / f"{_digest(extractor.name, extractor.fingerprint, fingerprint, *more)}.safetensors",
        load,
        lambda: extract(extractor, images.batches(batch_size), images.count, keep, "reference", progress),
        lambda path, found: found.save(path),
    )
    count, origin = extracted.statistics.count, "computed"
    assert count is not None
    if moments:
        pool, spatial, digest = moments
        _check_dimensions(source, pool, extracted.features.shape[1])
        extracted = replace(extracted, statistics=pool, spatial=spatial)
        fingerprint, origin = _digest(fingerprint, digest), "moments from file"
    return Reference(
        images,
        extracted,
        extractor.fingerprint,
        source if split is None else f"{source}, split {split}",
        count,
        images.image_size,
        fingerprint,
        origin,
        "ADM's centre crop" if isinstance(images, CroppedImages) else None,
        cached,
        images.report_skipped() if isinstance(images, CroppedImages) else "",
    )


def holds_moments_only(source: str) -> bool:
    """Whether `source` is an .npz of `mu` and `sigma` without images, as pytorch-fid writes it."""
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # opening it as images raises with the reason
    return {"mu.npy", "sigma.npy"} <= {*names} and "arr_0.npy" not in names


def _reference_of_moments(source: str, extractor: FeatureExtractor, split: str | None) -> Reference:
    """A reference of moments alone. Raises InputError: a split, or other features than these moments are of."""
    if extractor.name != "inception":
        raise InputError(
            f"{source} holds moments of Inception only, and no images: give images to compare {extractor.name} "
            "features, or take features inception"
        )
    if split is not None:
        raise InputError(f"{source} has no splits: leave out split {split!r}")
    moments = _moments(source)
    assert moments is not None
    pool, spatial, digest = moments
    dimensions = extractor(np.full((1, 64, 64, 3), 128, np.uint8)).pool.shape[1]
    _check_dimensions(source, pool, dimensions)
    extracted = Extracted(pool, spatial, np.empty((0, dimensions), np.float32))
    note = f"{source} holds moments and no images, so precision, recall and KID are left out"
    return Reference(
        None, extracted, extractor.fingerprint, source, 0, None, digest, "moments from file", None, False, note
    )


def _check_dimensions(source: str, moments: FeatureStatistics, dimensions: int) -> None:
    if len(moments.mean) != dimensions:
        raise InputError(
            f"the moments in {source} are of {len(moments.mean):,} features, these are {dimensions:,}: give moments "
            "of Inception's last pooling layer"
        )


def is_stored(source: str) -> bool:
    """Whether a reference is an .npz or a set of samples, which has no splits."""
    return source.endswith(".npz") or is_sample_set(source)


def open_reference_images(
    source: str, split: str | None = None, image_size: tuple[int, int] | None = None
) -> SampleSet:
    """The images of `source`, without reading their pixels.

    Args:
        source: an .npz with `arr_0`, a set of samples, or anything that `open_images` takes.
        split: which part of the images; a stored set has none.
        image_size: (height, width). Images are cropped to it; stored sets must have it.

    Raises:
        InputError: nothing there, of another size, or a split of a source that has none.
    """
    images: SampleSet
    if is_stored(source):
        if split is not None:
            raise InputError(f"{source} has no splits: leave out split {split!r}")
        images = SampleSet.open(source)
    else:
        images = CroppedImages(source, split, image_size[0] if image_size else 64)
    if image_size:
        _check_size(source, images.image_size, image_size)
    return images


class CroppedImages(SampleSet):
    """Images of any layout, cropped to `side` × `side` pixels; unreadable ones are counted but left out."""

    def __init__(self, source: str, split: str | None, side: int) -> None:
        self._images = open_images(source, split, side)
        self.count, self.image_size = len(self._images), (side, side)
        self.report_skipped = self._images.report_skipped

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        return (batch for _, batch, _ in self._images.batches(batch_size))


def _check_size(source: str, reference: tuple[int, int], samples: tuple[int, int]) -> None:
    if reference != samples:
        raise InputError(
            f"the reference {source} has images of {reference[0]} × {reference[1]} pixels, the samples have "
            f"{samples[0]} × {samples[1]}: sizes must be equal, so give another reference"
        )


def _pixel_fingerprint(images: SampleSet, batch_size: int, progress: bool) -> str:
    """16 hexadecimal digits of size and pixels: the same for the same images in a folder and in an .npz."""
    digest = hashlib.sha256(repr(images.image_size).encode())
    with progress_bar(images.count, "fingerprint of the reference", "image", hidden=not progress) as bar:
        for batch in images.batches(batch_size):
            digest.update(np.ascontiguousarray(batch).data)
            bar.update(len(batch))
    return digest.hexdigest()[:16]


def _moments(source: str) -> tuple[FeatureStatistics, FeatureStatistics | None, str] | None:
    """The moments in an ADM batch, and a digest of them; None where there are none."""
    try:
        with np.load(source) as file:
            names = [pair for pair in (("mu", "sigma"), ("mu_s", "sigma_s")) if {*pair} <= {*file.files}]
            pairs = [(file[mean], file[covariance]) for mean, covariance in names]
        if ("mu", "sigma") not in names:
            return None
        pool, *spatial = (FeatureStatistics.from_moments(*pair) for pair in pairs)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"the moments in {source} cannot be read ({error}): copy or write it again") from None
    digest = _digest(*(array.tobytes() for pair in pairs for array in pair))
    return pool, spatial[0] if spatial else None, digest


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0" if isinstance(part, str) else part)
    return digest.hexdigest()[:16]
