"""2-D rotary position embedding as LlamaGen uses it."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.elementwise import ONE_THREAD, cuts
from ctf.layout import Layout


def rotary_table(layout: Layout, head_dim: int, base: float) -> Tensor:
    """Cosines and signed sines for the class token and every position: (1 + N, 2, head_dim).

    Elements 2i and 2i + 1 of a head are rotated as a pair: both have its cosine, and −sine and sine. The first half
    of the pairs rotates by the row, the second by the column, see `Layout.coordinates`. The class token's row is all
    zeros, not the identity: its queries and keys vanish in every layer. LlamaGen's weights were trained with that, so
    it is part of the architecture.
    """
    with torch.device("cpu"):  # a GPU's sines differ in the last bit
        frequencies = 1.0 / base ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))  # (head_dim/4,)
        _, rows, columns = torch.tensor(layout.coordinates).unbind(1)  # (N,) each
        angles = torch.cat([torch.outer(x, frequencies) for x in (rows, columns)], dim=1)  # (N, head_dim/2)
        sines = torch.stack([-angles.sin(), angles.sin()], dim=-1).flatten(1)  # (N, head_dim)
        table = torch.stack([angles.cos().repeat_interleave(2, 1), sines], dim=1)  # (N, 2, head_dim)
        table = torch.cat([torch.zeros_like(table[:1]), table])
    return table.to(torch.get_default_device())


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate adjacent pairs (x[2i], x[2i+1]) of x (B, n, heads, head_dim) by table (n, 2, head_dim), or one per image.

    A CPU multiplies complex numbers, which takes a fifth of the time. A compiler could not fuse those with the rest.
    """
    cos, sin = table.unsqueeze(-2).unbind(-3)  # (n, 1, head_dim) each
    values = x.float()  # as LlamaGen does: bfloat16 angles would be too coarse
    pairs = values.unflatten(-1, (-1, 2))  # (B, n, heads, head_dim/2, 2)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        turns = torch.complex(cos[..., ::2], sin[..., 1::2])
        return torch.view_as_real(_turned(torch.view_as_complex(pairs), turns)).flatten(-2).type_as(x)
    swapped = torch.stack(pairs.unbind(-1)[::-1], -1).flatten(-2)
    return (values * cos + swapped * sin).type_as(x)


def _turned(pairs: Tensor, turns: Tensor) -> Tensor:
    """Complex products of pairs (B, n, heads, p) and turns (n, 1, p), or (B, n, 1, p); see `ctf.elementwise`."""
    if not cuts(pairs.numel(), pairs.shape[-1]):
        return pairs * turns
    count = ONE_THREAD // pairs[0, 0].numel()
    rows = pairs.flatten(0, 1).split(count), turns.expand(*pairs.shape[:2], 1, -1).flatten(0, 1).split(count)
    return torch.cat([row * turn for row, turn in zip(*rows, strict=True)]).view(pairs.shape)
