"""Attention over whole sequences and over cached ones, and what sees what where groups of positions are predicted.

On a GPU `scaled_dot_product_attention` takes a fused kernel for 4-D inputs without a mask whose last dimension is
contiguous, in float32 for equal numbers of heads only. Anything else falls to products that write all scores, and in
bfloat16 copy keys and values to float32 (`sdp_utils.cpp` of PyTorch 2.13). So every call here is of that form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """q (B, heads, n, head_dim), k and v (B, kv_heads, n, head_dim) → as q; `mask` (n, n): whether a row sees a column.

    Training on a CPU computes it in float32: the gradient of the fused kernel takes seven times as long in bfloat16.
    """
    grouped, dtype = q.shape[1] != k.shape[1], q.dtype
    if grouped and dtype == torch.float32 and q.device.type != "cpu":
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        grouped = False
    if q.device.type != "cpu" or dtype == torch.float32 or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    with torch.autocast("cpu", enabled=False):
        return attend(q.float(), k.float(), v.float(), causal, mask).to(dtype)


def attend_all(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q (B, heads, n, head_dim), keys and values (B, kv_heads, m, head_dim) → as q: every query sees every key.

    Query heads that share keys are rows of one head, which reads them once and suits every kernel.
    """
    if q.device.type == "cuda":
        leave_out_cudnn()
    rows = q.reshape(*keys.shape[:2], -1, q.shape[-1])  # (B, kv_heads, group · n, head_dim)
    # No view: in memory, the memory-efficient kernel's result has positions before heads.
    return F.scaled_dot_product_attention(rows, keys, values).reshape(q.shape)


@lru_cache
def leave_out_cudnn() -> None:
    """Take no attention of cuDNN from now on, in the whole process.

    Hopper prefers it to flash attention, and it builds a plan for each number of keys. `sdpa_kernel` sets the same
    flag of the process around a call, so threads would undo each other's choice.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


@lru_cache
@torch.inference_mode(False)  # sampling may come first, and a training step cannot save tensors of inference
def group_attention(sizes: tuple[int, ...], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention (q, k, v → as q) over [label, tokens of all groups but the last, queries of all groups].

    That of LPD (arXiv 2507.01957, section 3.2).
    Tokens see the label and the tokens of earlier groups and their own; queries see the label, the tokens of earlier
    groups, and the queries of their own. Nobody else sees queries. Made once for each of the few numbers of groups that
    training draws: making it waits for the device.
    """
    of_queries = torch.arange(len(sizes), device=device).repeat_interleave(
        torch.tensor(sizes, device=device), output_size=sum(sizes)
    )
    group = torch.cat([of_queries.new_full((1,), -1), of_queries[: len(of_queries) - sizes[-1]], of_queries])
    is_query = torch.arange(len(group), device=device) >= len(group) - len(of_queries)

    def sees(batch: Any, head: Any, row: Tensor, column: Tensor) -> Tensor:
        together = (group[row] == group[column]) & (is_query[row] == is_query[column])
        return together | (~is_query[column] & (group[column] < group[row]))

    return _masked_attention(sees, len(group), device)


@lru_cache
def scale_attention(sizes: tuple[int, ...], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention (q, k, v → as q) over scales of these sizes: a position sees its own and those before (VAR)."""
    scale = torch.arange(len(sizes), device=device).repeat_interleave(
        torch.tensor(sizes, device=device), output_size=sum(sizes)
    )

    def sees(batch: Any, head: Any, row: Tensor, column: Tensor) -> Tensor:
        return scale[column] <= scale[row]

    return _masked_attention(sees, len(scale), device)


def _masked_attention(sees: Callable[..., Tensor], length: int, device: torch.device) -> Callable[..., Tensor]:
    """Attention over `length` positions where `sees` (batch, head, row, column) says which see which."""
    if device.type != "cuda":
        indices = torch.arange(length, device=device)
        return partial(attend, mask=sees(None, None, indices[:, None], indices))
    from torch.nn.attention.flex_attention import create_block_mask

    blocks = create_block_mask(sees, None, None, length, length, device=str(device))
    return partial(_compiled_flex_attention(), block_mask=blocks, enable_gqa=True)


@lru_cache
def _compiled_flex_attention() -> Any:
    """Fused, and skips what a block mask rules out."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
