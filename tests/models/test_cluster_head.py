import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from ctf.codebook import CoarseMap
from ctf.models import ClusterMembers, member_logits
from ctf.models.cluster_head import grouped_by_products, grouped_on_device


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


def on_device(hidden, weight, coarse, members):
    """As on a GPU, but in float32."""
    logits = grouped_on_device(hidden.flatten(0, -2), weight, coarse.flatten(), members, torch.float32)
    return logits.view(*coarse.shape, -1)


@pytest.mark.parametrize("head", [member_logits, on_device])
@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_members_are_the_masked_full_head(head, case):
    coarse_map, coarse, fine, hidden, weight = case
    members = ClusterMembers(coarse_map)
    logits = head(hidden, weight, coarse, members)
    expected = masked_log_probabilities(hidden, weight, coarse, coarse_map)
    assert logits.shape == (*coarse.shape, int(coarse_map.sizes.max()))
    for m, row, right in zip(coarse.flatten(), logits.flatten(0, -2), expected.flatten(0, -2), strict=True):
        of_cluster = coarse_map.members(int(m))
        own = row.log_softmax(-1)
        torch.testing.assert_close(own[: len(of_cluster)], right[of_cluster], rtol=1e-5, atol=1e-5)
        assert (row[len(of_cluster) :] == -torch.inf).all()

    # Gradients of a loss in which every target counts differently.
    factors = torch.linspace(1, 2, fine.numel()).view(fine.shape)
    own = logits.log_softmax(-1).gather(-1, members.index[fine][..., None]).squeeze(-1)
    full = expected.gather(-1, fine[..., None]).squeeze(-1)
    found = torch.autograd.grad((factors * own).sum(), (hidden, weight))
    wanted = torch.autograd.grad((factors * full).sum(), (hidden, weight))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@given(cases())
@settings(max_examples=20, deadline=None)
def test_labels_of_choices(case):
    coarse_map, coarse, fine, _, _ = case
    members = ClusterMembers(coarse_map)
    assert torch.equal(members.labels(coarse, members.index[fine]), fine)
    for m in range(coarse_map.num_coarse):
        choices = torch.arange(int(coarse_map.sizes[m]))
        assert torch.equal(members.labels(torch.full_like(choices, m), choices), coarse_map.members(m))


def test_absent_clusters_get_no_gradient(make_map):
    members = ClusterMembers(make_map(0, 1, 2, 1, 0))
    weight = torch.ones(5, 4, requires_grad=True)
    logits = member_logits(torch.ones(1, 3, 4), weight, torch.tensor([[1, 1, 0]]), members)
    logits.logsumexp(-1).sum().backward()
    assert weight.grad.ne(0).any(1).tolist() == [True, True, False, True, True]


def random_case(seed, rows=40, clusters=16, size=64):
    """As many rows in clusters of another frequency each time."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(clusters, generator=generator).pow(4).multinomial(rows, replacement=True, generator=generator)
    return torch.randn(rows, 8, generator=generator), torch.randn(size, 8, generator=generator), coarse


def operations_of(head, members):
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            names.add(operation.name().removeprefix("aten::"))
            return operation(*args, **kwargs or {})

    names = set()
    rows, weight, coarse = random_case(0)
    rows, weight = rows.requires_grad_(), weight.requires_grad_()
    with Operations():
        head(rows, weight, coarse, members).logsumexp(-1).sum().backward()
    return names


def test_the_device_never_waits_for_the_host(make_map):
    """No value goes from there to here, and no shape depends on one."""
    members = ClusterMembers(make_map(*(i % 16 for i in range(64))))
    waiting = {"_local_scalar_dense", "nonzero", "bincount", "unique2", "_unique2", "masked_select", "equal"}
    assert not operations_of(grouped_on_device, members) & waiting
    assert "bincount" in operations_of(grouped_by_products, members)


def test_one_compilation_for_batches_of_any_clusters(make_map):
    members = ClusterMembers(make_map(*(i % 16 for i in range(64))))
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(grouped_on_device, backend=counter, fullgraph=True)
    for seed in range(20):
        case = random_case(seed)
        torch.testing.assert_close(compiled(*case, members), grouped_by_products(*case, members), rtol=0.02, atol=0.1)
    assert counter.frame_count == 1
