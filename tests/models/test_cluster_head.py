import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from watched import Watched

from ctf.codebook import CoarseMap
from ctf.models import ClusterMembers, member_logits
from ctf.models.cluster_head import multiply_clusters, multiply_tiles

PRODUCTS = pytest.mark.parametrize("multiply", [multiply_clusters, multiply_tiles])


def masked_log_probabilities(hidden, weight, coarse, coarse_map):
    """All K logits, those outside of the cluster masked, renormalised: (…, K)."""
    outside = coarse_map.fine_to_coarse != coarse[..., None]  # (…, K)
    return (hidden @ weight.T).masked_fill(outside, -torch.inf).log_softmax(-1)


@st.composite
def cases(draw):
    clusters = draw(st.integers(1, 6))
    more = draw(st.lists(st.integers(0, clusters - 1), max_size=20))
    labels = draw(st.permutations([*range(clusters), *more]))
    coarse_map = CoarseMap(torch.tensor(labels), "test", 0, "none")
    shape = draw(st.sampled_from([(5,), (1, 1), (1, 7), (3, 4)]))
    used = draw(st.lists(st.integers(0, clusters - 1), min_size=1, max_size=clusters))  # the others are absent
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    coarse = torch.tensor(used)[torch.randint(len(used), shape, generator=generator)]
    fine = coarse_map.swap_within_cluster(
        torch.stack([coarse_map.members(int(m))[0] for m in coarse.flatten()]), generator
    )
    hidden = torch.randn(*shape, 8, generator=generator).requires_grad_()
    weight = torch.randn(len(labels), 8, generator=generator).requires_grad_()
    return coarse_map, coarse, fine.view(shape), hidden, weight


def logits_of(multiply, hidden, weight, coarse, members):
    return multiply(hidden.flatten(0, -2), weight, coarse.flatten(), members).view(*coarse.shape, -1)


@PRODUCTS
@given(case=cases(), tile=st.sampled_from([1, 2, 3, 64]))
@settings(max_examples=40)
def test_members_are_the_masked_full_head(multiply, case, tile):
    coarse_map, coarse, fine, hidden, weight = case
    members = ClusterMembers(coarse_map)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ctf.models.cluster_head.TILE", tile)
        logits = logits_of(multiply, hidden, weight, coarse, members)
    expected = masked_log_probabilities(hidden, weight, coarse, coarse_map)
    assert logits.shape == (*coarse.shape, int(coarse_map.sizes.max()))
    for m, row, right in zip(coarse.flatten(), logits.flatten(0, -2), expected.flatten(0, -2), strict=True):
        of_cluster = coarse_map.members(int(m))
        found = row.log_softmax(-1)
        torch.testing.assert_close(found[: len(of_cluster)], right[of_cluster], rtol=1e-5, atol=1e-5)
        assert (row[len(of_cluster) :] == -torch.inf).all()

    # Gradients of a loss in which every target counts differently.
    factors = torch.linspace(1, 2, fine.numel()).view(fine.shape)
    by_members = logits.log_softmax(-1).gather(-1, members.index[fine][..., None]).squeeze(-1)
    full = expected.gather(-1, fine[..., None]).squeeze(-1)
    found = torch.autograd.grad((factors * by_members).sum(), (hidden, weight))
    wanted = torch.autograd.grad((factors * full).sum(), (hidden, weight))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def many_clusters():
    """K = 400 tokens in 37 clusters of 1 to some 30."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(37), (37 * torch.rand(363, generator=generator) ** 2).long()])
    return ClusterMembers(CoarseMap(labels, "test", 0, "none"))


def batches(members, count, n=300):
    """Rows, and clusters of which other numbers are there: from one to all of them."""
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        used = 1 + number * (len(members.sizes) - 1) // (count - 1)
        coarse = torch.randint(used, (n,), generator=generator)
        hidden = torch.randn(n, 16, generator=generator).requires_grad_()
        yield hidden, torch.randn(400, 16, generator=generator).requires_grad_(), coarse


def loss_and_gradients(multiply, hidden, weight, coarse, members):
    """The loss −log P of the first member of each position's cluster, and its gradients."""
    loss = -multiply(hidden, weight, coarse, members).log_softmax(-1)[:, 0].mean()
    return loss, *torch.autograd.grad(loss, (hidden, weight))


def test_tiles_copy_nothing_to_the_device(many_clusters):
    """ "meta" stands for it."""
    hidden, weight, coarse = (
        x.detach().to("meta").requires_grad_(x.requires_grad) for x in next(batches(many_clusters, 2))
    )
    members = many_clusters.to("meta")
    with Watched() as watched:
        loss_and_gradients(multiply_tiles, hidden, weight, coarse, members)
    assert watched.found == []


def test_tiles_are_compiled_once_for_all_batches(many_clusters):
    counter = CompileCounterWithBackend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(multiply_tiles, fullgraph=True, backend=counter)
    for hidden, weight, coarse in batches(many_clusters, 20):
        found = loss_and_gradients(compiled, hidden, weight, coarse, many_clusters)
        expected = loss_and_gradients(multiply_tiles, hidden, weight, coarse, many_clusters)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gpu_computes_what_a_cpu_does(autocast):
    members = ClusterMembers(CoarseMap(torch.arange(400) % 37, "test", 0, "none"))
    for hidden, weight, coarse in batches(members, 4):
        expected = loss_and_gradients(member_logits, hidden, weight, coarse, members.cpu())
        moved = (x.detach().cuda().requires_grad_(x.requires_grad) for x in (hidden, weight, coarse))
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            found = loss_and_gradients(member_logits, *moved, members.cuda())
        torch.testing.assert_close([x.cpu() for x in found], list(expected), rtol=1e-4, atol=1e-5)
