"""Decoding loops that a GPU records as one graph: nothing waits for the device, nothing is copied to it."""

import dataclasses
import itertools
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from watched import Watched

from ctf.models import Compute
from ctf.models.attention import attend_all
from ctf.models.cluster_head import multiply_tiles
from ctf.models.linear import Linear
from ctf.sampling import Random, Sampling

LABELS = torch.tensor([0, 4, 2, 5, 1])  # 5 is unconditional
SEEDS = [3, 0, 2**63, 7, 3]
#: Groups of 1, 1, 2, 2, 2: of another size after the first two.
GROUPS = {"steps": 5, "order": "random", "cfg_schedule": "linear"}
WAYS = pytest.mark.parametrize(
    ("kind", "way"), [("autoregressive", {}), ("any_order", GROUPS)], ids=["autoregressive", "any_order"]
)
LOOPS = pytest.mark.parametrize(
    "sampling",
    [Sampling(2.0, temperature=0.8, top_k=6, top_p=0.7), Sampling(temperature=0.0), Sampling(2.0)],
    ids=["filters", "greedy", "guided"],
)
RECORDED = pytest.mark.parametrize("task", ["all tokens", "coarse", "fine", "fine, full"])


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Attention by a fused kernel, and the head that never reads how many positions each cluster has."""
    monkeypatch.setattr("ctf.models.cache.attend_by_products", attend_all)
    monkeypatch.setattr("ctf.models.cluster_head.multiply_clusters", multiply_tiles)


def test_what_is_watched():
    x = torch.arange(3.0)
    with Watched() as watched:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        bool(x[0] > 0)
        x.to("meta")
    assert len(watched.found) == 5


def loop_of(packed, sampling, way, given, move=lambda tensor: tensor):
    tensors = LABELS[:3], torch.rand(3, 8, dtype=torch.float64), *([] if packed.given is None else [given[:3]])
    return packed.loop(packed.resolved(dataclasses.replace(sampling, **way)), *map(move, tensors))


@pytest.fixture
def coarse():
    return torch.randint(6, (5, 8), generator=torch.Generator().manual_seed(1))


@LOOPS
@RECORDED
@WAYS
def test_the_loop_never_waits_for_the_device(make, coarse, kind, way, task, sampling):
    packed = make(kind, task).pack(Compute("float32"))
    with torch.inference_mode(), Watched() as watched:
        for _ in loop_of(packed, sampling, way, coarse):
            pass
    assert watched.found == []
    assert watched.operations > 5 * 2 * 10  # it saw the steps of the loop


@RECORDED
@WAYS
def test_the_loop_copies_nothing_to_the_device(monkeypatch, make, coarse, kind, way, task):
    """After two steps to warm up; "meta" stands for the device, and has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    sampling, packed = Sampling(2.0), make(kind, task).to("meta").pack(Compute("float32"))

    def move(tensor):
        return tensor.to("meta")

    with torch.inference_mode():
        for _ in itertools.islice(loop_of(packed, sampling, way, coarse, move), 2):
            pass
        loop = loop_of(packed, sampling, way, coarse, move)
        with Watched() as watched:
            for _ in loop:
                pass
    assert watched.found == []


@LOOPS
@RECORDED
@WAYS
def test_the_gpu_path_on_tensors_without_values(monkeypatch, make, coarse, kind, way, task, sampling):
    """Plain products; reading any value raises."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    stage = make(kind, task, kv_heads=1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        packed = stage.pack(Compute("float32"))
        assert isinstance(packed.transformer.blocks[0].ffn.w2, Linear)
        *_, tokens = loop_of(packed, sampling, way, coarse, mode.from_tensor)
    assert tokens.shape == (3, 8)


@pytest.mark.gpu
@LOOPS
@WAYS
def test_a_recorded_loop_draws_what_the_steps_draw(make, kind, way, sampling):
    packed, sampling = make(kind).to("cuda").pack(Compute("float32")), dataclasses.replace(sampling, **way)
    for labels, seeds in ((LABELS, SEEDS), (LABELS.flip(0), SEEDS[::-1])):
        *_, expected = packed.stepwise(labels, Random(seeds), sampling)
        assert torch.equal(packed.generate(labels, Random(seeds), sampling), expected)
