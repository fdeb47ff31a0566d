import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctf.codebook import cluster_codebook, describe, format_description, within_cluster_distance
from ctf.errors import InputError


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 100))
def test_within_cluster_distance_agrees_with_loops(size, dim, seed):
    rng = np.random.default_rng(seed)
    codebook = rng.standard_normal((size, dim))
    labels = np.unique(rng.integers(0, 6, size), return_inverse=True)[1]
    total = 0.0
    for k in range(size):
        mean = codebook[labels == labels[k]].mean(0)
        total += sum((codebook[k, i] - mean[i]) ** 2 for i in range(dim))
    found = within_cluster_distance(torch.from_numpy(codebook), torch.from_numpy(labels))
    assert found == pytest.approx((total / size) ** 0.5)


def test_description_of_two_separate_pairs():
    codebook = torch.tensor([[0.0], [2.0], [100.0], [102.0], [104.0]])
    cm = cluster_codebook(codebook, 2)
    found = describe(codebook, cm)
    assert (found["num_fine"], found["num_coarse"], found["size_min"], found["size_max"]) == (5, 2, 2, 3)
    assert (found["size_median"], found["size_std"]) == (2.5, 0.5)
    assert found["within_cluster_distance"] == pytest.approx(2**0.5)
    assert found["ratio"] == pytest.approx(2**0.5 / found["random_within_cluster_distance"])
    text = format_description(found).splitlines()
    assert text[0] == "5 codewords in 2 clusters (kmeans, seed 0)"
    assert text[1] == "cluster sizes: 2 to 3, median 2.5, std 0.5"


def test_a_random_partition_is_as_wide_as_its_control():
    codebook = torch.from_numpy(np.random.default_rng(0).standard_normal((2000, 4)))
    assert describe(codebook, cluster_codebook(codebook, 50, "random"))["ratio"] == pytest.approx(1, abs=0.02)


def test_equal_codewords_have_no_distance():
    codebook = torch.ones(6, 2)
    assert describe(codebook, cluster_codebook(codebook, 3))["ratio"] == 0


def test_another_codebook_is_refused():
    codebook = torch.randn(6, 2)
    with pytest.raises(InputError, match="another codebook"):
        describe(codebook + 1, cluster_codebook(codebook, 3))
