"""Stage 2 with known support: logits of the members of each position's cluster and of nothing else.

P(T_i | C) is zero outside cluster C_i, so the head needs K/M logits a position instead of K: for 16,384
codewords in 512 clusters, 1/512 of the full head's products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctf.codebook.coarse_map import CoarseMap


class ClusterMembers(nn.Module):
    """Which labels lie in each cluster, on the model's device.

    Args:
        relation: from the labels that are predicted to the clusters that are given.
    """

    order: Tensor  # (K,) labels, cluster by cluster
    table: Tensor  # (M, S) labels of each cluster, S the largest cluster, padded
    index: Tensor  # (K,) position of a label among its cluster's members
    slot: Tensor  # (K,) place of a label where every cluster has `width` of them
    padding: Tensor  # (M, width) bool: places beyond a cluster's size

    def __init__(self, relation: CoarseMap) -> None:
        super().__init__()
        self.sizes: list[int] = relation.sizes.tolist()
        self.register_buffer("order", relation.order, persistent=False)
        self.register_buffer("table", relation.member_table, persistent=False)
        self.register_buffer("index", relation.index_in_cluster, persistent=False)
        #: S, rounded up to what grouped products of a GPU need.
        self.width = -(-max(self.sizes) // 8) * 8
        slot = relation.fine_to_coarse * self.width + relation.index_in_cluster
        self.register_buffer("slot", slot, persistent=False)
        padding = torch.arange(self.width) >= relation.sizes[:, None]
        self.register_buffer("padding", padding, persistent=False)

    def labels(self, coarse: Tensor, choice: Tensor) -> Tensor:
        """Member number `choice` of cluster `coarse`, elementwise."""
        return self.table[coarse, choice]


def member_logits(hidden: Tensor, weight: Tensor, coarse: Tensor, members: ClusterMembers) -> Tensor:
    """Logits of the members of each position's own cluster.

    Positions are sorted by cluster, so that each cluster is one small matrix product: `grouped_on_device` on a GPU in
    bfloat16, else `grouped_by_products`.

    Args:
        hidden: (…, dim) states before the head.
        weight: (K, dim) the head's weight, a row per fine token.
        coarse: int64 (…) cluster of each position.
        members: the clusters.

    Returns:
        (…, S), S the size of the largest cluster: column j is the j-th member in `members.table`;
        columns beyond a cluster's size are -inf.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    by = grouped_on_device if kind == "cuda" and dtype == torch.bfloat16 else grouped_by_products
    # On a CPU in float32: rounding would cost more than it saves.
    with torch.autocast(kind, enabled=False):
        logits = by(hidden.flatten(0, -2), weight, coarse.flatten(), members)
    return logits.view(*coarse.shape, -1)


def grouped_by_products(rows: Tensor, weight: Tensor, coarse: Tensor, members: ClusterMembers) -> Tensor:
    """`member_logits` of rows (n, dim) in clusters (n,) as one small product for each cluster that occurs.

    The sizes of these products come to the host: on a CPU that is free, and nothing is padded.
    """
    order = coarse.argsort(stable=True)
    counts = torch.bincount(coarse, minlength=len(members.sizes)).tolist()
    return GroupedProduct.apply(rows[order], weight[members.order], counts, members.sizes)[order.argsort()]


def grouped_on_device(
    rows: Tensor, weight: Tensor, coarse: Tensor, members: ClusterMembers, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """`member_logits` of rows (n, dim) in clusters (n,) as one grouped product in `dtype`.

    All clusters are padded to one size. Where groups begin stays on the device: nothing waits for it, and no shape
    depends on the clusters that occur.
    """
    ordered, order = coarse.sort(stable=True)
    ends = torch.searchsorted(ordered, torch.arange(len(members.sizes), device=coarse.device), right=True)
    padded = weight.new_zeros(members.padding.numel(), weight.shape[1], dtype=dtype)
    columns = padded.index_copy(0, members.slot, weight.to(dtype)).view(*members.padding.shape, -1)
    logits = F.grouped_mm(rows[order].to(dtype), columns.transpose(1, 2), offs=ends.int())
    logits = logits.float().masked_fill(members.padding[ordered], -torch.inf)[:, : max(members.sizes)]
    return torch.empty_like(logits).index_copy(0, order, logits)


class GroupedProduct(torch.autograd.Function):
    """One matrix product per cluster, into one output: no autograd node, padding or copy for each of M clusters.

    rows (n, dim) and columns (K, dim), both sorted by cluster, counts and sizes of each cluster's part of them →
    (n, S): rowsₘ @ columnsₘᵀ, filled up with -inf.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, counts: list[int], sizes: list[int]) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.counts, ctx.sizes = counts, sizes
        logits = rows.new_full((len(rows), max(sizes)), -torch.inf)
        for h, w, y in zip(rows.split(counts), columns.split(sizes), logits.split(counts), strict=True):
            if len(h):
                torch.mm(h, w.T, out=y[:, : len(w)])
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        counts, sizes = ctx.counts, ctx.sizes
        for_rows, for_columns = torch.empty_like(rows), torch.zeros_like(columns)
        by_row = zip(rows.split(counts), gradient.split(counts), for_rows.split(counts), strict=True)
        by_column = zip(columns.split(sizes), for_columns.split(sizes), strict=True)
        for (h, g, dh), (w, dw) in zip(by_row, by_column, strict=True):
            if len(h):
                g = g[:, : len(w)]
                torch.mm(g, w, out=dh)
                torch.mm(g.T, h, out=dw)
        return for_rows, for_columns, None, None
