"""Attention over whole sequences and over a cache, and the masks of groups of positions and of scales.

On a GPU `scaled_dot_product_attention` has fused kernels for 4-D inputs without a mask whose last dimension is
contiguous; in float32 only for equal numbers of heads. Otherwise it writes all scores, and copies bfloat16 keys and
values to float32 (`sdp_utils.cpp` of PyTorch 2.13). Every call in this file gets a fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.device import gpu_compiles


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """q (B, heads, n, head_dim), k and v (B, kv_heads, n, head_dim) → shape of q; `mask` (n, n): row sees column.

    Training on a CPU computes it in float32: the gradient of the fused kernel takes seven times as long in bfloat16.
    """
    grouped, dtype = q.shape[1] != k.shape[1], q.dtype
    if grouped and dtype == torch.float32 and q.device.type != "cpu":  # no fused kernel takes grouped heads in float32
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        grouped = False
    if q.device.type != "cpu" or dtype == torch.float32 or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    with torch.autocast("cpu", enabled=False):
        return attend(q.float(), k.float(), v.float(), causal, mask).to(dtype)


def attend_all(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q (B, heads, n, head_dim), keys and values (B, kv_heads, m, head_dim) → shape of q: every query sees every key.

    Query heads that share keys become rows of one head: the keys are read once, and every kernel takes it.
    """
    if q.device.type == "cuda":
        disable_cudnn()
    rows = q.reshape(*keys.shape[:2], -1, q.shape[-1])  # (B, kv_heads, group · n, head_dim)
    # `view` would fail: the memory-efficient kernel's result has positions before heads in memory.
    return F.scaled_dot_product_attention(rows, keys, values).reshape(q.shape)


@lru_cache
def disable_cudnn() -> None:
    """Disable cuDNN's attention in this process.

    Hopper prefers it to flash attention, but it builds a plan for each number of keys. `sdpa_kernel` is no way out:
    it sets and resets a flag of the process, so threads would undo each other's choice.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


@lru_cache
@torch.inference_mode(False)  # the cached mask may be made in sampling, and autograd cannot save inference tensors
def group_attention(sizes: tuple[int, ...], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention (q, k, v → shape of q) over [label, tokens of all groups but the last, queries of all groups].

    The mask is that of LPD (arXiv 2507.01957, section 3.2). Tokens see the label, and the tokens of earlier groups and
    of their own. Queries see the label, the tokens of earlier groups, and the queries of their own. Cached, since
    making the mask waits for the device, and training draws only a few numbers of groups.
    """
    of_queries = _numbers(sizes, device)  # (N,) group of each query
    group = torch.cat([of_queries.new_full((1,), -1), of_queries[: len(of_queries) - sizes[-1]], of_queries])
    is_query = torch.arange(len(group), device=device) >= len(group) - len(of_queries)

    def sees(batch: Any, head: Any, row: Tensor, column: Tensor) -> Tensor:
        together = (group[row] == group[column]) & (is_query[row] == is_query[column])
        return together | (~is_query[column] & (group[column] < group[row]))

    return _masked_attention(sees, len(group), device)


@lru_cache
@torch.inference_mode(False)  # as that of groups
def scale_attention(sizes: tuple[int, ...], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """VAR's attention (q, k, v → shape of q) over scales of these sizes: a position sees its own and earlier scales."""
    scale = _numbers(sizes, device)

    def sees(batch: Any, head: Any, row: Tensor, column: Tensor) -> Tensor:
        return scale[column] <= scale[row]

    return _masked_attention(sees, len(scale), device)


def _numbers(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """The number of the part in which each position lies, for parts of these sizes: (sum of sizes,)."""
    counts = torch.tensor(sizes, device=device)
    return torch.arange(len(sizes), device=device).repeat_interleave(counts, output_size=sum(sizes))


def _masked_attention(sees: Callable[..., Tensor], length: int, device: torch.device) -> Callable[..., Tensor]:
    """Attention over `length` positions with the mask `sees` (batch, head, row, column)."""
    if device.type != "cuda":
        indices = torch.arange(length, device=device)
        return partial(attend, mask=sees(None, None, indices[:, None], indices))
    from torch.nn.attention.flex_attention import create_block_mask

    blocks = create_block_mask(sees, None, None, length, length, device=str(device))
    return partial(_compiled_flex_attention(), block_mask=blocks, enable_gqa=True)


@lru_cache
def _compiled_flex_attention() -> Any:
    """FlexAttention, fused: it skips the blocks that a block mask rules out. Uncompiled it writes all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if gpu_compiles() else flex_attention
