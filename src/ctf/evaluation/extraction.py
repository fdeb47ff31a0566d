"""Features of many images in one pass: their statistics, and the rows that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ctf.evaluation.features import FeatureExtractor
from ctf.evaluation.statistics import FeatureStatistics
from ctf.progress import progress_bar


@dataclass(frozen=True)
class Extracted:
    """What an extractor sees of a set of n images, m of them kept.

    Attributes:
        statistics: mean and covariance of the features of all n.
        spatial: of the spatial features, where the extractor has any.
        features: float32 (m, d).
        probabilities: float32 (m, classes), where the extractor has any.
    """

    statistics: FeatureStatistics
    spatial: FeatureStatistics | None
    features: np.ndarray
    probabilities: np.ndarray | None


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
