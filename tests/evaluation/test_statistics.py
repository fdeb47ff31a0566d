import numpy as np
import pytest
import torch

from ctf.errors import InputError
from ctf.evaluation import FeatureStatistics


def streamed(features, sizes):
    statistics = FeatureStatistics(features.shape[1])
    for part in np.split(features, np.cumsum(sizes)):
        statistics.update(part)
    return statistics


@pytest.mark.parametrize("sizes", [(), (1,), (1, 1, 1), (0, 7, 313, 2), (999,)])
def test_any_chunks_give_numpy_moments(sizes, monkeypatch):
    monkeypatch.setattr("ctf.evaluation.statistics.CHUNK", 300)
    generator = np.random.default_rng(0)
    features = generator.normal(size=(1000, 8)) @ generator.normal(size=(8, 8)) + 5
    statistics = streamed(features, sizes)
    assert statistics.count == 1000
    np.testing.assert_allclose(statistics.mean, features.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features, rowvar=False), rtol=1e-10)


def test_small_variance_far_from_zero():
    noise = np.random.default_rng(2).integers(0, 8, (500, 2)) / 8  # exact in float64 at 1e9 too
    statistics = streamed(noise + 1e9, (3, 100, 250))
    np.testing.assert_allclose(statistics.covariance, np.cov(noise, rowvar=False), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors(dtype):
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    statistics = FeatureStatistics.of(features)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.detach().double().numpy(), rowvar=False))


def test_moments_can_be_continued():
    features = np.random.default_rng(4).normal(size=(30, 4))
    first = FeatureStatistics.of(features[:12])
    assert FeatureStatistics.from_moments(first.mean, first.covariance).count is None
    continued = FeatureStatistics.from_moments(first.mean, first.covariance, 12)
    np.testing.assert_array_equal((continued.count, *continued.mean), (12, *first.mean))
    continued.update(features[12:])
    np.testing.assert_allclose(continued.covariance, np.cov(features, rowvar=False), rtol=1e-10)


def test_rows_that_are_not_finite():
    features = np.zeros((10, 3))
    features[2, 1] = np.nan
    features[7] = np.inf
    statistics = FeatureStatistics(3)
    with pytest.raises(InputError, match="2 of 10 rows hold NaN or infinity"):
        statistics.update(features)
    assert statistics.count == 0


@pytest.mark.parametrize("shape", [(10, 4), (10,), (2, 5, 3)])
def test_features_of_another_shape(shape):
    with pytest.raises(InputError, match="features"):
        FeatureStatistics(3).update(np.zeros(shape))


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros(3), np.eye(4), r"\[3\] and \[4, 4\]"),
        (np.eye(3), np.eye(3), r"\[3, 3\] and \[3, 3\]"),
        (np.zeros(2), np.full((2, 2), np.nan), "NaN"),
    ],
)
def test_moments_that_do_not_fit(mean, covariance, message):
    with pytest.raises(InputError, match=message):
        FeatureStatistics.from_moments(mean, covariance)
