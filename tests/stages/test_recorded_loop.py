"""Decoding loops that a GPU records as one graph: nothing waits for the device, nothing is copied to it."""

import dataclasses
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ctf.models import Compute
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
#: Members of clusters are sorted on the host.
RECORDED = pytest.mark.parametrize("task", ["all tokens", "coarse", "fine, full"])


class Watched(TorchDispatchMode):
    """Collects what would make the host wait for a GPU: values read, shapes that depend on values, copies to it."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal", "bincount")

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, result = function.overloadpacket.__name__, function(*args, **(kwargs or {}))
        boolean_index = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8)
            for i in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else [])
        )
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        copied = len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1  # numbers are arguments of kernels
        if boolean_index or copied or any(word in name for word in self.NAMES):
            self.found.append(name)
        self.operations += 1
        return result


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
def test_the_loop_copies_nothing_to_the_device(make, coarse, kind, way, task):
    """After two steps to warm up; "meta" stands for the device."""
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
    """Plain products and fused attention, as on a GPU; reading any value raises."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    stage = make(kind, task, kv_heads=1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.inference_mode():
        packed = stage.pack(Compute("float32"))
        assert isinstance(packed.transformer.head, Linear)
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
