"""Attention over whole sequences, and what sees what where groups of positions are predicted in turn."""

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
    if q.device.type != "cpu" or dtype == torch.float32 or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    with torch.autocast("cpu", enabled=False):
        return attend(q.float(), k.float(), v.float(), causal, mask).to(dtype)


def group_attention(sizes: list[int], device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Attention (q, k, v → as q) over [label, tokens of all groups but the last, queries of all groups].

    That of LPD (arXiv 2507.01957, section 3.2).
    Tokens see the label and the tokens of earlier groups and their own; queries see the label, the tokens of earlier
    groups, and the queries of their own. Nobody else sees queries.
    """
    of_queries = torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))
    group = torch.cat([of_queries.new_full((1,), -1), of_queries[: len(of_queries) - sizes[-1]], of_queries])
    is_query = torch.arange(len(group), device=device) >= len(group) - len(of_queries)

    def sees(batch: Any, head: Any, row: Tensor, column: Tensor) -> Tensor:
        together = (group[row] == group[column]) & (is_query[row] == is_query[column])
        return together | (~is_query[column] & (group[column] < group[row]))

    if device.type != "cuda":
        indices = torch.arange(len(group), device=device)
        mask = sees(None, None, indices[:, None], indices)
        return partial(attend, mask=mask)
    from torch.nn.attention.flex_attention import create_block_mask

    blocks = create_block_mask(sees, None, None, len(group), len(group), device=str(device))
    return partial(_compiled_flex_attention(), block_mask=blocks, enable_gqa=True)


@lru_cache
def _compiled_flex_attention() -> Any:
    """Fused, and skips what a block mask rules out."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
