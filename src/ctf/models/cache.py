"""Cache of keys and values for decoding, and attention over it."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.models.attention import attend_all
from ctf.models.config import TransformerConfig
from ctf.models.next_scale_config import NextScaleConfig


class KeyValueCache:
    """Preallocated keys and values for step-by-step decoding, filled from the front. It belongs to one call.

    Each layer has two tensors (rows, kv_heads, length, head_dim). A causal model reads the label and all tokens but the
    last: length N. A model of groups also has queries for the last group: length N + 1.
    """

    def __init__(
        self, config: TransformerConfig | NextScaleConfig, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        length = config.num_tokens + (config.attention == "groups")
        shape = (config.layers, rows, config.num_kv_heads, length, config.head_dim)
        # One allocation; `unbind` gives each layer a contiguous view.
        self.keys = torch.empty(shape, device=device, dtype=dtype).unbind()
        self.values = torch.empty(shape, device=device, dtype=dtype).unbind()


def attend_cached(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
    """Store new positions and let them attend over all stored ones, without a mask.

    Args:
        q: (rows, heads, n, head_dim).
        k, v: (rows, kv_heads, n, head_dim).
        keys, values: (rows, kv_heads, N, head_dim), filled below `position`.
        position: of the first new one.

    Returns:
        (rows, heads, n, head_dim).
    """
    return _attend(q, *_store(k, v, keys, values, position))


def attend_cached_scale(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
    """`attend_cached` by the fused kernel: on a CPU, for 100 queries and more, it takes a third of the time of
    products, and not longer for fewer. An image's result does not depend on the batch."""
    return attend_all(q, *_store(k, v, keys, values, position))


def _store(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """Store new positions, and return the filled part of keys and values."""
    end = position + k.shape[2]
    keys[:, :, position:end] = k
    values[:, :, position:end] = v
    return keys[:, :, :end], values[:, :, :end]


def attend_cached_group(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int, tokens: int
) -> Tensor:
    """`attend_cached` of `tokens` tokens and the n − `tokens` queries behind them.

    Tokens attend over all stored tokens, queries over those and each other. The tokens of the next group will overwrite
    the queries in the cache.
    """
    keys, values = _store(k, v, keys, values, position)
    seen = position + tokens
    by_tokens = _attend(q[:, :, :tokens], keys[:, :, :seen], values[:, :, :seen])
    return torch.cat([by_tokens, _attend(q[:, :, tokens:], keys, values)], dim=2)


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (attend_by_products if q.device.type == "cpu" else attend_all)(q, keys, values)


def attend_by_products(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`attend_all` as two batched products, which on a CPU read the cache faster than the fused kernel does, in
    bfloat16 several times faster."""
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)  # (B · kv_heads, m, head_dim), views
    rows = q.reshape(len(keys), -1, q.shape[-1])  # (B · kv_heads, group · n, head_dim)
    scaled = (rows * q.shape[-1] ** -0.5).to(keys.dtype)
    # Keys are the first factor, so that they are read in the order of memory.
    scores = torch.bmm(keys, scaled.transpose(1, 2)).transpose(1, 2)  # (B · kv_heads, group · n, m)
    return torch.bmm(scores.float().softmax(-1).to(values.dtype), values).type_as(q).view(q.shape)


#: Opaque to a compiler: Inductor's own loops for products of single rows are slower.
attend_opaque = torch.library.custom_op("ctf::attend_cached", attend_cached, mutates_args=("keys", "values"))
attend_opaque.register_fake(lambda q, k, v, keys, values, position: q.new_empty(q.shape))
