"""Attention and its masks against loops over rows and columns."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.overrides import TorchFunctionMode

from ctf.models.attention import attend, attend_all, group_attention, scale_attention
from ctf.models.cache import attend_by_products

SIZES = [[1], [6], [1, 1, 1, 1], [1, 2, 4], [3, 1, 2], [1, 63, 64]]
CPU = torch.device("cpu")


def sequence(sizes):
    """The input at each place: ("label", −1), ("token", group) or ("query", group)."""
    tokens = [("token", g) for g, size in enumerate(sizes[:-1]) for _ in range(size)]
    return [("label", -1), *tokens, *(("query", g) for g, size in enumerate(sizes) for _ in range(size))]


def may_see(row, column):
    (kind, group), (other, other_group) = row, column
    if other == "label":
        return True
    if other == "query":
        return kind == "query" and group == other_group
    if kind == "label":
        return False
    return other_group <= group if kind == "token" else other_group < group


def expected_mask(sizes):
    places = sequence(sizes)
    return torch.tensor([[may_see(row, column) for column in places] for row in places])


def qkv(length, heads=4, kv_heads=2, dtype=torch.float32, device="cpu", head_dim=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, h, length, head_dim) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def written_out(q, k, v, mask):
    """Every row by itself, in float64."""
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    rows = []
    for i, sees in enumerate(mask):
        scores = (q[:, :, i : i + 1].double() @ k[:, :, sees].mT) / q.shape[-1] ** 0.5
        rows.append(scores.softmax(-1) @ v[:, :, sees])
    return torch.cat(rows, 2)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_group_attention_equals_rows_written_out(sizes, kv_heads):
    mask = expected_mask(sizes)
    q, k, v = qkv(len(mask), kv_heads=kv_heads)
    found = group_attention(tuple(sizes), CPU)(q, k, v)
    torch.testing.assert_close(found.double(), written_out(q, k, v, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [group_attention, scale_attention])
def test_a_mask_made_in_inference_mode_serves_training(attention):
    attention.cache_clear()
    with torch.inference_mode():
        made = attention((1, 3), CPU)
    assert not made.keywords["mask"].is_inference()  # which autograd could not save


class OnTheCpu(TorchFunctionMode):
    """Tensors that are asked for on "cuda" are made on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.device(kwargs.get("device") or "cpu").type == "cuda":
            kwargs = {**kwargs, "device": "cpu"}
        return function(*args, **kwargs)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_gpus_block_mask_is_the_cpus_mask(monkeypatch, sizes, kv_heads):
    """FlexAttention, uncompiled."""
    monkeypatch.setattr("ctf.models.attention._compiled_flex_attention", lambda: flex_attention)
    with OnTheCpu():
        of_gpu = group_attention(tuple(sizes), torch.device("cuda"))
    q, k, v = qkv(len(sequence(sizes)), kv_heads=kv_heads)
    assert of_gpu.func is flex_attention
    torch.testing.assert_close(of_gpu(q, k, v), group_attention(tuple(sizes), CPU)(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [*SIZES, [8] * 32], ids=str)
def test_fused_attention_on_a_gpu(sizes, dtype):
    """Heads are no smaller than 16: FlexAttention has no kernel for those."""
    inputs = [x.requires_grad_() for x in qkv(len(sequence(sizes)), dtype=dtype, device="cuda", head_dim=16)]
    copies = [x.detach().cpu().float().requires_grad_() for x in inputs]
    found, expected = (
        group_attention(tuple(sizes), torch.device("cuda"))(*inputs),
        group_attention(tuple(sizes), CPU)(*copies),
    )
    tolerance = {"rtol": 0.03, "atol": 0.03} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.cpu().float(), expected, **tolerance)
    for gradient, right in zip(
        torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(expected.sum(), copies), strict=True
    ):
        torch.testing.assert_close(gradient.cpu().float(), right, **tolerance)


# --- over a cache ---


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("attention", [attend_all, attend_by_products])
def test_every_query_sees_every_key_of_the_filled_part(attention, kv_heads):
    (q, _, _), (_, k, v) = qkv(3), qkv(9, kv_heads=kv_heads)
    k, v = k[:, :, :5], v[:, :, :5]
    expected = written_out(q, k, v, torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(attention(q, k, v).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(("dtype", "kernel"), [(torch.bfloat16, "flash"), (torch.float32, "fmha")])
def test_kernels_over_a_cache_on_a_gpu(dtype, kernel, kv_heads):
    """Flash attention in bfloat16, the memory-efficient kernel in float32, whose kernels are called fmha."""
    (q, _, _), (_, k, v) = qkv(3, dtype=dtype, device="cuda"), qkv(9, kv_heads=kv_heads, dtype=dtype, device="cuda")
    k, v = k[:, :, :5], v[:, :, :5]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        found = attend_all(q, k, v)
        torch.cuda.synchronize()
    assert any(kernel in event.name for event in profile.events())
    expected = written_out(q.cpu(), k.cpu(), v.cpu(), torch.ones(3, 5, dtype=torch.bool))
    tolerance = {"rtol": 0.03, "atol": 0.03} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.cpu().double(), expected, **tolerance)


# --- attend ---


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_over_whole_sequences(kv_heads, causal):
    q, k, v = qkv(5, kv_heads=kv_heads)
    mask = torch.ones(5, 5, dtype=torch.bool).tril(0 if causal else 4)
    found = attend(q, k, v, causal)
    torch.testing.assert_close(found.double(), written_out(q, k, v, mask), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(attend(q, k, v, mask=mask), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_training_in_bfloat16_rounds_the_result_only(masked):
    """On a CPU; under autocast, as training is."""
    inputs = [x.bfloat16().requires_grad_() for x in qkv(6)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    mask = expected_mask([1, 1, 2])[:6, :6] if masked else torch.ones(6, 6, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*inputs, mask=mask if masked else None)
    assert found.dtype == torch.bfloat16
    expected = written_out(*exact, mask)
    torch.testing.assert_close(found.double(), expected, rtol=0.004, atol=1e-5)  # half a unit in the last place
    gradients = torch.autograd.grad(found.double().square().sum(), inputs)
    for gradient, right in zip(gradients, torch.autograd.grad(expected.square().sum(), exact), strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=0.02, atol=0.02)


def test_results_with_positions_before_heads_are_reshaped(monkeypatch):
    """The memory-efficient kernel of a GPU returns such, in float32 with grouped heads."""
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    expected, attention = attend_all(q, k, v), torch.nn.functional.scaled_dot_product_attention

    def other_layout(*args):
        return attention(*args).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", other_layout)
    assert torch.equal(attend_all(q, k, v), expected)
