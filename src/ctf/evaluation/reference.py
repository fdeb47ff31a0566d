"""What samples are compared with: reference statistics of an extractor, computed once and kept."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ctf.errors import InputError
from ctf.evaluation.extraction import Extracted, extract
from ctf.evaluation.features import FeatureExtractor
from ctf.evaluation.reference_images import open_reference_images
from ctf.evaluation.statistics import FeatureStatistics
from ctf.files import load_tensors, save_tensors

#: Reference images of precision and recall; ADM's reference batches hold as many.
PRECISION_IMAGES = 10_000


@dataclass(frozen=True)
class Reference:
    """A reference set as one extractor sees it.

    Attributes:
        statistics: mean and covariance of the features.
        spatial_statistics: of the spatial features, where the extractor has any.
        features: float32 (m, d) for precision, recall and the kernel distance, m ≤ 10,000: spread evenly over the
            set, because a folder is sorted by class.
        count: images in `source`; moments from a file may be those of a larger set.
        image_size: (height, width) in pixels.
        source: where it came from.
        fingerprint: 16 hexadecimal digits of the pixels, and of the moments that came with them.
        origin: "moments from file" or "computed".
        cached: whether the features were read from the cache.
        extractor: fingerprint of what computed the features.
        resize: what was done to the images, "ADM's centre crop"; None if they are as they were stored.
        note: names the images that were left out as unreadable; "" if none.
    """

    statistics: FeatureStatistics
    spatial_statistics: FeatureStatistics | None
    features: np.ndarray
    count: int
    image_size: tuple[int, int]
    source: str
    fingerprint: str
    origin: str
    cached: bool
    extractor: str
    resize: str | None
    note: str

    def check(self, image_size: tuple[int, int], extractor: FeatureExtractor) -> None:
        """Raise InputError unless this is what samples of `image_size` may be compared with in these features."""
        _check_size(self.source, self.image_size, image_size)
        if self.extractor != extractor.fingerprint:
            raise InputError(
                f"the reference {self.source} was opened with other features than {extractor.name}: open it again"
            )


def open_reference(
    source: str,
    extractor: FeatureExtractor,
    split: str | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Reference:
    """Reference statistics of `source`; features are read from the cache if these pixels were seen before.

    Args:
        source: an .npz with `arr_0` (ADM's reference batches; their `mu`, `sigma`, `mu_s` and `sigma_s` are taken as
            they are, for the "inception" extractor, whose moments they hold), a set of samples, or anything that
            `open_images` takes.
        extractor: computes the features.
        split: which part of the images.
        image_size: (height, width) of what will be compared. Images are cropped to it; stored sets must have it.
        batch_size: images at a time.
        cache: folder for computed features; $CTF_CACHE or ~/.cache/ctf without it.
        progress: show progress bars.

    Raises:
        InputError: nothing there, unreadable, or of another size.
    """
    images = open_reference_images(source, split, image_size)
    if image_size:
        _check_size(source, images.size, image_size)
    fingerprint = images.fingerprint(batch_size, progress)
    path = _cache_folder(cache) / f"{_digest(extractor.name, extractor.fingerprint, fingerprint)}.safetensors"
    cached = path.exists()
    if not cached:
        batches = images.batches(batch_size)
        _save(path, extract(extractor, batches, images.count, PRECISION_IMAGES, "reference", progress))
    statistics, spatial, features, count = _load(path)
    origin = "computed"
    if extractor.name == "inception" and (moments := _moments(source)):
        statistics, spatial, digest = moments
        fingerprint, origin = _digest(fingerprint, digest), "moments from file"
    place = source if split is None else f"{source}, split {split}"
    return Reference(
        statistics,
        spatial,
        features,
        count,
        images.size,
        place,
        fingerprint,
        origin,
        cached,
        extractor.fingerprint,
        images.resize,
        images.note(),
    )


def _check_size(source: str, reference: tuple[int, int], samples: tuple[int, int]) -> None:
    if reference != samples:
        raise InputError(
            f"the reference {source} has images of {reference[0]} × {reference[1]} pixels, the samples have "
            f"{samples[0]} × {samples[1]}: sizes must be equal, so give another reference"
        )


def _moments(source: str) -> tuple[FeatureStatistics, FeatureStatistics | None, str] | None:
    """The moments in an ADM batch, and a digest of them; None where there are none."""
    if not source.endswith(".npz"):
        return None
    with np.load(source) as file:
        names = [pair for pair in (("mu", "sigma"), ("mu_s", "sigma_s")) if {*pair} <= {*file.files}]
        pairs = [(file[mean], file[covariance]) for mean, covariance in names]
    if ("mu", "sigma") not in names:
        return None
    digest = _digest(*(array.tobytes() for pair in pairs for array in pair))
    pool, *spatial = (FeatureStatistics.from_moments(*pair) for pair in pairs)
    return pool, spatial[0] if spatial else None, digest


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0" if isinstance(part, str) else part)
    return digest.hexdigest()[:16]


def _cache_folder(given: str | Path | None) -> Path:
    return Path(given or os.environ.get("CTF_CACHE") or Path.home() / ".cache" / "ctf") / "references"


def _save(path: Path, extracted: Extracted) -> None:
    arrays = {"features": extracted.features}
    for name, statistics in ("pool", extracted.statistics), ("spatial", extracted.spatial):
        if statistics is not None:
            arrays |= {f"{name}_mean": statistics.mean, f"{name}_covariance": statistics.covariance}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_tensors(path, tensors, {"ctf": "reference", "count": str(extracted.statistics.count)})


def _load(path: Path) -> tuple[FeatureStatistics, FeatureStatistics | None, np.ndarray, int]:
    tensors, metadata = load_tensors(path)
    count = int(metadata["count"])
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}

    def statistics(name: str) -> FeatureStatistics:
        return FeatureStatistics.from_moments(arrays[f"{name}_mean"], arrays[f"{name}_covariance"], count)

    spatial = statistics("spatial") if "spatial_mean" in arrays else None
    return statistics("pool"), spatial, arrays["features"], count
