"""In float32 on a CPU an image's logits are the same bits alone and in a batch, and so its labels are the same."""

import dataclasses

import pytest
import torch

from ctf.codebook import CoarseMap
from ctf.layout import Layout
from ctf.models import ClusterMembers, Compute, member_logits
from ctf.sampling import Random, Sampling

K, LAYOUT = 400, Layout.square(4)
LABELS = torch.arange(16) % 5
BATCHES = 2, 3, 7, 16
pytestmark = pytest.mark.usefixtures("two_threads")
WAYS = [
    ("autoregressive", Sampling()),
    ("any_order", Sampling(steps=5, order="halton")),
    ("masked", Sampling()),
    ("masked, any", Sampling(steps=3, order="halton")),
]


@pytest.fixture(scope="module")
def clusters():
    """K tokens in 20 clusters of 1 to some 60."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.arange(20), (20 * torch.rand(K - 20, generator=generator) ** 2).long()])
    return CoarseMap(labels, "test", 0, "none")


@pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full"])
@pytest.mark.parametrize(("kind", "sampling"), WAYS, ids=str)
def test_logits_of_an_image(make_stage, clusters, kind, sampling, task):
    task, _, support = task.partition(", ")
    own = {"all tokens": {}, "coarse": {"predicts": clusters}, "fine": {"given": clusters}}[task]
    facts = {"codebook_size": K, "layout": LAYOUT, "num_classes": 5, "support": support or "cluster"}
    stage = make_stage(kind, dim=64, **facts, **own)
    stage = stage.pack(Compute("float32"))
    tokens = torch.randint(K, (16, 16), generator=torch.Generator().manual_seed(1))
    plan = stage.plan(sampling)
    with torch.inference_mode():
        alone = torch.cat([stage.logits(*image, plan) for image in zip(tokens.split(1), LABELS.split(1), strict=True)])
        for batch in BATCHES:
            parts = zip(tokens.split(batch), LABELS.split(batch), strict=True)
            assert torch.equal(torch.cat([stage.logits(*part, plan) for part in parts]), alone), batch


@pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full", "middle"])
@pytest.mark.parametrize(("kind", "sampling"), [*WAYS, ("masked, any", Sampling(steps=3, order="confidence"))], ids=str)
def test_labels_of_an_image(monkeypatch, make, kind, sampling, task):
    monkeypatch.setattr("ctf.stages.masked.TOGETHER", 4)  # rows of a batch go through the network in parts
    packed, sampling = make(kind, task).pack(Compute("float32")), dataclasses.replace(sampling, cfg_scale=2.0)
    seeds, generator = torch.arange(9) // 2, torch.Generator().manual_seed(0)
    given = None if packed.given is None else torch.randint(6, (9, 8), generator=generator)

    def generate(images):
        return packed.generate(images % 6, Random(seeds[images]), sampling, None if given is None else given[images])

    together = generate(torch.arange(9))
    assert len(together.unique(dim=0)) > 5  # some share a seed, so that their labels may be equal
    order = torch.randperm(9, generator=generator)
    assert torch.equal(generate(order), together[order])
    assert torch.equal(torch.cat([generate(torch.tensor([i])) for i in range(9)]), together)


def is_exact(relation, dim):
    """Whether the logits of members are the same bits in every batch."""
    members, generator = ClusterMembers(relation), torch.Generator().manual_seed(2)
    hidden = torch.randn(16, 9, dim, generator=generator)
    weight = torch.randn(relation.num_fine, dim, generator=generator)
    given = torch.randint(relation.num_coarse, (16, 9), generator=generator)

    def logits_in(batch):
        parts = zip(hidden.split(batch), given.split(batch), strict=True)
        return torch.cat([member_logits(h, weight, c, members) for h, c in parts])

    return all(torch.equal(logits_in(batch), logits_in(1)) for batch in BATCHES)


@pytest.mark.parametrize("dim", [16, 64, 128, 192, 768, 1024])
def test_logits_of_members_for_the_widths_of_models(clusters, dim):
    assert is_exact(clusters, dim)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 2], [2, 2], [1, 2, 3], [3, 3]], ids=str)
def test_logits_of_members_of_small_clusters(sizes):
    relation = CoarseMap(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)), "test", 0, "none")
    assert is_exact(relation, 16)
    assert is_exact(relation, 64)
