"""2-D rotary position embedding as LlamaGen uses it."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(grid: tuple[int, int], head_dim: int, base: float) -> Tensor:
    """Cosines and sines for the class token and every grid position: (1 + rows·columns, head_dim/2, 2).

    The first half of the rotation pairs turns with the row, the second with the column. The class
    token's row is all zeros, not the identity: its queries and keys vanish in every layer. LlamaGen's
    weights were trained with that, so it is part of the architecture.
    """
    rows, columns = grid
    frequencies = 1.0 / base ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))  # (head_dim/4,)
    row = torch.outer(torch.arange(rows).float(), frequencies)[:, None].expand(-1, columns, -1)
    column = torch.outer(torch.arange(columns).float(), frequencies)[None].expand(rows, -1, -1)
    angles = torch.cat([row, column], dim=-1).flatten(0, 1)  # (rows·columns, head_dim/2)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros_like(table[:1]), table])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn adjacent pairs (x[2i], x[2i+1]) of x (B, n, heads, head_dim) by table (n, head_dim/2, 2)."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (B, n, heads, head_dim/2) each
    cos, sin = table[:, None].unbind(-1)  # (n, 1, head_dim/2) each
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).type_as(x)
