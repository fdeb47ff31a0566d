"""Keys and values of the positions that were decoded, and attention over them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.models.config import TransformerConfig


class KeyValueCache:
    """Preallocated keys and values for step-by-step decoding, filled position by position.

    Of each layer two tensors (rows · kv_heads, N, head_dim). A cache belongs to one call.
    """

    def __init__(self, config: TransformerConfig, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, rows * config.num_kv_heads, config.num_tokens, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype).unbind()
        self.values = torch.empty(shape, device=device, dtype=dtype).unbind()


def attend_cached(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
    """Store a new position and let it attend over all stored ones.

    Every stored position may be seen, so there is no mask. Query heads that share keys are rows of one product.

    Args:
        q: (rows, heads, 1, head_dim).
        k, v: (rows, kv_heads, 1, head_dim).
        keys, values: (rows · kv_heads, N, head_dim), filled below `position`.
        position: the new one.

    Returns:
        As q.
    """
    keys[:, position] = k.flatten(0, 2)
    values[:, position] = v.flatten(0, 2)
    seen = slice(position + 1)
    grouped = q.reshape(len(keys), -1, q.shape[-1])  # (rows · kv_heads, group, head_dim)
    by = attend_by_products if q.device.type == "cpu" else F.scaled_dot_product_attention
    return by(grouped, keys[:, seen], values[:, seen]).view(q.shape)


def attend_by_products(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q (R, group, d), keys and values (R, n, d) → (R, group, d).

    On a CPU two batched products read the cache faster than the fused kernel does, in bfloat16 several times.
    """
    scaled = (q * q.shape[-1] ** -0.5).to(keys.dtype)
    scores = torch.bmm(keys, scaled.transpose(1, 2)).transpose(1, 2)  # keys first: they are read as they lie
    return torch.bmm(scores.float().softmax(-1).to(values.dtype), values).type_as(q)


#: One operation for a compiler, which would write its own slower loops for products of single rows.
attend_opaque = torch.library.custom_op("ctf::attend_cached", attend_cached, mutates_args=("keys", "values"))
attend_opaque.register_fake(lambda q, k, v, keys, values, position: q.new_empty(q.shape))
