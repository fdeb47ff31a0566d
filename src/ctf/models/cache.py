"""Keys and values of the positions that were decoded, and attention over them."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.models.attention import attend_all
from ctf.models.config import TransformerConfig
from ctf.models.next_scale_config import NextScaleConfig


class KeyValueCache:
    """Preallocated keys and values for step-by-step decoding, filled from the front.

    Of each layer two tensors (rows, kv_heads, length, head_dim). A causal model reads the label and all tokens but
    the last, so the length is N; one of groups has queries for the last, so it is N + 1. A cache belongs to one call.
    """

    def __init__(
        self, config: TransformerConfig | NextScaleConfig, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        length = config.num_tokens + (config.attention == "groups")
        shape = (config.layers, rows, config.num_kv_heads, length, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype).unbind()
        self.values = torch.empty(shape, device=device, dtype=dtype).unbind()


def attend_cached(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
    """Store new positions and let them attend over all stored ones.

    Every stored position may be seen, so there is no mask.

    Args:
        q: (rows, heads, n, head_dim).
        k, v: (rows, kv_heads, n, head_dim).
        keys, values: (rows, kv_heads, N, head_dim), filled below `position`.
        position: the first new one.

    Returns:
        As q.
    """
    return _attend(q, *_store(k, v, keys, values, position))


def attend_cached_scale(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
    """As `attend_cached` by the fused kernel: on a CPU it takes a third of the time of products for 100 queries and
    more, and not longer for fewer. An image's is the same whatever the batch."""
    return attend_all(q, *_store(k, v, keys, values, position))


def _store(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """Store new positions; the filled part of keys and values."""
    end = position + k.shape[2]
    keys[:, :, position:end] = k
    values[:, :, position:end] = v
    return keys[:, :, :end], values[:, :, :end]


def attend_cached_group(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int, tokens: int
) -> Tensor:
    """Store tokens and the queries behind them, and let them attend: tokens over all stored tokens, queries over those
    and each other.

    The next group's tokens take the place of the queries.

    Args:
        q: (rows, heads, n, head_dim).
        k, v: (rows, kv_heads, n, head_dim).
        keys, values: (rows, kv_heads, length, head_dim), filled below `position`.
        position: of the first new one.
        tokens: how many of the n are tokens.

    Returns:
        As q.
    """
    whole = position + q.shape[2]
    _store(k, v, keys, values, position)
    parts = ((q[:, :, :tokens], position + tokens), (q[:, :, tokens:], whole))
    return torch.cat([_attend(part, keys[:, :, :seen], values[:, :, :seen]) for part, seen in parts], dim=2)


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (attend_by_products if q.device.type == "cpu" else attend_all)(q, keys, values)


def attend_by_products(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As `attend_all`: on a CPU two batched products read the cache faster than the fused kernel does, in bfloat16
    several times."""
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)  # views, also of the filled part
    rows = q.reshape(len(keys), -1, q.shape[-1])  # (B · kv_heads, group · n, head_dim)
    scaled = (rows * q.shape[-1] ** -0.5).to(keys.dtype)
    scores = torch.bmm(keys, scaled.transpose(1, 2)).transpose(1, 2)  # keys first: they are read as they lie
    return torch.bmm(scores.float().softmax(-1).to(values.dtype), values).type_as(q).view(q.shape)


#: One operation for a compiler, which would write its own slower loops for products of single rows.
attend_opaque = torch.library.custom_op("ctf::attend_cached", attend_cached, mutates_args=("keys", "values"))
attend_opaque.register_fake(lambda q, k, v, keys, values, position: q.new_empty(q.shape))
