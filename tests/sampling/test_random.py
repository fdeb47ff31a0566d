import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ctf.errors import InputError
from ctf.sampling import Random, uniforms
from ctf.sampling.random import LABELS

SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(1, 5)


@given(st.lists(SEEDS, min_size=1, max_size=5), st.integers(1, 20), STREAMS, st.integers(0, 3))
@settings(deadline=None)
def test_a_row_depends_on_its_seed_only(seeds, count, stream, step):
    together = uniforms(seeds, count, stream, step)
    assert together.shape == (len(seeds), count)
    assert together.dtype == torch.float64
    assert 0 <= together.min() <= together.max() < 1
    for seed, row in zip(seeds, together, strict=True):
        assert torch.equal(uniforms([seed], count, stream, step)[0], row)


@given(SEEDS, st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None)
def test_a_longer_row_begins_with_the_shorter(seed, short, more):
    random = Random([seed])
    assert torch.equal(random.uniform(short + more)[:, :short], random.uniform(short))


@given(SEEDS)
@settings(deadline=None)
def test_stages_steps_and_labels_draw_different_numbers(seed):
    rows = [Random([seed], stage).uniform(20, step)[0] for stage in range(4) for step in range(3)]
    rows.append(uniforms([seed], 20, LABELS)[0])
    assert len({number for row in rows for number in row.tolist()}) == 20 * len(rows)


def test_values_never_change():
    """Those that images of the first versions were drawn with."""
    assert Random([7]).uniform(2)[0].tolist() == [float.fromhex("0x1.c3d2b13ep-1"), float.fromhex("0x1.79e52f68p-2")]
    for stage, key in ((0, 1), (1, 2), (2, 4), (3, 5)):  # 3 is the labels'
        raw = np.random.Philox(key=[7, key]).random_raw(50)
        assert Random([7], stage).uniform(50)[0].tolist() == [int(bits) // 2**32 / 2**32 for bits in raw]
    raw = np.random.Philox(key=[7, 1], counter=[0, 5, 0, 0]).random_raw(50)
    assert Random([7]).uniform(50, step=5)[0].tolist() == [int(bits) // 2**32 / 2**32 for bits in raw]


def test_numbers_are_uniform_within_and_across_images_and_steps():
    random = Random(range(1000))
    numbers = random.uniform(64).numpy()
    pairs = {
        "neighbours": (numbers[:, :-1], numbers[:, 1:]),
        "consecutive seeds": (numbers[:-1], numbers[1:]),
        "consecutive steps": (numbers, random.uniform(64, step=1).numpy()),
    }
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(numbers[:, 0], "uniform").pvalue > 1e-3
    for name, (a, b) in pairs.items():
        counts = np.histogram2d(a.ravel(), b.ravel(), bins=8)[0]
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3, name


def test_seeds_may_be_a_tensor():
    assert torch.equal(Random(torch.tensor([3, 5]), 1).uniform(4), Random([3, 5], 1).uniform(4))


def test_no_seeds_no_rows():
    assert uniforms([], 4, 1).shape == (0, 4)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range(seed):
    with pytest.raises(InputError, match=f"seed {seed}: seeds are integers from 0"):
        Random([0, seed]).uniform(4)
