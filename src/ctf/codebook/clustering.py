"""From a codebook to a CoarseMap: k-means as in the paper, balanced k-means, Ward's method, and the random control."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from ctf.codebook.balanced import balanced_kmeans
from ctf.codebook.coarse_map import CoarseMap, cluster_means, codebook_fingerprint
from ctf.codebook.ward import ward
from ctf.errors import InputError

Method = Literal["kmeans", "balanced", "ward", "random"]
WEIGHTED = ("kmeans", "ward")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
ITERATIONS = 300  # of Lloyd's algorithm between two looks at whether it still gains


@torch.no_grad()
def cluster_codebook(
    codebook: Tensor,
    num_clusters: int = 512,
    method: Method = "kmeans",
    seed: int = 0,
    finer: CoarseMap | None = None,
    weights: Tensor | None = None,
) -> CoarseMap:
    """Group K codewords into M clusters (paper, section 4.1, eqs. 5 to 7).

    Clusters are numbered by their lowest token, so equal partitions are equal maps. The result depends on
    the arguments only, not on the number of threads.

    Args:
        codebook: (K, d), the vectors that the tokenizer's search compares: l2-normalised where it normalises.
            Equal codewords are fine, also fewer different ones than clusters.
        num_clusters: M, with 1 ≤ M < K. The paper's default is 512 of 16,384.
        method: "kmeans" is the paper's: Lloyd's algorithm from k-means++ seeds until no codeword changes its
            cluster. "balanced" gives every cluster ⌊K/M⌋ or ⌈K/M⌉ codewords, as near to each other as that
            allows. "ward" merges the two clusters whose merger adds least to the sum of squared distances, K − M
            times. "random" makes clusters of the sizes of "balanced" without looking at the codewords (section 5.5.2).
        seed: of all randomness, in [0, 2³²).
        finer: for a hierarchy, a map of the same codebook whose clusters stay whole. They take the place of codewords
            above: M is less than their number, they are compared by their mean codewords, and in k-means and Ward's
            method each is weighted by its number of codewords.
        weights: (K,) integers from 0, for "kmeans" and "ward": how often each token occurs in images. A codeword's
            squared distance then counts that many times plus one (Laplace's smoothing: a codeword that never occurs
            still belongs to a cluster of near ones), and the map's method is "kmeans, weighted".

    Raises:
        InputError: an argument is out of its range, or the codebook holds NaN or infinity.
    """
    if codebook.ndim != 2 or not codebook.numel() or codebook.is_complex():
        raise InputError(f"a codebook is a real matrix (K, d), one codeword per row, not {tuple(codebook.shape)}")
    if method not in get_args(Method):
        raise InputError(f"unknown clustering method {method!r}: choose one of {', '.join(get_args(Method))}")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is out of range: choose one in [0, 2^32)")
    codebook = codebook.detach().cpu().float()
    bad = int((~codebook.isfinite()).any(1).sum())
    if bad:
        raise InputError(f"{bad} of {len(codebook)} codewords hold NaN or infinity: use another checkpoint")
    points, masses = codebook, torch.ones(len(codebook), dtype=torch.float64)
    if weights is not None:
        masses += checked_weights(weights, len(codebook), method)
    if finer is not None:
        finer.check_codebook(codebook)
        points = cluster_means(codebook, finer.fine_to_coarse, masses)
        masses = finer.fine_to_coarse.bincount(masses)
    if not 1 <= num_clusters < len(points):
        what = "codewords" if finer is None else "finer clusters"
        raise InputError(
            f"{num_clusters} clusters of {len(points)} {what}: the number of clusters must be at least 1 "
            "and less than that"
        )

    generator = torch.Generator().manual_seed(seed)
    if method == "random":
        labels = torch.randperm(len(points), generator=generator) % num_clusters
    elif method == "ward":
        points = standardized(points)
        labels = fill_empty(points, ward(points, num_clusters, masses), num_clusters)
    else:
        points = standardized(points).float()
        labels = kmeans(points, num_clusters, seed, masses)
        if method == "balanced":
            labels = balanced_kmeans(points, labels, generator)
    labels = labels if finer is None else labels[finer.fine_to_coarse]
    name = method if weights is None else f"{method}, weighted"
    return CoarseMap(by_first_member(labels), name, seed, codebook_fingerprint(codebook))


def checked_weights(weights: Tensor, num_fine: int, method: Method) -> Tensor:
    """`cluster_codebook`'s weights on the CPU, or InputError."""
    if method not in WEIGHTED:
        raise InputError(f"{method} clusters take no weights: leave them out, or choose {' or '.join(WEIGHTED)}")
    if weights.shape != (num_fine,) or weights.dtype not in INTEGERS:
        raise InputError(
            f"weights are one count per codeword, {num_fine} integers, not {weights.dtype} {list(weights.shape)}"
        )
    if int(weights.min()) < 0:
        raise InputError(f"weights are counts from 0, not {int(weights.min())}")
    return weights.detach().cpu()


def standardized(codebook: Tensor) -> Tensor:
    """Centred and of unit scale, as float64: the same clusters, with rounding errors that are equally small."""
    points = codebook.double()
    points = points - points.mean(0)
    return points / (points.square().sum(1).mean().sqrt() or 1.0)


def kmeans(points: Tensor, num_clusters: int, seed: int, masses: Tensor) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds until nothing changes.

    Points (K, d) float32 of positive `masses` (K,) → labels (K,) int64, no cluster empty.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    settings = {"n_init": 1, "algorithm": "lloyd", "tol": 0, "max_iter": ITERATIONS, "random_state": seed}
    data = points.numpy(), None, masses.numpy()
    with warnings.catch_warnings(), threadpool_limits(1):
        # One thread: several would add up the centres in the order in which they finish.
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different codewords than clusters
        fit = KMeans(num_clusters, **settings).fit(*data)
        last = fit
        while last.n_iter_ == ITERATIONS:
            last = KMeans(num_clusters, init=fit.cluster_centers_, **settings).fit(*data)
            if last.inertia_ >= fit.inertia_:  # equal codewords can change places for ever
                break
            fit = last
    return fill_empty(points, torch.from_numpy(fit.labels_).long(), num_clusters)


def fill_empty(points: Tensor, labels: Tensor, num_clusters: int) -> Tensor:
    """Give each empty cluster the point farthest from its mean among clusters of several members."""
    sizes = labels.bincount(minlength=num_clusters)
    empty = (sizes == 0).nonzero().squeeze(1).tolist()
    if not empty:
        return labels
    _, dense = labels.unique(return_inverse=True)
    distances = (points - cluster_means(points, dense)[dense]).square().sum(1)
    labels = labels.clone()
    for k in distances.argsort(descending=True, stable=True).tolist():
        if sizes[labels[k]] > 1:
            sizes[labels[k]] -= 1
            labels[k] = empty.pop()
            if not empty:
                break
    return labels


def by_first_member(labels: Tensor) -> Tensor:
    """Number clusters 0 … M − 1 in the order of their lowest members."""
    values, dense = labels.unique(return_inverse=True)
    first = torch.full((len(values),), len(labels)).scatter_reduce_(0, dense, torch.arange(len(labels)), "amin")
    return first.argsort().argsort()[dense]
