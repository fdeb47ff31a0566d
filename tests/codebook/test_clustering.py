import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from ctf.cli import main
from ctf.codebook import CoarseMap, cluster_codebook, codebook_fingerprint, fsq_codebook, lfq_codebook
from ctf.codebook.balanced import auction
from ctf.codebook.clustering import by_first_member, fill_empty, standardized
from ctf.codebook.ward import nearest_clusters, ward_tree
from ctf.errors import InputError
from ctf.tokens import write_token_set

METHODS = ["kmeans", "balanced", "ward", "random"]
EQUAL_SIZES = ["balanced", "random"]
WEIGHTED = ["kmeans", "ward"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def mean_squared_distance(points: torch.Tensor, cm: CoarseMap) -> float:
    total = 0.0
    for m in range(cm.num_coarse):
        members = points[cm.fine_to_coarse == m]
        total += float((members - members.mean(0)).square().sum())
    return total / len(points)


@settings(max_examples=15)
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
    if method in EQUAL_SIZES:
        assert set(cm.sizes.tolist()) <= {len(codebook) // num_clusters, -(-len(codebook) // num_clusters)}
    cm.check_codebook(codebook)


@pytest.mark.parametrize("method", ["kmeans", "balanced", "ward"])
def test_separate_blobs_are_found(method):
    blobs = torch.arange(12).repeat(10)
    codebook = torch.eye(12)[blobs] * 10 + 0.1 * randn(120, 12)
    assert torch.equal(cluster_codebook(codebook, 12, method).fine_to_coarse, blobs)


@pytest.mark.parametrize("iterations", [1, 4])
def test_kmeans_goes_on_until_nothing_changes(monkeypatch, iterations):
    """In several runs of few iterations, as in one that may take as many as it needs."""
    codebook = randn(600, 4)
    settings = {"n_init": 1, "algorithm": "lloyd", "tol": 0, "max_iter": 10_000, "random_state": 5}
    whole = KMeans(30, **settings).fit(standardized(codebook).float().numpy())
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


def test_balanced_comes_to_an_end_with_nearly_equal_codewords():
    """Prices near 1 must rise, though distances within the clusters are 1e-5."""
    groups = torch.arange(16).repeat_interleave(torch.tensor([8] * 14 + [7, 9]))
    codebook = randn(16, 4)[groups] + 1e-5 * randn(128, 4, seed=1)
    assert cluster_codebook(codebook, 16, "balanced").sizes.tolist() == [8] * 16


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
    assert torch.equal(first.fine_to_coarse, other.fine_to_coarse) == (method == "ward")
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


# --- Ward's method ---


def scipy_ward(points: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """An independent implementation, with K²/2 distances in memory."""
    tree = linkage(points.double().numpy(), "ward")
    return by_first_member(torch.from_numpy(fcluster(tree, num_clusters, "maxclust")).long())


@pytest.mark.parametrize("shape", [(2, 1), (500, 1), (500, 3), (300, 64)])
def test_ward_agrees_with_scipy(shape):
    codebook = randn(*shape) ** 3  # long tails: clusters of very different sizes
    for num_clusters in {1, shape[0] // 10, shape[0] // 2, shape[0] - 1} - {0}:
        found = cluster_codebook(codebook, num_clusters, "ward").fine_to_coarse
        assert torch.equal(found, scipy_ward(codebook, num_clusters))


def test_costs_of_wards_mergers_are_those_of_scipy():
    points = randn(200, 4).double().numpy()
    first, second, costs = ward_tree(points, np.ones(200))
    expected = linkage(points, "ward")[:, 2] ** 2 / 2  # scipy's: √(2 · what is added to the sum of squares)
    np.testing.assert_allclose(np.sort(costs), expected, rtol=1e-9)
    assert len({*first, *second}) == 200


@pytest.mark.parametrize("tile", [(1, 1), (7, 16), (64, 4096)])
def test_the_nearest_cluster_is_that_of_all_pairs(monkeypatch, tile):
    monkeypatch.setattr("ctf.codebook.ward.TILE", tile)
    centers, masses = randn(50, 3).double(), 1 + randn(50, seed=1).double().exp()
    costs = torch.cdist(centers, centers).square() * masses * masses[:, None] / (masses + masses[:, None])
    rows = torch.arange(0, 50, 3)
    expected = costs.fill_diagonal_(torch.inf)[rows].argmin(1)
    assert nearest_clusters(centers.numpy(), masses.numpy(), rows.numpy()).tolist() == expected.tolist()


def test_ward_keeps_equal_codewords_together():
    codebook = randn(40, 3)[torch.from_numpy(np.random.default_rng(1).integers(0, 40, 400))]
    different, inverse = codebook.unique(dim=0, return_inverse=True)
    cm = cluster_codebook(codebook, len(different), "ward")
    assert torch.equal(cm.fine_to_coarse, by_first_member(inverse))
    assert torch.equal(cluster_codebook(codebook, 10, "ward").fine_to_coarse, scipy_ward(codebook, 10))


@pytest.mark.parametrize(
    "codebook",
    [lfq_codebook(10), fsq_codebook([1000]), torch.ones(1000, 2), torch.cat([torch.zeros(800, 4), randn(200, 4)])],
    ids=["lfq", "line", "equal", "dead"],
)
def test_ward_takes_few_rounds_where_distances_are_equal(monkeypatch, codebook):
    """Not one for each merger. Ties may be broken otherwise than by scipy, with clusters that are as tight."""
    rounds = []
    monkeypatch.setattr(
        "ctf.codebook.ward.nearest_clusters", lambda *clusters: rounds.append(1) or nearest_clusters(*clusters)
    )
    cm = cluster_codebook(codebook, 32, "ward")
    assert len(rounds) < 100
    theirs = CoarseMap(scipy_ward(codebook, 32), "ward", 0, "") if len(codebook.unique(dim=0)) >= 32 else cm
    assert mean_squared_distance(codebook, cm) <= 1.01 * mean_squared_distance(codebook, theirs)


# --- of finer clusters ---


@pytest.mark.parametrize("method", METHODS)
def test_finer_clusters_stay_whole(method):
    codebook = randn(300, 4)
    finer = cluster_codebook(codebook, 40)
    coarser = cluster_codebook(codebook, 6, method, seed=2, finer=finer)
    assert (coarser.num_fine, coarser.num_coarse, coarser.method, coarser.seed) == (300, 6, method, 2)
    parts = [set(finer.fine_to_coarse[coarser.members(m)].tolist()) for m in range(6)]
    assert sum(map(len, parts)) == 40  # none in two of them
    if method in EQUAL_SIZES:
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


@pytest.mark.parametrize("weights", [None, torch.arange(300) % 7])
def test_ward_of_a_finer_cut_is_the_same_tree(weights):
    codebook = randn(300, 4)
    finer = cluster_codebook(codebook, 40, "ward", weights=weights)
    direct = cluster_codebook(codebook, 6, "ward", weights=weights)
    assert cluster_codebook(codebook, 6, "ward", finer=finer, weights=weights) == direct


def test_finer_clusters_that_do_not_fit_are_refused():
    codebook = randn(20, 2)
    finer = cluster_codebook(codebook, 5)
    with pytest.raises(InputError, match="5 clusters of 5 finer clusters"):
        cluster_codebook(codebook, 5, finer=finer)
    with pytest.raises(InputError, match="another codebook"):
        cluster_codebook(codebook + 1, 2, finer=finer)


# --- weights ---


def test_weighted_kmeans_leaves_every_codeword_at_its_nearest_weighted_centre():
    codebook, counts = randn(600, 2), torch.arange(600) % 3 * 100
    cm = cluster_codebook(codebook, 20, weights=counts)
    assert cm.method == "kmeans, weighted"
    centers = [codebook[cm.members(m)].T @ (counts[cm.members(m)] + 1.0) for m in range(20)]
    centers = torch.stack([x / (counts[cm.members(m)] + 1.0).sum() for m, x in enumerate(centers)])
    assert torch.equal(torch.cdist(codebook, centers).argmin(1), cm.fine_to_coarse)


def test_weighted_ward_is_that_of_repeated_codewords():
    codebook, counts = randn(80, 3), torch.arange(80) % 5
    cm = cluster_codebook(codebook, 12, "ward", weights=counts)
    assert cm.method == "ward, weighted"
    copies = torch.arange(80).repeat_interleave(counts + 1)
    assert torch.equal(cm.fine_to_coarse[copies], scipy_ward(codebook[copies], 12))


@pytest.mark.parametrize("method", WEIGHTED)
def test_tokens_that_never_occur_are_clustered_as_without_weights(method):
    codebook = randn(200, 4)
    assert cluster_codebook(codebook, 20, method, weights=torch.zeros(200).long()) == cluster_codebook(
        codebook, 20, method
    )


def test_the_verb_counts_tokens_of_all_shards_and_augmentations(tmp_path):
    codebook = randn(30, 2)
    np.save(tmp_path / "codebook.npy", codebook.numpy())
    tokens = np.random.default_rng(0).geometric(0.2, (50, 2, 9)).clip(max=30) - 1
    write_token_set(
        tmp_path / "tokens",
        tokens,
        np.zeros(50, int),
        30,
        codebook=codebook,
        augmentations=["none", "flip"],
        shard_size=20,
    )
    command = f"cluster --codebook {tmp_path}/codebook.npy --num_clusters 6 --method ward"
    assert main([*command.split(), "--tokens", f"{tmp_path}/tokens", "--out", f"{tmp_path}/map"]) == 0
    found = CoarseMap.load(tmp_path / "map", codebook)
    counts = torch.from_numpy(np.bincount(tokens.flatten(), minlength=30))
    assert found == cluster_codebook(codebook, 6, "ward", weights=counts) != cluster_codebook(codebook, 6, "ward")
    assert found.method == "ward, weighted"


# --- errors ---


@pytest.mark.parametrize(
    ("codebook", "arguments", "message"),
    [
        (torch.ones(4), {}, "matrix"),
        (torch.ones(4, 0), {}, "matrix"),
        (torch.ones(4, 2), {"num_clusters": 4}, "less than"),
        (torch.ones(4, 2), {"num_clusters": 0}, "at least 1"),
        (torch.ones(4, 2), {"num_clusters": 2, "method": "spectral"}, "choose one of kmeans, balanced, ward, random"),
        (torch.ones(4, 2), {"num_clusters": 2, "seed": -1}, "seed"),
        (torch.ones(4, 2), {"num_clusters": 2, "weights": torch.ones(3).long()}, r"4 integers, not torch.int64 \[3\]"),
        (torch.ones(4, 2), {"num_clusters": 2, "weights": torch.ones(4) / 4}, "not torch.float32"),
        (torch.ones(4, 2), {"num_clusters": 2, "weights": torch.tensor([1, 0, -1, 2])}, "not -1"),
        *(
            (torch.ones(4, 2), {"num_clusters": 2, "weights": torch.ones(4).long(), "method": method}, "no weights")
            for method in EQUAL_SIZES
        ),
        (torch.tensor([[1.0], [math.nan], [math.inf]]), {"num_clusters": 2}, "2 of 3 codewords"),
    ],
)
def test_wrong_arguments_of_clustering_are_refused(codebook, arguments, message):
    with pytest.raises(InputError, match=message):
        cluster_codebook(codebook, **arguments)
