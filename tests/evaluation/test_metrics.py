import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from colours import frechet

from ctf.errors import InputError
from ctf.evaluation import FeatureStatistics, metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "adm"


@pytest.fixture(params=["features_a", "features_b"])
def golden(request):
    """What the ADM evaluator was given, and what it said."""
    expected = json.loads((GOLDEN / f"{request.param}.json").read_text())
    with np.load(GOLDEN / f"{request.param}.npz") as arrays:
        return dict(arrays), expected


def correlated(seed, count, dim):
    """Non-negative correlated features, float32, like those of Inception's pool."""
    generator = np.random.default_rng(seed)
    latents = generator.normal(size=(count, 16)) @ np.random.default_rng(99).normal(size=(16, dim)) / 4
    noise = generator.normal(size=(count, dim)) * 0.3
    return np.maximum(latents + noise + 0.2, 0).astype(np.float32)


def test_metrics_of_adm(golden):
    arrays, expected = golden
    assert metrics.frechet_distance(arrays["ref"], arrays["sample"]) == pytest.approx(expected["fid"], rel=1e-3)
    score = metrics.inception_score(arrays["probs"], expected["is_split_size"])
    assert score == pytest.approx(expected["inception_score"], rel=1e-4)
    precision_recall = metrics.precision_recall(arrays["ref"], arrays["sample"])
    assert precision_recall == pytest.approx((expected["precision"], expected["recall"]), abs=0.005)


def test_frechet_distance_against_sqrtm():
    a, b = correlated(0, 400, 24), correlated(1, 300, 24) * 1.2
    expected = frechet(a, b)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)
    assert metrics.frechet_distance(FeatureStatistics.of(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_known_gaussians():
    scales_a, scales_b = np.array([1.0, 2.0, 0.0, 5.0]), np.array([3.0, 2.0, 1.0, 0.5])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]  # covariances that commute: closed form
    a, b = (
        FeatureStatistics.from_moments(mean * np.ones(4), (rotation * scales**2) @ rotation.T)
        for mean, scales in ((1.0, scales_a), (1.5, scales_b))
    )
    expected = 4 * 0.5**2 + np.square(scales_a - scales_b).sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_few_images():
    """Of singular covariances, against the singular values of the centred features: tr (Σa Σb)^½ without any root."""
    a, b = correlated(2, 20, 64).astype(np.float64), correlated(3, 30, 64).astype(np.float64)
    centred_a, centred_b = (x - x.mean(0) for x in (a, b))
    overlap = np.linalg.svd(centred_a @ centred_b.T / math.sqrt(19 * 29), compute_uv=False).sum()
    spread = np.square(centred_a).sum() / 19 + np.square(centred_b).sum() / 29
    expected = np.square(a.mean(0) - b.mean(0)).sum() + spread - 2 * overlap
    with pytest.warns(UserWarning, match="only 20 images for 64 features") as warned:
        assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert len(warned) == 1


@pytest.mark.filterwarnings("ignore:only 100 images")
@pytest.mark.parametrize("count", [100, 400])
def test_frechet_distance_to_itself(count):
    features = 10 * correlated(4, count, 256)
    assert 0 <= metrics.frechet_distance(features, features) < 1e-6


def test_inception_score_of_certain_and_uncertain_classes():
    certain = np.eye(10)[np.arange(40) % 10]
    assert metrics.inception_score(certain) == pytest.approx(10)
    assert metrics.inception_score(np.full((40, 10), 0.1)) == pytest.approx(1)
    assert metrics.inception_score(certain, split_size=5) == pytest.approx(5)
    assert metrics.inception_score(certain, split_size=32) == pytest.approx((inception_of(32) + inception_of(8)) / 2)


def inception_of(count):
    """Of one-hot rows 0, 1, …, 9, 0, 1, …: exp of the entropy of their mean."""
    p = np.bincount(np.arange(count) % 10) / count
    return np.exp(-(p * np.log(p)).sum())


def manifold_by_loops(points, others, k):
    """Fraction of `others` that lie in the ball of some point up to its k-th nearest neighbour."""
    radii = []
    for i, point in enumerate(points):
        distances = sorted(math.dist(point, other) for j, other in enumerate(points) if j != i)
        radii.append(distances[k - 1])
    inside = [any(math.dist(p, other) <= r for p, r in zip(points, radii, strict=True)) for other in others]
    return np.mean(inside)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_recall_against_loops(k, dtype, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 1000)  # many blocks, the last ones short
    reference, samples = correlated(5, 90, 6).astype(dtype), 1.3 * correlated(6, 70, 6).astype(dtype)
    expected = manifold_by_loops(reference, samples, k), manifold_by_loops(samples, reference, k)
    assert 0.2 < expected[0] < 0.98
    assert metrics.precision_recall(reference, samples, k) == pytest.approx(expected, abs=1e-12)


def test_precision_recall_far_from_zero():
    reference, samples = (np.round(1024 * correlated(seed, 60, 4)) / 1024 for seed in (7, 8))  # exact at 4096 too
    near = metrics.precision_recall(reference, samples)
    assert max(near) < 1
    assert metrics.precision_recall(reference + 4096, samples + 4096) == near


def test_precision_recall_of_duplicates():
    """Five copies of each point: balls of radius 0, which hold the copies in the other set and nothing else."""
    points = correlated(9, 40, 512)
    reference = np.repeat(points[:30], 5, axis=0)
    samples = np.repeat(points[12:], 5, axis=0)
    assert metrics.precision_recall(reference, samples) == pytest.approx((18 / 28, 18 / 30))


def kernel_by_loops(x, y):
    """Unbiased squared MMD, Gretton et al. 2012, equation 3."""

    def kernel(p, q):
        return (np.dot(p, q) / len(p) + 1) ** 3

    def within(points):
        return np.mean([kernel(p, q) for i, p in enumerate(points) for j, q in enumerate(points) if i != j])

    return within(x) + within(y) - 2 * np.mean([kernel(p, q) for p in x for q in y])


def test_kernel_distance_against_loops():
    x, y = correlated(11, 30, 5), 1.2 * correlated(12, 30, 5)
    expected = kernel_by_loops(x.astype(np.float64), y.astype(np.float64))
    assert metrics.kernel_distance(x, y, subsets=1, subset_size=30) == pytest.approx(expected, rel=1e-9)
    assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)  # smaller sets than 1000 are used whole


