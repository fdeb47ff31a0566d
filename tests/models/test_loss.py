"""Losses in chunks against all logits at once: values and gradients."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ctf.models.loss import ClusterLoss, linear_cross_entropy

V, DIM = 10, 8
CHUNKS = pytest.mark.parametrize("chunk", [1, V, 3 * V + 1, 10**6])  # 1, 1, 3 and all rows at once


@pytest.fixture
def clusters(make_map):
    """1, 2, 3 and 4 of the 10 labels, in no order."""
    return make_map(3, 1, 2, 3, 0, 2, 3, 1, 3, 2)


def case(*shape, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(*shape, DIM, generator=generator) * scale).requires_grad_()
    weight = torch.randn(V, DIM, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(V, shape, generator=generator)


def at_once(hidden, weight, targets, coarse_map=None, factor=1.0):
    """All logits; a cluster's is the logsumexp of its members', by a dense matrix of who is in which."""
    logits = (hidden @ weight.T).flatten(0, -2)
    losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
    if coarse_map is not None:
        outside = F.one_hot(coarse_map.fine_to_coarse).T == 0  # (M, V)
        of_clusters = logits[:, None].masked_fill(outside, -math.inf).logsumexp(-1)  # (n, M)
        right = coarse_map.fine_to_coarse[targets.flatten()]
        losses = losses + factor * F.cross_entropy(of_clusters, right, reduction="none")
    return losses.view(targets.shape)


def gradients(losses, *leaves):
    """Gradients of a sum with another factor for every position."""
    return torch.autograd.grad((losses * torch.linspace(1, 2, losses.numel()).view(losses.shape)).sum(), leaves)


@CHUNKS
@pytest.mark.parametrize("shape", [(7,), (2, 5), (1, 1)])
@pytest.mark.parametrize("factor", [None, 1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 100.0])  # logits some hundreds apart: float32 has no such small probabilities
def test_values_and_gradients(monkeypatch, clusters, chunk, shape, factor, scale):
    monkeypatch.setattr("ctf.models.loss.CHUNK", dict.fromkeys(("cpu", "cuda"), chunk))
    hidden, weight, targets = case(*shape, scale=scale)
    added = None if factor is None else ClusterLoss(clusters, factor)
    found = linear_cross_entropy(hidden, weight, targets, added)
    expected = at_once(hidden, weight, targets, None if factor is None else clusters, factor)
    assert found.dtype == torch.float32
    assert scale == 1 or shape == (1, 1) or found.max() > 200
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=scale * 1e-5)
    torch.testing.assert_close(
        gradients(found, hidden, weight), gradients(expected, hidden, weight), rtol=1e-4, atol=scale * 1e-5
    )


@CHUNKS
@pytest.mark.parametrize("factor", [None, 0.7])
def test_under_autocast_products_are_bfloat16_and_sums_float32(monkeypatch, clusters, chunk, factor):
    """Against the same of weights and states that are rounded to bfloat16 beforehand."""
    monkeypatch.setattr("ctf.models.loss.CHUNK", dict.fromkeys(("cpu", "cuda"), chunk))
    hidden, weight, targets = case(2, 5)
    added = None if factor is None else ClusterLoss(clusters, factor)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, targets, added)
    assert found.dtype == torch.float32
    rounded = hidden.bfloat16().float(), weight.bfloat16().float()
    expected = at_once(*rounded, targets, None if factor is None else clusters, factor)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    for gradient, right in zip(gradients(found, hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert gradient.dtype == torch.float32  # as the weights are
        assert (gradient - right).norm() < 0.02 * right.norm()


def test_parts_take_less_than_half_of_the_memory_of_all_logits():
    """Measured: gradients of states and weight, and for all logits three tensors of 64 MiB."""

    def peak(method):
        command = [sys.executable, Path(__file__).with_name("peak_memory_of_loss.py"), method, "1024", "64", "16384"]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # or freed memory would stay in the heap
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    parts, logits = peak("parts"), peak("logits")
    assert logits > 2 * 4 * 1024 * 16_384
    assert parts < logits / 2


def test_cluster_loss_has_no_weights(clusters):
    added = ClusterLoss(clusters)
    assert [*added.parameters()] == []
    assert added.state_dict() == {}


def test_a_stage_trains_with_a_loss_on_clusters(make_stage, clusters):
    stage = make_stage(codebook_size=V)
    tokens, labels = torch.randint(V, (3, 6), generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2])
    logits = stage.logits(tokens, labels).log_softmax(-1)
    inside = clusters.fine_to_coarse == clusters.fine_to_coarse[tokens][..., None]  # (3, 6, V)
    of_cluster = logits.masked_fill(~inside, -math.inf).logsumexp(-1)
    expected = -logits.gather(2, tokens[..., None]).squeeze(2) - 0.7 * of_cluster
    torch.testing.assert_close(stage(tokens, labels, ClusterLoss(clusters, 0.7)), expected, rtol=1e-4, atol=1e-5)
