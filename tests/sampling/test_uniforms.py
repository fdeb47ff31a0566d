import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ctf.errors import InputError
from ctf.sampling import uniforms

SEEDS = st.integers(0, 2**64 - 1)


@given(st.lists(SEEDS, min_size=1, max_size=5), st.integers(1, 20), st.sampled_from(["stage1", "stage2"]))
@settings(deadline=None)
def test_a_row_depends_on_its_seed_only(seeds, count, stream):
    together = uniforms(seeds, count, stream)
    assert together.shape == (len(seeds), count)
    assert together.dtype == torch.float64
    assert 0 <= together.min() <= together.max() < 1
    for seed, row in zip(seeds, together, strict=True):
        assert torch.equal(uniforms([seed], count, stream)[0], row)


@given(SEEDS, st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None)
def test_a_longer_row_begins_with_the_shorter(seed, short, more):
    assert torch.equal(uniforms([seed], short + more, "stage1")[:, :short], uniforms([seed], short, "stage1"))


@given(SEEDS)
@settings(deadline=None)
def test_the_streams_differ(seed):
    assert not (uniforms([seed], 20, "stage1") == uniforms([seed], 20, "stage2")).any()


def test_values_never_change():
    assert uniforms([7], 2, "stage1")[0].tolist() == [
        float.fromhex("0x1.c3d2b13ep-1"),
        float.fromhex("0x1.79e52f68p-2"),
    ]
    for number, stream in enumerate(("stage1", "stage2"), start=1):
        raw = np.random.Philox(key=[7, number]).random_raw(50)
        assert uniforms([7], 50, stream)[0].tolist() == [int(bits) // 2**32 / 2**32 for bits in raw]


def test_numbers_are_uniform_within_and_across_images():
    numbers = uniforms(range(1000), 64, "stage1").numpy()
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(numbers[:, 0], "uniform").pvalue > 1e-3
    neighbours = np.histogram2d(numbers[:, :-1].ravel(), numbers[:, 1:].ravel(), bins=8)[0]
    assert stats.chisquare(neighbours.ravel()).pvalue > 1e-3
    consecutive_seeds = np.histogram2d(numbers[:-1].ravel(), numbers[1:].ravel(), bins=8)[0]
    assert stats.chisquare(consecutive_seeds.ravel()).pvalue > 1e-3


def test_seeds_may_be_a_tensor():
    assert torch.equal(uniforms(torch.tensor([3, 5]), 4, "stage2"), uniforms([3, 5], 4, "stage2"))


def test_no_seeds_no_rows():
    assert uniforms([], 4, "stage1").shape == (0, 4)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range(seed):
    with pytest.raises(InputError, match=f"seed {seed}: seeds are integers from 0"):
        uniforms([0, seed], 4, "stage1")
