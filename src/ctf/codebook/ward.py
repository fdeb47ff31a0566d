"""Ward's agglomerative clustering in O(K) memory and a few K² distances.

The textbook algorithm merges the one pair of clusters whose merger raises the within-cluster sum of squares least,
again and again. Ward's criterion is reducible: a merger brings no cluster nearer to a third than its nearer part was.
So all pairs of mutual nearest neighbours can be merged at once, in rounds, and the mergers sorted afterwards: the
tree is the same (Murtagh 1983). Dozens of rounds do, all of them matrix products: 16,384 codewords take two seconds,
262,144 ten minutes (benchmarks/clustering.md).

DCPE (arXiv 2508.10719) and MASC (arXiv 2510.04220) merge codewords agglomeratively.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TILE = 64, 4096  # costs computed at once: 2 MiB, which stays in the cache
TIES = 1e-8  # less than float32 resolves


def ward(points: Tensor, num_clusters: int, masses: Tensor) -> Tensor:
    """The partition into M clusters of Ward's tree.

    Args:
        points: (K, d) float64, centred and of unit scale.
        num_clusters: M.
        masses: (K,) positive float64, how many codewords each point stands for.

    Returns:
        (K,) int64; equal points stay together, so that fewer different ones than M make fewer clusters.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    points, place = points.unique(dim=0, return_inverse=True)
    if len(points) <= num_clusters:
        return place
    # Implicit codebooks are lattices, full of equal distances. Stretched a little, by dimension and from low to high,
    # they merge in order: 0 with 1, 2 with 3, …, and on all parallel lines alike.
    points = points * (1 + TIES * (torch.arange(points.shape[1]) / points.shape[1] + points))
    with threadpool_limits(1):  # several threads may round otherwise
        first, second, costs = ward_tree(points.numpy(), place.bincount(masses).numpy())
    cheapest = costs.argsort(kind="stable")[: len(points) - num_clusters]
    edges = np.ones(len(cheapest)), (first[cheapest], second[cheapest])
    _, labels = connected_components(coo_array(edges, shape=(len(points), len(points))), directed=False)
    return torch.from_numpy(labels).long()[place]


def ward_tree(centers: np.ndarray, masses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All K − 1 mergers of points (K, d) with masses (K,), both float64.

    Returns:
        A member of the one cluster and a member of the other, (K − 1,) int64 each, and what the merger adds to the
        within-cluster sum of squares, (K − 1,) float64; a cluster's merger comes after those that made it.
    """
    members = np.arange(len(centers))  # one of each cluster
    heights = np.zeros(len(centers))  # what the last merger of each cluster cost
    centers, masses = centers.copy(), masses.copy()
    nearest = nearest_clusters(centers, masses, members)
    mergers = []
    while len(centers) > 1:
        apart = np.square(centers - centers[nearest]).sum(1)
        costs = apart / (1 / masses + 1 / masses[nearest])  # (n,), Ward's criterion
        clusters = np.arange(len(centers))
        first = np.flatnonzero((nearest[nearest] == clusters) & (clusters < nearest))
        if not len(first):  # only where rounding decides
            first = costs.argmin(keepdims=True)
        second = nearest[first]

        heights[first] = np.maximum(costs[first], np.maximum(heights[first], heights[second]))  # else rounded below
        mergers.append((members[first], members[second], heights[first]))
        share = (masses[second] / (masses[first] + masses[second]))[:, None]
        centers[first] += share * (centers[second] - centers[first])
        masses[first] += masses[second]

        changed = np.zeros(len(centers), bool)
        changed[first] = changed[second] = True
        changed |= changed[nearest]
        kept = np.ones(len(centers), bool)
        kept[second] = False
        nearest = (kept.cumsum() - 1)[nearest[kept]]
        centers, masses, members, heights = centers[kept], masses[kept], members[kept], heights[kept]
        rows = np.flatnonzero(changed[kept])
        nearest[rows] = nearest_clusters(centers, masses, rows)
    one, other, costs = (np.concatenate(column) for column in zip(*mergers, strict=True))
    return one, other, costs


def nearest_clusters(centers: np.ndarray, masses: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each of `rows` (r,) the other one of n clusters, centres (n, d), whose merger with it costs least."""
    norms, ones = np.square(centers).sum(1, keepdims=True), np.ones((len(centers), 1))
    queries = np.concatenate([centers, ones, norms], 1)[rows]
    keys = np.concatenate([-2 * centers, norms, ones], 1).T  # queries @ keys: squared distances
    inverse = 1 / masses
    nearest, least = np.empty(len(rows), np.int64), np.full(len(rows), np.inf)
    products, sums = np.empty(TILE), np.empty(TILE)  # allocated once: fresh pages take as long as the arithmetic
    for top in range(0, len(rows), TILE[0]):
        part = slice(top, top + TILE[0])
        index = np.arange(len(rows[part]))
        for left in range(0, len(centers), TILE[1]):
            columns = slice(left, min(left + TILE[1], len(centers)))
            shape = np.s_[: len(index), : columns.stop - left]
            costs = np.matmul(queries[part], keys[:, columns], out=products[shape])
            costs /= np.add(inverse[rows[part], None], inverse[columns], out=sums[shape])
            itself = rows[part] - left  # the column of each row's own cluster, if it lies in this tile
            in_tile = (itself >= 0) & (itself < costs.shape[1])
            costs[index[in_tile], itself[in_tile]] = np.inf
            best = costs.argmin(1)
            lower = costs[index, best] < least[part]
            nearest[part][lower] = best[lower] + left
            least[part][lower] = costs[index, best][lower]
    return nearest
