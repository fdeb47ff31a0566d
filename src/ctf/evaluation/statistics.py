"""Mean and covariance of features in one pass: what a Fréchet distance compares."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError

FeatureArray: TypeAlias = np.ndarray | Tensor

CHUNK = 4096  # rows converted to float64 at once


class FeatureStatistics:
    """Streaming mean and covariance in float64; memory d × d and one chunk, whatever the number of images.

    Chunks are merged by the update of Chan, Golub and LeVeque (1983), which never subtracts large sums: the result
    does not depend on how the rows were cut, up to rounding.

    Attributes:
        count: images so far; None for moments of an unknown number of images.
        mean: float64 (d,).
        covariance: float64 (d, d), divided by count − 1 as in `numpy.cov`; zero for a single image.
    """

    def __init__(self, dim: int) -> None:
        self.count: int | None = 0
        self.mean = np.zeros(dim)
        self.covariance = np.zeros((dim, dim))

    @classmethod
    def of(cls, features: FeatureArray) -> FeatureStatistics:
        """Statistics of features (n, d). Raises InputError as `update` does."""
        rows = feature_rows(features)
        statistics = cls(rows.shape[1])
        statistics.update(rows)
        return statistics

    @classmethod
    def from_moments(cls, mean: np.ndarray, covariance: np.ndarray, count: int | None = None) -> FeatureStatistics:
        """Statistics that were computed elsewhere: mean (d,), covariance (d, d) and, if known, of how many images.

        Raises:
            InputError: the shapes do not fit each other, or a value is not finite.
        """
        if np.ndim(mean) != 1 or np.shape(covariance) != 2 * np.shape(mean):
            shapes = f"{list(np.shape(mean))} and {list(np.shape(covariance))}"
            raise InputError(f"mean and covariance have shapes {shapes}: give [d] and [d, d]")
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise InputError("mean or covariance hold NaN or infinity: compute these statistics again")
        statistics = cls(0)
        statistics.count = count
        statistics.mean = np.array(mean, np.float64)
        statistics.covariance = np.array(covariance, np.float64)
        return statistics

    def update(self, features: FeatureArray) -> None:
        """Add features (n, d), any real dtype; n may differ from call to call. Needs a known `count`.

        Raises:
            InputError: not (n, d), or rows with NaN or infinity; nothing is added then.
        """
        rows = feature_rows(features)
        if rows.shape[1] != len(self.mean):
            raise InputError(f"features of {rows.shape[1]} values do not fit statistics of {len(self.mean)}")
        for start in range(0, len(rows), CHUNK):
            self._merge(rows[start : start + CHUNK].astype(np.float64))

    def _merge(self, chunk: np.ndarray) -> None:
        assert self.count is not None
        before, added = self.count, len(chunk)
        total = before + added
        mean = chunk.mean(0)
        chunk -= mean
        shift = mean - self.mean
        self.covariance *= max(before - 1, 0)
        self.covariance += chunk.T @ chunk
        self.covariance += np.outer(shift * (before * added / total), shift)
        self.covariance /= max(total - 1, 1)
        self.mean += shift * (added / total)
        self.count = total


def feature_rows(features: FeatureArray) -> np.ndarray:
    """Features as float32 or float64 (n, d) on the CPU, not copied where they are that already.

    Raises:
        InputError: another rank, or rows with NaN or infinity.
    """
    if isinstance(features, Tensor):
        features = features.detach().cpu().to(torch.promote_types(features.dtype, torch.float32)).numpy()
    rows = np.asarray(features)
    if rows.ndim != 2:
        raise InputError(f"features have shape {list(rows.shape)}: give [n, d], a row for each image")
    bad = len(rows) - int(np.isfinite(rows).all(1).sum())
    if bad:
        raise InputError(f"{bad} of {len(rows)} rows hold NaN or infinity: compute these features again")
    return rows.astype(np.result_type(rows, np.float32), copy=False)
