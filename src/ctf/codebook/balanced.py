"""Balanced k-means: Lloyd's iteration whose assignment step fills every cluster to its capacity.

The assignment is solved by Bertsekas' auction. Codewords bid for places in clusters, prices of contested
clusters rise, and the total cost ends at most K · ε above the optimum. Equal clusters are what IAR
(arXiv 2501.00880) trains with: stage 2 then chooses among equally many tokens everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.codebook.coarse_map import cluster_means

ROUNDS = 16
STEPS = (1024, 256, 64, 16, 4, 1)  # multiples of the final ε: large ones find the prices roughly, small ones exactly
TOLERANCE = 3e-4  # stop when a round gains less than this part of the within-cluster variance
EPSILON = 3e-3  # of the mean squared distance, the final ε: within 0.3 % of the optimal assignment
SMALLEST_SCALE = 1e-3  # of ε: prices of 1 and more, in float32, cannot rise by much less
BLOCK = 1 << 24  # distances computed at once


def balanced_kmeans(points: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Move from a partition to one of equal sizes and small within-cluster distance.

    Args:
        points: (K, d) float32, centred and of unit scale.
        labels: (K,) int64, where to start: M non-empty clusters.
        generator: breaks the ties between equal codewords.

    Returns:
        (K,) int64; each cluster has ⌊K/M⌋ or ⌈K/M⌉ members.
    """
    num_clusters = int(labels.max()) + 1
    capacity = torch.full((num_clusters,), len(points) // num_clusters)
    capacity[: len(points) % num_clusters] += 1

    prices = torch.zeros(num_clusters)
    best_cost, best_labels = float("inf"), labels
    for iteration in range(ROUNDS):
        centers = cluster_means(points, labels) if iteration else proportional_centers(points, labels)
        scale = max(mean_squared_distance(points, labels), SMALLEST_SCALE)
        for step in STEPS:
            labels, prices = auction(points, centers, capacity, prices, step * EPSILON * scale, generator)
        cost = mean_squared_distance(points, labels)
        settled = cost >= best_cost * (1 - TOLERANCE)
        if cost < best_cost:
            best_cost, best_labels = cost, labels
        if settled:
            break
    return best_labels


def proportional_centers(points: Tensor, labels: Tensor) -> Tensor:
    """M centres, as dense as the points: of M clusters, a large one yields several of its points, a small one none.

    From the means alone the auction would have to price thousands of equal codewords away to far clusters.
    """
    num_clusters = int(labels.max()) + 1
    middle = (2 * torch.arange(num_clusters) + 1) * len(points) // (2 * num_clusters)
    sample = labels.argsort(stable=True)[middle]  # systematic: every K/M-th point, cluster after cluster
    hits = labels[sample].bincount(minlength=num_clusters)[labels[sample]]
    return torch.where(hits[:, None] == 1, cluster_means(points, labels)[labels[sample]], points[sample])


def auction(
    points: Tensor, centers: Tensor, capacity: Tensor, prices: Tensor, epsilon: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Assign every point to a centre, each centre `capacity` times, at nearly the least sum of squared distances.

    All unassigned points bid at once for the centre where distance² + price is least, and raise its price by
    their loss if they had to take the second best, plus ε. A centre keeps its highest bidders; its price is
    the lowest bid that it keeps. (Bertsekas & Castañón 1989: the auction for classes of similar objects.)

    Args:
        points: (K, d) float32.
        centers: (M, d) float32.
        capacity: (M,) int64, summing to K.
        prices: (M,) float32, the prices to start from: any, but those of a similar problem save time.
        epsilon: the least raise, in units of squared distance.

    Returns:
        labels (K,) int64, and the prices (M,) that support them.
    """
    num_points, places = len(points), int(capacity.max())
    # Equal codewords (dead ones) would all bid for the same centre, round after round. Four random dimensions add
    # ⟨u, v⟩, less than about ε, to each distance and spread them.
    noise_points = torch.randn(num_points, 4, generator=generator)
    noise_centers = torch.randn(len(centers), 4, generator=generator) * (epsilon / 4)
    queries = torch.cat([points, noise_points], 1)  # (K, d + 4)
    keys = torch.cat([-2 * centers, noise_centers], 1).T.contiguous()  # (d + 4, M)
    norms = centers.square().sum(1)

    bids = prices[:, None].repeat(1, places)  # (M, places): what each place is held for
    bids[torch.arange(places) >= capacity[:, None]] = torch.inf  # not a place, never free
    holders = torch.full(bids.shape, -1)  # (M, places): the point that holds it
    prices = prices.clone()
    assigned = torch.zeros(num_points, dtype=torch.bool)
    while not assigned.all():
        bidders = (~assigned).nonzero().squeeze(1)
        wanted, raises = two_best(queries, keys, norms + prices, bidders)
        offers = prices[wanted] + raises + epsilon

        # Sort bidders by centre, best offer first: a row for each contested centre, of at most `places` best offers.
        rank = offers.argsort(descending=True, stable=True)
        rank = rank[wanted[rank].argsort(stable=True)]
        bidders, wanted, offers = bidders[rank], wanted[rank], offers[rank]
        contested, row, count = wanted.unique_consecutive(return_inverse=True, return_counts=True)
        column = torch.arange(len(bidders)) - (count.cumsum(0) - count)[row]
        width = min(places, int(count.max()))
        in_row = column < width
        new_bids = torch.full((len(contested), width), -torch.inf)
        new_bids[row[in_row], column[in_row]] = offers[in_row]
        new_holders = torch.full((len(contested), width), -1)
        new_holders[row[in_row], column[in_row]] = bidders[in_row]

        before = holders[contested]
        kept, where = torch.cat([bids[contested], new_bids], 1).topk(places, dim=1)
        after = torch.cat([before, new_holders], 1).gather(1, where)
        bids[contested], holders[contested], prices[contested] = kept, after, kept[:, -1]
        assigned[before[before >= 0]] = False
        assigned[after[after >= 0]] = True

    labels = torch.empty(num_points, dtype=torch.int64)
    held = holders >= 0
    labels[holders[held]] = held.nonzero()[:, 0]
    return labels, prices - prices.min()


def two_best(queries: Tensor, keys: Tensor, bias: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `rows`: the column where bias + queries @ keys is least, and how much more the next best costs."""
    best, gap = [], []
    for part in rows.split(max(1, BLOCK // keys.shape[1])):
        cost = torch.addmm(bias, queries[part], keys)  # (n, M)
        first, index = cost.min(1)
        cost.scatter_(1, index[:, None], torch.inf)
        best.append(index)
        gap.append(cost.min(1).values - first)
    return torch.cat(best), torch.cat(gap)


def mean_squared_distance(points: Tensor, labels: Tensor) -> float:
    """Mean squared distance of points (K, d) to the means of their clusters."""
    return float((points - cluster_means(points, labels)[labels]).square().sum(1).mean(dtype=torch.float64))
