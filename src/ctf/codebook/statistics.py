"""How good a clustering is: sizes, and distances within clusters beside those of a random partition."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from ctf.codebook.coarse_map import CoarseMap


class Description(TypedDict):
    """What `describe` measures; distances are in units of the codebook."""

    method: str
    seed: int
    num_fine: int
    num_coarse: int
    size_min: int
    size_median: float
    size_max: int
    size_std: float
    within_cluster_distance: float
    random_within_cluster_distance: float
    ratio: float  # of the two; 0 where both are 0


def within_cluster_distance(codebook: Tensor, coarse_map: CoarseMap) -> float:
    """√(1/K · Σ_k ‖e_k − mean of G_φ(k)‖²): the root mean square distance of codewords to their cluster's mean.

    Args:
        codebook: (K, d).
        coarse_map: a map of K tokens.
    """
    return _distance(codebook, coarse_map.fine_to_coarse, coarse_map.sizes)


def describe(codebook: Tensor, coarse_map: CoarseMap) -> Description:
    """Sizes and within-cluster distance of a clustering, beside a random partition of the same sizes.

    Args:
        codebook: (K, d), the one that was clustered.
        coarse_map: its map.

    Raises:
        InputError: the map was made for another codebook.
    """
    coarse_map.check_codebook(codebook)
    sizes = coarse_map.sizes
    shuffle = torch.randperm(coarse_map.num_fine, generator=torch.Generator().manual_seed(0))
    distance = within_cluster_distance(codebook, coarse_map)
    random = _distance(codebook, coarse_map.fine_to_coarse[shuffle], sizes)
    return Description(
        method=coarse_map.method,
        seed=coarse_map.seed,
        num_fine=coarse_map.num_fine,
        num_coarse=coarse_map.num_coarse,
        size_min=int(sizes.min()),
        size_median=float(sizes.double().quantile(0.5)),
        size_max=int(sizes.max()),
        size_std=float(sizes.double().std(correction=0)),
        within_cluster_distance=distance,
        random_within_cluster_distance=random,
        ratio=distance / random if random else 0.0,
    )


def format_description(description: Description) -> str:
    """A description as three short lines."""
    d = description
    return (
        f"{d['num_fine']:,} codewords in {d['num_coarse']:,} clusters ({d['method']}, seed {d['seed']})\n"
        f"cluster sizes: {d['size_min']} to {d['size_max']}, median {d['size_median']:g}, std {d['size_std']:.1f}\n"
        f"distance to the cluster mean: {d['within_cluster_distance']:.4g}, {d['ratio']:.1%} of "
        f"{d['random_within_cluster_distance']:.4g} in a random partition of the same sizes"
    )


def _distance(codebook: Tensor, labels: Tensor, sizes: Tensor) -> float:
    points = codebook.detach().cpu().double()
    sums = torch.zeros(len(sizes), points.shape[1], dtype=torch.float64).index_add_(0, labels, points)
    return float((points - (sums / sizes[:, None])[labels]).square().sum(1).mean().sqrt())
