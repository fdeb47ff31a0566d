"""Attention as a GPU calls it: always in a form that its fused kernels take."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
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


class Forms(TorchFunctionMode):
    """Why a call of attention would not take a fused kernel on a GPU, by `sdp_utils.cpp` of PyTorch 2.13; "" if it
    would."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.found.append(self.reason(*args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))

    @staticmethod
    def reason(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if {q.ndim, k.ndim, v.ndim} != {4}:
            return f"{q.ndim} dimensions"
        if attn_mask is not None:
            return "a mask"
        if not q.dtype == k.dtype == v.dtype:
            return "dtypes that differ"
        if is_causal and q.shape[2] != k.shape[2]:
            return "causal, with other numbers of queries than keys"
        if q.shape[1] != k.shape[1] and not (enable_gqa and q.dtype == torch.bfloat16):
            return "grouped heads, which flash attention alone takes"
        if any(x.stride(-1) != 1 or 0 in x.stride() or not x.numel() for x in (q, k, v)):
            return "strides"
        return ""


def loop_of(stage, compute, way, move=lambda tensor: tensor):
    packed = stage.pack(compute)
    sampling = packed.resolved(dataclasses.replace(Sampling(2.0), **way))
    labels, uniform = move(torch.zeros(BATCH, dtype=torch.int64)), move(torch.rand(BATCH, N).double())
    return draw_steps(packed, labels, lambda stream: uniform, packed.plan(sampling))


@DTYPES
@HEADS
@WAYS
def test_decoding_runs_fused_kernels_and_nothing_of_the_fallback(monkeypatch, make, kind, way, calls, kv_heads, dtype):
    """On a CPU, whose fused kernel has the fallback of a GPU's."""
    monkeypatch.setattr("ctf.models.cache.attend_by_products", attend_all)
    stage = make(kind, kv_heads=kv_heads)
    with torch.no_grad(), Dispatched() as dispatched:  # inference mode would show attention as one operation
        for _ in loop_of(stage, Compute(dtype), way):
            pass
    assert dispatched.names.count("_scaled_dot_product_flash_attention_for_cpu") == LAYERS * calls
    assert "_safe_softmax" not in dispatched.names
    assert "bmm" not in dispatched.names


@DTYPES
@HEADS
@WAYS
def test_forms_of_decoding(make, kind, way, calls, kv_heads, dtype):
    """ "meta" stands for the GPU."""
    stage = make(kind, kv_heads=kv_heads).to("meta")
    with torch.inference_mode(), Forms() as forms:
        for _ in loop_of(stage, Compute(dtype), way, lambda tensor: tensor.to("meta")):
            pass
    assert forms.found == [""] * LAYERS * calls


@DTYPES
@HEADS
@pytest.mark.parametrize(("kind", "task"), [("autoregressive", "coarse"), ("masked", "fine, full")])
def test_forms_of_whole_sequences(make, kind, task, kv_heads, dtype):
    """Of training, and of likelihood and rounds, which run in the dtype of the weights."""
    stage = make(kind, task, kv_heads=kv_heads).to("meta", getattr(torch, dtype))
    tokens, labels = (torch.zeros(shape, dtype=torch.int64, device="meta") for shape in ((BATCH, N), (BATCH,)))
    with Forms() as forms:
        states, *_ = stage.training_states(stage.levels(tokens)[0], labels, stage.levels(tokens)[1])
        states.sum().backward()
    assert forms.found == [""] * LAYERS


def test_what_has_no_fused_kernel():
    q, k = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    with Forms() as forms:
        F.scaled_dot_product_attention(q[0], q[0], q[0])
        F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(3, 3, dtype=torch.bool))
        F.scaled_dot_product_attention(q[:, :, :1], q, q, is_causal=True)
        F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
        F.scaled_dot_product_attention(q.mT.contiguous().mT, q, q)
        F.scaled_dot_product_attention(q, q[:1].expand(2, -1, -1, -1), q)
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert [bool(reason) for reason in forms.found] == [True] * 6 + [False]
