"""Keys and values of the positions that were decoded, and attention over them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ctf.models.config import TransformerConfig

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class KeyValueCache:
    """Preallocated keys and values for step-by-step decoding, filled from the front.

    Of each layer two tensors (rows · kv_heads, length, head_dim). A causal model reads the label and all tokens but
    the last, so the length is N; one of groups has queries for the last, so it is N + 1. A cache belongs to one call.
    """

    def __init__(self, config: TransformerConfig, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        length = config.num_tokens + (config.attention == "groups")
        shape = (config.layers, rows * config.num_kv_heads, length, config.head_dim)
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
    return _attend(q, keys[:, : position + 1], values[:, : position + 1])


def attend_cached_group(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int, tokens: int
) -> Tensor:
    """Store tokens and the queries behind them, and let them attend: tokens over all stored tokens, queries over those
    and each other.

    The next group's tokens take the place of the queries.

    Args:
        q: (rows, heads, n, head_dim).
        k, v: (rows, kv_heads, n, head_dim).
        keys, values: (rows · kv_heads, length, head_dim), filled below `position`.
        position: of the first new one.
        tokens: how many of the n are tokens.

    Returns:
        As q.
    """
    whole = position + q.shape[2]
    keys[:, position:whole] = k.flatten(0, 1)
    values[:, position:whole] = v.flatten(0, 1)
    parts = ((q[:, :, :tokens], position + tokens), (q[:, :, tokens:], whole))
    return torch.cat([_attend(part, keys[:, :seen], values[:, :seen]) for part, seen in parts], dim=2)


def _attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    grouped = q.reshape(len(keys), -1, q.shape[-1])  # (rows · kv_heads, group · n, head_dim)
    if q.device.type == "cpu":
        return attend_by_products(grouped, keys, values).view(q.shape)
    return attend_fused(grouped, keys, values, len(q)).view(q.shape)


def attend_fused(q: Tensor, keys: Tensor, values: Tensor, rows: int) -> Tensor:
    """q (R, group, d), keys and values (R, n, d), R = rows · kv_heads → (R, group, d), by a fused kernel.

    Those take four dimensions only: of three, PyTorch would compute in float32 what lies in bfloat16, step by step.
    Without cuDNN's, which prepares anew for every number of keys, and so for every step.
    """
    q, keys, values = (part.unflatten(0, (rows, -1)) for part in (q, keys, values))
    with sdpa_kernel(WITHOUT_CUDNN):
        return F.scaled_dot_product_attention(q, keys, values).flatten(0, 1)


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
