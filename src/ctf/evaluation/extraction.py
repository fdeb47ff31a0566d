"""Features of many images in one pass: their statistics, and the rows that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ctf.evaluation.features import FeatureExtractor
from ctf.evaluation.statistics import FeatureStatistics
from ctf.files import load_tensors, save_tensors
from ctf.progress import progress_bar


@dataclass(frozen=True)
class Extracted:
    """The features of a set of n images, m of them kept.

    Attributes:
        statistics: mean and covariance of the features of all n.
        spatial: of the spatial features, where the extractor has any.
        features: float32 (m, d).
        probabilities: float32 (m, classes), where the extractor has any.
    """

    statistics: FeatureStatistics
    spatial: FeatureStatistics | None
    features: np.ndarray
    probabilities: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write all but the probabilities, atomically."""
        arrays = {"features": self.features}
        for name, statistics in ("pool", self.statistics), ("spatial", self.spatial):
            if statistics is not None:
                arrays |= {f"{name}_mean": statistics.mean, f"{name}_covariance": statistics.covariance}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        save_tensors(path, tensors, {"ctf": "reference", "count": str(self.statistics.count)})

    @classmethod
    def load(cls, path: Path) -> Extracted:
        """Read what `save` wrote. Raises InputError if it is damaged."""
        tensors, metadata = load_tensors(path)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}

        def statistics(name: str) -> FeatureStatistics:
            moments = arrays[f"{name}_mean"], arrays[f"{name}_covariance"]
            return FeatureStatistics.from_moments(*moments, int(metadata["count"]))

        return cls(statistics("pool"), statistics("spatial") if "spatial_mean" in arrays else None, arrays["features"])


def extract(
    extractor: FeatureExtractor,
    batches: Iterable[np.ndarray],
    count: int,
    keep: int | None = None,
    name: str = "features",
    progress: bool = True,
) -> Extracted:
    """Run `extractor` over batches of images.

    Args:
        extractor: computes the features.
        batches: uint8 (b, H, W, 3).
        count: images in all batches together.
        keep: rows to keep, evenly spread over the set because a folder is sorted by class; all without it.
        name: of the progress bar.
        progress: show it.

    Raises:
        InputError: images of a size that the extractor does not take, or features that are not finite.
    """
    kept = np.arange(keep) * count // keep if keep is not None and keep < count else np.arange(count)
    statistics: FeatureStatistics | None = None
    spatial: FeatureStatistics | None = None
    features, probabilities = [], []
    start = 0
    with progress_bar(count, name, "image", hidden=not progress) as bar:
        for images in batches:
            seen = extractor(images)
            if statistics is None:
                statistics = FeatureStatistics(seen.pool.shape[1])
                spatial = None if seen.spatial is None else FeatureStatistics(seen.spatial.shape[1])
            statistics.update(seen.pool)
            if spatial is not None and seen.spatial is not None:
                spatial.update(seen.spatial)
            rows = kept[(kept >= start) & (kept < start + len(images))] - start
            features.append(seen.pool[rows])
            if seen.probabilities is not None:
                probabilities.append(seen.probabilities[rows])
            start += len(images)
            bar.update(len(images))
    assert statistics is not None, "an image set without a readable image raises"
    return Extracted(
        statistics, spatial, np.concatenate(features), np.concatenate(probabilities) if probabilities else None
    )
