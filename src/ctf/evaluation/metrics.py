"""Fréchet distance, Inception Score, precision and recall as the ADM evaluator defines them; the kernel distance."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.evaluation.statistics import FeatureArray, FeatureStatistics, feature_rows

SUM_TOLERANCE = 1e-3  # of probabilities that were rounded to 16 bits
BLOCK = 1 << 25  # squared distances held at once


def frechet_distance(a: FeatureArray | FeatureStatistics, b: FeatureArray | FeatureStatistics) -> float:
    """‖μa − μb‖² + tr Σa + tr Σb − 2 tr (Σa Σb)^½: the FID, if the features are Inception's (Heusel et al. 2017).

    tr (Σa Σb)^½ is computed as the sum of the singular values of Σa^½ Σb^½: exact for singular covariances too,
    where the square root of the product is not.

    Args:
        a, b: features (n, d), any real dtype, or their statistics; the order does not matter.

    Returns:
        The distance in squared units of the features, at least 0. Warns where covariances are singular because there
        are not more images than features: the value is then biased and tells the number of images too.

    Raises:
        InputError: different d, fewer than 2 images, or features with NaN or infinity.
    """
    first, second = (x if isinstance(x, FeatureStatistics) else FeatureStatistics.of(x) for x in (a, b))
    dim = _same_dim(len(first.mean), len(second.mean))
    count = min((x.count for x in (first, second) if x.count is not None), default=dim + 1)
    if count < 2:
        raise InputError(f"a Fréchet distance of {count} image(s): give at least 2 on each side")
    if count <= dim:
        warnings.warn(
            f"only {count} images for {dim} features: this Fréchet distance is biased and depends on the number of "
            "images; compare it only with values of equally many images",
            stacklevel=2,
        )
    overlap = np.linalg.svd(_root(first.covariance).T @ _root(second.covariance), compute_uv=False).sum()
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    return max(float(np.square(first.mean - second.mean).sum() + traces - 2 * overlap), 0.0)


def inception_score(probs: FeatureArray, split_size: int = 5000) -> float:
    """exp E[KL(p(y|x) ‖ p(y))] of each `split_size` rows, in order, averaged over these splits (Salimans et al. 2016).

    Args:
        probs: (n, classes), each row the probabilities of an image; a last split of fewer rows counts as one.
        split_size: rows of a split.

    Raises:
        InputError: no rows, rows that are no probabilities, or a split size below 1.
    """
    rows = feature_rows(probs)
    if len(rows) == 0 or split_size < 1:
        raise InputError(f"Inception Score of {len(rows)} rows in splits of {split_size}: both must be at least 1")
    wrong = int(((rows < 0).any(1) | (abs(rows.sum(1) - 1) > SUM_TOLERANCE)).sum())
    if wrong:
        raise InputError(f"{wrong} of {len(rows)} rows are no probabilities (≥ 0, sum 1): give the output of a softmax")
    scores = []
    for start in range(0, len(rows), split_size):
        part = rows[start : start + split_size].astype(np.float64)
        ratio = np.divide(part, part.mean(0), out=np.ones_like(part), where=part > 0)  # 0 log 0 = 0
        scores.append(np.exp((part * np.log(ratio)).sum(1).mean()))
    return float(np.mean(scores))


def precision_recall(reference: FeatureArray, samples: FeatureArray, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019): how much of one set lies in the other's manifold.

    Precision is the fraction of samples in the reference's manifold, recall that of the reference in theirs. The
    manifold of a set is the union of the balls around its points that reach to their k-th nearest neighbour in the
    set, the border included. The ADM evaluator computes the same, but rounds distances to 16 bits: its values differ
    by up to 0.005.

    Args:
        reference: (n, d), any real dtype. Both sets are compared in float32, in float64 if one of them is.
        samples: (m, d).
        k: which neighbour sets the radius; a point is not its own neighbour, equal points are neighbours.

    Raises:
        InputError: different d, features with NaN or infinity, k below 1, or a set of k or fewer points.
    """
    rows, others = feature_rows(reference), feature_rows(samples)
    _same_dim(rows.shape[1], others.shape[1])
    if not 1 <= k < min(len(rows), len(others)):
        raise InputError(f"k {k} with {len(rows)} and {len(others)} images: give at least 1, and more images than k")

    # Distances do not change, and their difference of squares cancels less, around a common centre.
    dtype = np.result_type(rows, others)
    center = rows.mean(0, dtype=np.float64).astype(dtype)
    a, b = torch.from_numpy(rows - center), torch.from_numpy(others - center)
    norms_a, norms_b = (torch.linalg.vector_norm(x, dim=1).square() for x in (a, b))
    radii_a, radii_b = _squared_radii(a, norms_a, k), _squared_radii(b, norms_b, k)

    # ‖a − b‖² ≤ r², where distances that are equal but for rounding must count as equal: those of duplicates are.
    slack = 1 - 16 * torch.finfo(a.dtype).eps
    norms_a, norms_b = norms_a * slack, norms_b * slack
    realistic = torch.zeros(len(b), dtype=torch.bool)
    covered = torch.zeros(len(a), dtype=torch.bool)
    rows_at_once = max(1, BLOCK // len(a))
    for start in range(0, len(b), rows_at_once):
        part = slice(start, start + rows_at_once)
        products = b[part] @ a.T  # (rows, n)
        products *= -2
        realistic[part] = (products + (norms_a - radii_a)).amin(1) <= -norms_b[part]
        covered |= (products + (norms_b - radii_b)[part, None]).amin(0) <= -norms_a
    return realistic.double().mean().item(), covered.double().mean().item()


def kernel_distance(
    reference: FeatureArray, samples: FeatureArray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> float:
    """KID (Bińkowski et al. 2018): unbiased squared MMD with the kernel (x·y / d + 1)³, averaged over random subsets.

    Args:
        reference, samples: (n, d) and (m, d), any real dtype.
        subsets: how many pairs of subsets to average over.
        subset_size: images of each, sampled without replacement; all images of the smaller set if it has fewer, for the
            estimate is unbiased at any size.
        seed: of the subsets.

    Returns:
        The mean squared MMD, without the factor 10³ that some papers apply; slightly negative for equal distributions.

    Raises:
        InputError: different d, features with NaN or infinity, fewer than 2 images, or no subset.
    """
    a, b = feature_rows(reference), feature_rows(samples)
    _same_dim(a.shape[1], b.shape[1])
    size = min(subset_size, len(a), len(b))
    if size < 2 or subsets < 1:
        raise InputError(f"kernel distance over {subsets} subset(s) of {size} image(s): at least 1 and 2 are needed")
    generator = np.random.default_rng(seed)
    values = [
        _mmd(*(x[generator.choice(len(x), size, replace=False)].astype(np.float64) for x in (a, b)))
        for _ in range(subsets)
    ]
    return float(np.mean(values))


def _mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD of x (m, d) and y (m, d): no image is compared with itself."""
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    pairs = len(x) * (len(x) - 1)
    return (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / pairs - 2 * xy.mean()


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # `base**3` takes a hundred times as long


def _root(covariance: np.ndarray) -> np.ndarray:
    """R (d, d) with R Rᵀ = covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))  # rounding makes zeros slightly negative


def _same_dim(a: int, b: int) -> int:
    if a != b:
        raise InputError(f"features of {a} and of {b} values cannot be compared: extract both with the same model")
    return a


def _squared_radii(points: Tensor, norms: Tensor, k: int) -> Tensor:
    """(n,): the squared distance of each point (n, d) with squared `norms` (n,) to its k-th nearest neighbour."""
    radii = torch.empty_like(norms)
    rows_at_once = max(1, BLOCK // len(points))
    for start in range(0, len(points), rows_at_once):
        part = slice(start, start + rows_at_once)
        distances = torch.addmm(norms, points[part], points.T, alpha=-2)  # (rows, n), less the norm of the row
        distances.diagonal(start).fill_(-torch.inf)  # the point itself comes first
        radii[part] = distances.topk(k + 1, largest=False).values[:, -1] + norms[part]
    return radii
