"""A feature extractor that can be checked by hand: the mean colour of each quarter of an image."""

import numpy as np
from scipy.linalg import sqrtm

from ctf.evaluation.features import FeatureExtractor, Features


def quarters(images):
    """uint8 (n, H, W, 3) → float32 (n, 12)."""
    n, height, width, _ = images.shape
    cut = images.reshape(n, 2, height // 2, 2, width // 2, 3).astype(np.float64)
    return cut.mean((2, 4)).reshape(n, 12).astype(np.float32)


class Quarters(FeatureExtractor):
    """`quarters` as pooled features, the upper two as spatial ones, and each quarter's share of the light."""

    distance = "Fréchet distance, quarters"
    fingerprint = "0123456789abcdef"

    def __init__(self, name="colours.py:quarters"):
        self.name = name
        self.seen = 0

    def _extract(self, images):
        self.seen += len(images)
        pool = quarters(images)
        light = pool.reshape(-1, 4, 3).sum(2)
        return Features(pool, pool[:, :6], light / light.sum(1, keepdims=True))


def frechet(a, b):
    """The distance of features (n, d) by SciPy's square root of a matrix."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a.T), np.cov(b.T)
    cross = np.trace(sqrtm(first @ second)).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross


def random_images(count, seed=0, size=8):
    """uint8 (count, size, size, 3) of differing colours."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 200, (count, 2, 2, 3)).repeat(size // 2, 1).repeat(size // 2, 2)
    return (base + generator.integers(0, 50, (count, size, size, 3))).astype(np.uint8)
