"""How good a clustering is: sizes, and distances within clusters beside those of a random partition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ctf.codebook.balanced import mean_squared_distance
from ctf.codebook.coarse_map import CoarseMap


def within_cluster_distance(codebook: Tensor, labels: Tensor) -> float:
    """√(1/K · Σ_k ‖e_k − mean of G_φ(k)‖²): the root mean square distance of codewords to their cluster's mean.

    Args:
        codebook: (K, d).
        labels: (K,) int64, `CoarseMap.fine_to_coarse`.
    """
    return math.sqrt(mean_squared_distance(codebook.detach().cpu().double(), labels))


def describe(codebook: Tensor, coarse_map: CoarseMap) -> dict[str, Any]:
    """Sizes and within-cluster distance of a clustering, beside a random partition of the same sizes.

    Args:
        codebook: (K, d), the one that was clustered.
        coarse_map: its map.

    Returns:
        method, seed, num_fine and num_coarse as in the map; size_min, size_median, size_max and size_std of its
        clusters; within_cluster_distance and random_within_cluster_distance in units of the codebook; and ratio, that
        of the two, 0 where both are 0.

    Raises:
        InputError: the map was made for another codebook.
    """
    coarse_map.check_codebook(codebook)
    labels, sizes = coarse_map.fine_to_coarse, coarse_map.sizes
    shuffle = torch.randperm(coarse_map.num_fine, generator=torch.Generator().manual_seed(0))
    distance = within_cluster_distance(codebook, labels)
    random = within_cluster_distance(codebook, labels[shuffle])
    return {
        "method": coarse_map.method,
        "seed": coarse_map.seed,
        "num_fine": coarse_map.num_fine,
        "num_coarse": coarse_map.num_coarse,
        "size_min": int(sizes.min()),
        "size_median": float(sizes.double().quantile(0.5)),
        "size_max": int(sizes.max()),
        "size_std": float(sizes.double().std(correction=0)),
        "within_cluster_distance": distance,
        "random_within_cluster_distance": random,
        "ratio": distance / random if random else 0.0,
    }


def format_description(description: dict[str, Any]) -> str:
    """What `describe` found, as three short lines."""
    d = description
    return (
        f"{d['num_fine']:,} codewords in {d['num_coarse']:,} clusters ({d['method']}, seed {d['seed']})\n"
        f"cluster sizes: {d['size_min']} to {d['size_max']}, median {d['size_median']:g}, std {d['size_std']:.1f}\n"
        f"distance to the cluster mean: {d['within_cluster_distance']:.4g}, {d['ratio']:.1%} of "
        f"{d['random_within_cluster_distance']:.4g} in a random partition of the same sizes"
    )
