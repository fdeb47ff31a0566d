"""Head of stage 2 with known support: logits of the members of each position's cluster only.

P(T_i | C) is zero outside cluster C_i, so the head needs K/M logits a position instead of K: for 16,384
codewords in 512 clusters, 1/512 of the full head's products.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctf.codebook.coarse_map import CoarseMap

#: Rows of one cluster that a GPU multiplies together. A larger tile reads the weights of its cluster's members less
#: often, but leaves more rows empty: half a tile per cluster on average.
TILE = 64
#: Rows of one cluster that a CPU multiplies together. Missing ones are zero, since a product of another number of rows
#: rounds differently.
ROWS = 8
#: A smaller cluster is filled up to so many members: MKL rounds products of 2 or 3 columns by the place of the row.
COLUMNS = 4


class ClusterMembers(nn.Module):
    """Members of each cluster, as tensors on the model's device.

    Args:
        relation: map from the predicted labels to the given clusters.
    """

    order: Tensor | None  # (K,) labels, cluster by cluster; None where the rows of weights are in this order already
    table: Tensor  # (M, S) labels of each cluster, S the largest cluster, padded
    inside: Tensor  # bool (M, S), False for padding
    index: Tensor  # (K,) position of a label among its cluster's members
    place: Tensor  # (K,) position of a label in the flattened table

    def __init__(self, relation: CoarseMap) -> None:
        super().__init__()
        self.sizes: list[int] = relation.sizes.tolist()
        largest = relation.member_table.shape[1]
        buffers = {
            "order": relation.order,
            "table": relation.member_table,
            "inside": torch.arange(largest) < relation.sizes[:, None],
            "index": relation.index_in_cluster,
            "place": relation.fine_to_coarse * largest + relation.index_in_cluster,
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def sorted_weight(self, weight: Tensor) -> Tensor:
        """The rows of a head's weight (K, dim), cluster by cluster."""
        return weight if self.order is None else weight[self.order]

    def of_sorted_weight(self) -> ClusterMembers:
        """The members for a weight that `sorted_weight` has sorted."""
        assert self.order is not None
        other = copy.copy(self)
        other._buffers = self._buffers | {"order": None, "place": self.place[self.order]}
        return other


def member_logits(hidden: Tensor, weight: Tensor, coarse: Tensor, members: ClusterMembers) -> Tensor:
    """Logits of the members of each position's own cluster.

    Args:
        hidden: (…, dim) states before the head.
        weight: (K, dim) the head's weight, one row per fine token.
        coarse: int64 (…) cluster of each position.
        members: the clusters.

    Returns:
        (…, S), S the size of the largest cluster: column j is the j-th member in `members.table`;
        columns beyond a cluster's size are -inf.
    """
    multiply = multiply_clusters if hidden.device.type == "cpu" else multiply_tiles
    device = "cpu" if hidden.is_meta else hidden.device.type  # autocast does not take "meta"
    with torch.autocast(device, enabled=False):  # a cast to bfloat16 would cost more than it saves
        logits = multiply(hidden.flatten(0, -2), weight, coarse.flatten(), members)
    return logits.view(*coarse.shape, -1)


