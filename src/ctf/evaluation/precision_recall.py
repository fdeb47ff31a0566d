"""Improved precision and recall (Kynkäänniemi et al. 2019): how much of one set lies within another's manifold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.evaluation.statistics import FeatureArray, feature_rows

BLOCK = 1 << 25  # squared distances held at once


def precision_recall(reference: FeatureArray, samples: FeatureArray, k: int = 3) -> tuple[float, float]:
    """Precision, the fraction of samples in the reference's manifold, and recall, the fraction of it in theirs.

    The manifold of a set is the union of the balls around its points that reach to their k-th nearest neighbour in
    the set, the border included. The ADM evaluator computes the same, but rounds distances to 16 bits: its values
    differ by up to 0.005.

    Args:
        reference: (n, d), any real dtype. Both sets are compared in float32, in float64 if one of them is.
        samples: (m, d).
        k: which neighbour sets the radius; a point is not its own neighbour, equal points are neighbours.

    Raises:
        InputError: different d, features with NaN or infinity, k below 1, or a set of k or fewer points.
    """
    rows, others = feature_rows(reference), feature_rows(samples)
    if rows.shape[1] != others.shape[1]:
        raise InputError(f"reference features have {rows.shape[1]} values, samples {others.shape[1]}: use one model")
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
