"""Stage 2 with known support: logits of the members of each position's cluster and of nothing else.

P(T_i | C) is zero outside cluster C_i, so the head needs K/M logits a position instead of K: for 16,384
codewords in 512 clusters, 1/512 of the full head's products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.codebook.coarse_map import CoarseMap


@dataclass(frozen=True)
class ClusterMembers:
    """What the head needs of a CoarseMap, on the model's device."""

    sizes: list[int]  # members per cluster
    order: Tensor  # (K,) tokens, cluster by cluster
    table: Tensor  # (M, S) tokens of each cluster, S the largest cluster, padded
    index: Tensor  # (K,) position of a token among its cluster's members

    @classmethod
    def of(cls, coarse_map: CoarseMap, device: torch.device | str = "cpu") -> ClusterMembers:
        return cls(
            sizes=coarse_map.sizes.tolist(),
            order=coarse_map.order.to(device),
            table=coarse_map.member_table.to(device),
            index=coarse_map.index_in_cluster.to(device),
        )

    def tokens(self, coarse: Tensor, choice: Tensor) -> Tensor:
        """Member number `choice` of cluster `coarse`, elementwise: fine tokens."""
        return self.table[coarse, choice]


def member_logits(hidden: Tensor, weight: Tensor, coarse: Tensor, members: ClusterMembers) -> Tensor:
    """Logits of the members of each position's own cluster.

    Positions are sorted by cluster, so that each cluster is one small matrix product.

    Args:
        hidden: (B, N, dim) states before the head.
        weight: (K, dim) the head's weight, a row per fine token.
        coarse: int64 (B, N) cluster of each position.
        members: the clusters.

    Returns:
        (B, N, S), S the size of the largest cluster: column j is the j-th member in `members.table`;
        columns beyond a cluster's size are -inf.
    """
    flat = coarse.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=len(members.sizes)).tolist()
    rows = hidden.flatten(0, 1)[order].split(counts)  # per cluster (n_m, dim)
    columns = weight[members.order].split(members.sizes)  # per cluster (s_m, dim)
    widest = members.table.shape[1]
    logits = [
        F.pad(h @ w.T, (0, widest - len(w)), value=-torch.inf) for h, w in zip(rows, columns, strict=True) if len(h)
    ]
    return torch.cat(logits)[order.argsort()].view(*coarse.shape, widest)