def multiply_tiles(rows: Tensor, weight: Tensor, coarse: Tensor, members: ClusterMembers) -> Tensor:
    """`member_logits` of rows (n, dim) and coarse (n,) as one batched product, for a GPU.

    The rows of each cluster are split into tiles of `TILE` rows, the last tile padded with zeros. Shapes depend on n
    and the clusters alone, so nothing waits for the device, and `torch.compile` compiles once for all batches.
    """
    (n, dim), (clusters, largest) = rows.shape, members.table.shape
    tiles = (n + min(n, clusters) * (TILE - 1)) // TILE  # the most that so many rows can need
    ordered, order = coarse.sort(stable=True)
    each = torch.arange(clusters, device=coarse.device)
    # `searchsorted`, not `bincount`, which waits for the device.
    begin, end = torch.searchsorted(ordered, each), torch.searchsorted(ordered, each, right=True)  # (M,)
    tiles_each = (end - begin + TILE - 1) // TILE  # (M,)
    last = tiles_each.cumsum(0)
    of_tile = torch.searchsorted(last, torch.arange(tiles, device=coarse.device), right=True).clamp(max=clusters - 1)
    first_slot = TILE * (last - tiles_each) - begin
    slot = torch.empty_like(order).scatter(0, order, first_slot[ordered] + torch.arange(n, device=coarse.device))

    padded = rows.new_zeros(tiles * TILE, dim).index_copy(0, slot, rows)
    table = weight.new_zeros(clusters * largest, dim).index_copy(0, members.place, weight)
    columns = table.view(clusters, largest, dim).index_select(0, of_tile)  # (tiles, S, dim)
    logits = torch.bmm(padded.view(tiles, TILE, dim), columns.mT).view(-1, largest).index_select(0, slot)  # (n, S)
    return logits.masked_fill(~members.inside[coarse], -torch.inf)


def multiply_clusters(rows: Tensor, weight: Tensor, coarse: Tensor, members: ClusterMembers) -> Tensor:
    """`multiply_tiles` as a product for each cluster, with little padding, for a CPU.

    For the head of size L it takes a fifth of the time of tiles on a CPU (`benchmarks/stage2_head.md`).
    """
    counts = torch.bincount(coarse, minlength=len(members.sizes))
    padded = (counts + ROWS - 1) // ROWS * ROWS  # (M,)
    order = coarse.argsort(stable=True)
    shift = (padded - counts).cumsum(0) - (padded - counts)  # (M,) empty rows of the clusters before
    slot = torch.empty_like(order).scatter_(0, order, shift[coarse[order]] + torch.arange(len(order)))
    filled = rows.new_zeros(int(padded.sum()), rows.shape[1]).index_copy(0, slot, rows)
    logits: Tensor = GroupedProduct.apply(filled, members.sorted_weight(weight), padded.tolist(), members.sizes)
    return logits.index_select(0, slot)


class GroupedProduct(torch.autograd.Function):
    """One matrix product per cluster, into one output, with one autograd node instead of one for each of M clusters.

    Takes rows (n, dim) and columns (K, dim), both sorted by cluster, and the numbers of each cluster's rows (multiples
    of `ROWS`) and columns. Returns (n, S): rowsₘ @ columnsₘᵀ, padded with -inf.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, counts: list[int], sizes: list[int]) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.counts, ctx.sizes = counts, sizes
        logits = rows.new_full((len(rows), max(sizes)), -torch.inf)
        # A product of n rows rounds differently for every n, so that a logit would depend on the batch.
        pieces = zip(rows.split(ROWS), logits.split(ROWS), strict=True)
        begin = 0
        for count, size in zip(counts, sizes, strict=True):
            if count:
                w = columns[begin : begin + size]
                if is_small := size < COLUMNS:
                    w = F.pad(w, (0, 0, 0, COLUMNS - size))
                for h, y in itertools.islice(pieces, count // ROWS):
                    if is_small:
                        y[:, :size] = (h @ w.T)[:, :size]
                    else:
                        torch.mm(h, w.T, out=y[:, :size])
            begin += size
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        counts, sizes = ctx.counts, ctx.sizes
        grad_rows, grad_columns = torch.empty_like(rows), torch.zeros_like(columns)
        by_row = zip(rows.split(counts), gradient.split(counts), grad_rows.split(counts), strict=True)
        by_column = zip(columns.split(sizes), grad_columns.split(sizes), strict=True)
        for (h, g, dh), (w, dw) in zip(by_row, by_column, strict=True):
            if len(h):
                g = g[:, : len(w)]  # without padding
                torch.mm(g, w, out=dh)
                torch.mm(g.T, h, out=dw)
        return grad_rows, grad_columns, None, None
