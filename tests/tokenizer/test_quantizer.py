import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctf.tokenizer.quantizer import Quantizer, perplexity, usage


def quantizer(weight, l2_normalize=False):
    weight = torch.as_tensor(weight, dtype=torch.float32)
    module = Quantizer(*weight.shape, l2_normalize=l2_normalize)
    module.weight.data.copy_(weight)
    return module


@settings(deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 40),
    st.integers(1, 9),
    st.integers(0, 30),
    st.booleans(),
    st.sampled_from([1, 7, 50, 1 << 26]),
)
def test_nearest_is_the_least_distance(seed, size, dim, rows, l2_normalize, block):
    torch.manual_seed(seed)
    module = quantizer(torch.randn(size, dim), l2_normalize)
    z = module.project(torch.randn(rows, dim))
    tokens = module.nearest(z, block)
    assert tokens.shape == (rows,)
    assert tokens.dtype == torch.int64
    distances = torch.cdist(z.double(), module.codebook.detach().double())
    chosen = distances.gather(1, tokens[:, None]).squeeze(1)
    # A tie may fall either way in float32, so distances are compared, not indices.
    torch.testing.assert_close(chosen.square(), distances.amin(1).square(), rtol=0, atol=1e-5)


def test_nearest_keeps_leading_axes():
    torch.manual_seed(0)
    module = quantizer(torch.randn(20, 4))
    z = torch.randn(2, 3, 5, 4)
    assert torch.equal(module.nearest(z).flatten(), module.nearest(z.view(-1, 4)))


def test_codebook_lies_on_the_sphere_where_the_search_normalizes():
    weight = torch.randn(10, 4)
    torch.testing.assert_close(quantizer(weight, True).codebook.norm(dim=1), torch.ones(10))
    assert torch.equal(quantizer(weight, False).codebook, weight)


def test_codewords_start_as_llamagens():
    """Uniform in a cube around 0, and at once on the sphere where the search normalises."""
    torch.manual_seed(0)
    cube = Quantizer(500, 4, l2_normalize=False).weight
    assert 0.99 / 500 < cube.abs().max() <= 1 / 500
    assert cube.std().item() == pytest.approx(1 / 500 / math.sqrt(3), rel=0.05)
    torch.manual_seed(0)
    torch.testing.assert_close(Quantizer(500, 4).weight, cube / cube.norm(dim=1, keepdim=True))


def test_vectors_are_the_codewords_of_the_tokens():
    torch.manual_seed(0)
    module = quantizer(torch.randn(20, 4), l2_normalize=True)
    out = module(torch.randn(2, 7, 4))
    torch.testing.assert_close(out.vectors, module.codebook[out.tokens])


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_gradient_goes_straight_through(l2_normalize):
    torch.manual_seed(0)
    module = quantizer(torch.randn(20, 4), l2_normalize)
    features, upstream = torch.randn(7, 4, requires_grad=True), torch.randn(7, 4)
    loss = (module(features).vectors * upstream).sum()
    to_features, to_codebook = torch.autograd.grad(loss, [features, module.weight], allow_unused=True)

    expected = upstream
    if l2_normalize:  # the derivative of f/‖f‖ removes the radial part and divides by the length
        length = features.detach().norm(dim=1, keepdim=True)
        z = features.detach() / length
        expected = (upstream - z * (z * upstream).sum(1, keepdim=True)) / length
    torch.testing.assert_close(to_features, expected)
    assert to_codebook is None


def test_losses_by_hand():
    module = quantizer([[0.0, 0.0], [1.0, 0.0]])
    features = torch.tensor([[0.2, 0.0], [0.9, 0.4]], requires_grad=True)
    out = module(features)
    assert out.tokens.tolist() == [0, 1]
    mean = (0.2**2 + 0.1**2 + 0.4**2) / 4
    assert out.codebook_loss.item() == pytest.approx(mean)
    assert out.commitment_loss.item() == pytest.approx(mean)

    to_features, to_codebook = torch.autograd.grad(out.codebook_loss, [features, module.weight], allow_unused=True)
    assert to_features is None
    torch.testing.assert_close(to_codebook, torch.tensor([[-0.1, 0.0], [0.05, -0.2]]))
    to_features, to_codebook = torch.autograd.grad(out.commitment_loss, [features, module.weight], allow_unused=True)
    torch.testing.assert_close(to_features, torch.tensor([[0.1, 0.0], [-0.05, 0.2]]))
    assert to_codebook is None


def test_autocast_does_not_round_the_search():
    torch.manual_seed(0)
    module = quantizer(torch.randn(2000, 4), l2_normalize=True)
    features = torch.randn(500, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(features)
    assert out.vectors.dtype == torch.float32
    assert torch.equal(out.tokens, module(features).tokens)


def test_age_counts_training_steps_since_the_last_use():
    module = quantizer([[0.0], [1.0], [2.0]])
    for features in ([[0.1]], [[1.1], [0.1]], [[0.1], [0.0]]):
        module(torch.tensor(features))
    assert module.age.tolist() == [0, 1, 3]
    module.eval()(torch.tensor([[2.0]]))
    assert module.age.tolist() == [0, 1, 3]


@pytest.mark.parametrize("count", [1, 2, 10])
def test_restart_moves_dead_codewords_onto_features(count):
    torch.manual_seed(0)
    before = torch.randn(6, 4)
    module = quantizer(before, l2_normalize=True)
    module.age.copy_(torch.tensor([0, 5, 3, 4, 9, 3]))  # 1, 3 and 4 are dead after 3 steps
    features = torch.randn(count, 4)
    dead = module.restart_dead(features, dead_after=3, generator=torch.Generator().manual_seed(0))

    assert dead.tolist() == [1, 3, 4][:count]
    alive = [k for k in range(6) if k not in dead]
    assert torch.equal(module.weight[alive], before[alive])
    sources = torch.cdist(module.weight[dead].detach(), features / features.norm(dim=1, keepdim=True)).min(1)
    torch.testing.assert_close(sources.values, torch.zeros(len(dead)), rtol=0, atol=1e-3)
    assert len(set(sources.indices.tolist())) == len(dead)  # each from a feature of its own
    assert module.age[dead].eq(0).all()


def test_restart_without_dead_codewords_changes_nothing():
    before = torch.randn(6, 4)
    module = quantizer(before)
    assert module.restart_dead(torch.randn(5, 4), dead_after=0, generator=torch.Generator()).tolist() == []
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_initialize_spreads_codewords_over_the_features(l2_normalize):
    torch.manual_seed(0)
    features = torch.randn(2000, 4) + 2
    module = Quantizer(50, 4, l2_normalize)
    module.age.fill_(7)
    module.initialize(features)
    assert module.weight.isfinite().all()
    assert module.age.eq(0).all()
    assert usage(module.eval()(features).tokens.bincount(minlength=50)) > 0.95

    trained = module(features).commitment_loss
    module.weight.data.copy_(features[torch.randperm(2000)[:50]])
    assert trained < 0.95 * module(features).commitment_loss  # better than codewords drawn from the data


def test_usage_and_perplexity_by_hand():
    assert usage(torch.tensor([3, 0, 1, 0])) == 0.5
    assert perplexity(torch.tensor([5, 5, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([9, 0, 0])) == pytest.approx(1)
    assert perplexity(torch.tensor([3, 1, 0])) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
