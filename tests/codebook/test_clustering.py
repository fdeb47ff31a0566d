import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from ctf.codebook import CoarseMap, cluster_codebook, codebook_fingerprint
from ctf.codebook.balanced import auction, balanced_kmeans
from ctf.codebook.clustering import by_first_member, fill_empty, standardized
from ctf.errors import InputError

METHODS = ["kmeans", "balanced", "random"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def mean_squared_distance(points: torch.Tensor, cm: CoarseMap) -> float:
    total = 0.0
    for m in range(cm.num_coarse):
        members = points[cm.fine_to_coarse == m]
        total += float((members - members.mean(0)).square().sum())
    return total / len(points)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_every_codebook_gives_m_clusters(data):
    """Also with many equal codewords, down to one value for all."""
    values = data.draw(st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=2), min_size=2, max_size=40))
    codebook = torch.tensor(values).float() * data.draw(st.sampled_from([1.0, 1e-12, 1e12]))
    num_clusters = data.draw(st.integers(1, len(codebook) - 1))
    method = data.draw(st.sampled_from(METHODS))
    cm = cluster_codebook(codebook, num_clusters, method, seed=data.draw(st.integers(0, 3)))
    assert (cm.num_fine, cm.num_coarse, cm.method) == (len(codebook), num_clusters, method)
    assert cm.members(0)[0] == 0
    firsts = cm.member_table[:, 0]
    assert torch.equal(firsts, firsts.sort().values)  # numbered by the lowest member
    if method != "kmeans":
        assert set(cm.sizes.tolist()) <= {len(codebook) // num_clusters, -(-len(codebook) // num_clusters)}
    cm.check_codebook(codebook)


@pytest.mark.parametrize("method", ["kmeans", "balanced"])
def test_separate_blobs_are_found(method):
    blobs = torch.arange(12).repeat(10)
    codebook = torch.eye(12)[blobs] * 10 + 0.1 * randn(120, 12)
    assert torch.equal(cluster_codebook(codebook, 12, method).fine_to_coarse, blobs)


def test_kmeans_leaves_every_codeword_at_its_nearest_centre():
    codebook = randn(600, 4)
    cm = cluster_codebook(codebook, 30)
    centers = torch.stack([codebook[cm.members(m)].mean(0) for m in range(30)])
    distances = torch.cdist(codebook, centers)
    own = distances.gather(1, cm.fine_to_coarse[:, None]).squeeze(1)
    assert (own <= distances.min(1).values + 1e-5).all()


@pytest.mark.parametrize("iterations", [1, 4])
def test_kmeans_goes_on_until_nothing_changes(monkeypatch, iterations):
    """In several runs of few iterations, as in one that may take as many as it needs."""
    codebook = randn(600, 4)
    settings = {"n_init": 1, "algorithm": "lloyd", "tol": 0, "max_iter": 10_000, "random_state": 5}
    whole = KMeans(30, **settings).fit(standardized(codebook).numpy())
    assert 10 < whole.n_iter_ < 10_000
    monkeypatch.setattr("ctf.codebook.clustering.ITERATIONS", iterations)
    found = cluster_codebook(codebook, 30, seed=5).fine_to_coarse
    assert torch.equal(found, by_first_member(torch.from_numpy(whole.labels_).long()))


def test_kmeans_comes_to_an_end_with_equal_codewords(monkeypatch):
    monkeypatch.setattr("ctf.codebook.clustering.ITERATIONS", 2)
    codebook = randn(5, 3).repeat(20, 1)
    assert cluster_codebook(codebook, 12).num_coarse == 12


def test_balanced_is_nearly_as_tight_as_kmeans():
    codebook = torch.nn.functional.normalize(randn(1000, 8), dim=1)
    distance = {method: mean_squared_distance(codebook, cluster_codebook(codebook, 30, method)) for method in METHODS}
    assert distance["balanced"] < 1.03 * distance["kmeans"]
    assert distance["balanced"] < 0.6 * distance["random"]


@pytest.mark.parametrize("copies", [1, 20])
def test_the_auction_is_within_epsilon_of_the_optimal_assignment(copies):
    points, centers = randn(60, 3).repeat_interleave(copies, 0)[: 60 if copies == 1 else 120], randn(8, 3, seed=1)
    capacity = torch.full((8,), len(points) // 8)
    capacity[: len(points) % 8] += 1
    epsilon = 1e-3
    labels, _ = auction(points, centers, capacity, torch.zeros(8), epsilon, torch.Generator().manual_seed(0))
    cost = torch.cdist(points, centers).square()
    rows, columns = linear_sum_assignment(cost.repeat_interleave(capacity, 1).numpy())
    best = cost[rows, torch.arange(8).repeat_interleave(capacity)[columns]].sum()
    assert torch.equal(labels.bincount(minlength=8), capacity)
    # K · ε, and twice the noise that breaks ties.
    assert best - 1e-3 <= cost.gather(1, labels[:, None]).sum() <= best + 3 * len(points) * epsilon


def test_balanced_improves_on_the_optimal_first_assignment():
    points = randn(64, 2)
    start = torch.arange(64) % 8
    labels = balanced_kmeans(points, start, torch.Generator().manual_seed(0))
    sse = [
        sum(float((points[x == m] - points[x == m].mean(0)).square().sum()) for m in range(8)) for x in (start, labels)
    ]
    assert sse[1] < 0.2 * sse[0]


def test_tiny_balanced_clusterings_beat_nearly_all_partitions():
    """Against every way to split 8 codewords in two halves."""
    codebook = randn(8, 2)
    costs = []
    for half in itertools.combinations(range(1, 8), 3):
        labels = torch.ones(8, dtype=torch.int64)
        labels[[0, *half]] = 0
        costs.append(mean_squared_distance(codebook, CoarseMap(labels, "x", 0, "")))
    found = mean_squared_distance(codebook, cluster_codebook(codebook, 2, "balanced"))
    assert sum(cost < found - 1e-6 for cost in costs) <= 2  # of 35


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_clusters(method):
    codebook = randn(200, 4)
    first = cluster_codebook(codebook, 10, method, seed=3)
    second = cluster_codebook(codebook.double(), 10, method, seed=3)
    other = cluster_codebook(codebook, 10, method, seed=4)
    assert torch.equal(first.fine_to_coarse, second.fine_to_coarse)
    assert not torch.equal(first.fine_to_coarse, other.fine_to_coarse)
    assert first.codebook_fingerprint == codebook_fingerprint(codebook)


def test_shift_and_scale_do_not_change_the_clusters():
    codebook = randn(300, 4)
    moved = codebook.double() * 2.0**40 + 2.0**43
    maps = [cluster_codebook(x, 20).fine_to_coarse for x in (codebook, moved)]
    assert (maps[0] == maps[1]).float().mean() > 0.9  # float32 cannot hold the moved codewords exactly


def test_empty_clusters_take_the_farthest_codewords():
    points = torch.tensor([[0.0], [1.0], [5.0], [20.0]])
    labels = fill_empty(points, torch.tensor([0, 0, 0, 2]), 4)
    assert labels[3] == 2  # alone already, though it is far from all
    assert sorted(labels.tolist()) == [0, 1, 2, 3]


# --- of finer clusters ---


@pytest.mark.parametrize("method", METHODS)
def test_finer_clusters_stay_whole(method):
    codebook = randn(300, 4)
    finer = cluster_codebook(codebook, 40)
    coarser = cluster_codebook(codebook, 6, method, seed=2, finer=finer)
    assert (coarser.num_fine, coarser.num_coarse, coarser.method, coarser.seed) == (300, 6, method, 2)
    parts = [set(finer.fine_to_coarse[coarser.members(m)].tolist()) for m in range(6)]
    assert sum(map(len, parts)) == 40  # none in two of them
    if method != "kmeans":
        assert {len(part) for part in parts} == {6, 7}
    coarser.check_codebook(codebook)


@pytest.mark.parametrize("method", METHODS)
def test_finer_clusters_of_one_codeword_each_change_nothing(method):
    codebook = randn(100, 4)
    finer = CoarseMap(torch.arange(100), "any", 0, codebook_fingerprint(codebook))
    assert cluster_codebook(codebook, 8, method, finer=finer) == cluster_codebook(codebook, 8, method)


def test_kmeans_weighs_finer_clusters_by_their_codewords():
    """Each is nearest to the mean of all codewords of its cluster, not to the mean of the means."""
    codebook = randn(600, 2)
    finer = cluster_codebook(codebook, 60)
    assert finer.sizes.max() > 3 * finer.sizes.min()
    coarser = cluster_codebook(codebook, 8, finer=finer)
    centers = torch.stack([codebook[coarser.members(m)].mean(0) for m in range(8)])
    means = torch.stack([codebook[finer.members(m)].mean(0) for m in range(60)])
    nearest = torch.cdist(means, centers).argmin(1)
    assert torch.equal(nearest[finer.fine_to_coarse], coarser.fine_to_coarse)


def test_finer_clusters_that_do_not_fit_are_refused():
    codebook = randn(20, 2)
    finer = cluster_codebook(codebook, 5)
    with pytest.raises(InputError, match="5 clusters of 5 finer clusters"):
        cluster_codebook(codebook, 5, finer=finer)
    with pytest.raises(InputError, match="another codebook"):
        cluster_codebook(codebook + 1, 2, finer=finer)


# --- errors ---


@pytest.mark.parametrize(
    ("codebook", "arguments", "message"),
    [
        (torch.ones(4), {}, "matrix"),
        (torch.ones(4, 0), {}, "matrix"),
        (torch.ones(4, 2), {"num_clusters": 4}, "less than"),
        (torch.ones(4, 2), {"num_clusters": 0}, "at least 1"),
        (torch.ones(4, 2), {"num_clusters": 2, "method": "spectral"}, "choose one of kmeans, balanced, random"),
        (torch.ones(4, 2), {"num_clusters": 2, "seed": -1}, "seed"),
        (torch.tensor([[1.0], [math.nan], [math.inf]]), {"num_clusters": 2}, "2 of 3 codewords"),
    ],
)
def test_what_cannot_be_clustered_is_refused(codebook, arguments, message):
    with pytest.raises(InputError, match=message):
        cluster_codebook(codebook, **arguments)