def test_kernel_distance_over_subsets():
    """Unbiased: the mean over many subsets comes near the value of all pairs."""
    x, y = correlated(13, 80, 5), 1.5 * correlated(14, 100, 5)
    whole = kernel_by_loops(x.astype(np.float64), y.astype(np.float64))
    distance = metrics.kernel_distance(x, y, subsets=1000, subset_size=20, seed=1)
    assert distance == pytest.approx(whole, rel=0.1)
    assert distance == metrics.kernel_distance(x, y, subsets=1000, subset_size=20, seed=1)
    assert distance != metrics.kernel_distance(x, y, subsets=1000, subset_size=20, seed=2)


@pytest.mark.parametrize(
    ("metric", "arguments", "message"),
    [
        ("frechet_distance", (np.zeros((5, 3)), np.zeros((5, 4))), "3 and of 4"),
        ("frechet_distance", (np.zeros((1, 3)), np.zeros((5, 3))), "1 image"),
        ("frechet_distance", (FeatureStatistics(3), FeatureStatistics(3)), "0 image"),
        ("frechet_distance", (np.zeros((5, 3)), np.full((5, 3), np.nan)), "5 of 5 rows"),
        ("inception_score", (np.full((4, 2), 0.6),), "4 of 4 rows are no probabilities"),
        ("inception_score", (np.array([[0.5, 0.5], [1.5, -0.5]]),), "1 of 2 rows are no probabilities"),
        ("inception_score", (np.zeros((0, 2)),), "0 rows"),
        ("inception_score", (np.full((4, 2), 0.5), 0), "splits of 0"),
        ("precision_recall", (np.zeros((9, 3)), np.zeros((9, 4))), "3 and of 4"),
        ("precision_recall", (np.zeros((9, 3)), np.zeros((3, 3))), "more images than k"),
        ("precision_recall", (np.zeros((9, 3)), np.zeros((9, 3)), 0), "k 0"),
        ("precision_recall", (np.full((9, 3), np.inf), np.zeros((9, 3))), "9 of 9 rows"),
        ("kernel_distance", (np.zeros((9, 3)), np.zeros((9, 4))), "3 and of 4"),
        ("kernel_distance", (np.zeros((9, 3)), np.zeros((1, 3))), "1 image"),
        ("kernel_distance", (np.zeros((9, 3)), np.zeros((9, 3)), 0), "0 subset"),
    ],
)
def test_what_no_metric_takes(metric, arguments, message):
    with pytest.raises(InputError, match=message):
        getattr(metrics, metric)(*arguments)
