"""Attention in decoding runs the fused kernel of a CPU; fake_gpu/ has the forms that the kernels of a GPU take."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ctf.models import Compute
from ctf.models.attention import attend_all
from ctf.sampling import Sampling
from ctf.stages.drawing import draw_steps

BATCH, N, LAYERS = 3, 8, 2
#: How many calls of attention a whole batch takes: one for each step; for groups one for tokens and one for queries.
WAYS = pytest.mark.parametrize(
    ("kind", "way", "calls"),
    [("autoregressive", {}, N), ("any_order", {"steps": 5, "order": "random"}, 2 * 5)],
    ids=["autoregressive", "any_order"],
)
HEADS = pytest.mark.parametrize("kv_heads", [2, 1])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


class Dispatched(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@DTYPES
@HEADS
@WAYS
def test_decoding_runs_fused_kernels_and_nothing_of_the_fallback(monkeypatch, make, kind, way, calls, kv_heads, dtype):
    """On a CPU, whose fused kernel has the fallback of a GPU's."""
    monkeypatch.setattr("ctf.models.cache.attend_by_products", attend_all)
    packed = make(kind, kv_heads=kv_heads).pack(Compute(dtype))
    plan = packed.plan(packed.resolved(Sampling(2.0, **way)))
    labels, uniform = torch.zeros(BATCH, dtype=torch.int64), torch.rand(BATCH, N).double()
    with torch.no_grad(), Dispatched() as dispatched:  # inference mode would show attention as one operation
        for _ in draw_steps(packed, labels, lambda stream: uniform, plan):
            pass
    assert dispatched.names.count("_scaled_dot_product_flash_attention_for_cpu") == LAYERS * calls
    assert "_safe_softmax" not in dispatched.names
    assert "bmm" not in dispatched.names
