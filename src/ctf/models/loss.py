"""Cross-entropy of a head's logits, which are never all there at once, and IAR's loss on clusters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctf.codebook.coarse_map import CoarseMap

#: Logits that are there at once: on a CPU what its cache holds, on a GPU half a gigabyte.
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 27}


class ClusterLoss(nn.Module):
    """IAR's loss (arXiv 2501.00880): weight · −log of the probability that all labels of the right one's cluster have.

    A cluster's logit is the logsumexp of its members' logits, so its probability is the sum of theirs.

    Args:
        coarse_map: the clusters of the predicted labels.
        weight: λ; IAR's is 1.
    """

    cluster: Tensor  # (V,)
    members: Tensor  # (M, S), padded
    inside: Tensor  # (M, S), False for padding

    def __init__(self, coarse_map: CoarseMap, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("cluster", coarse_map.fine_to_coarse, persistent=False)
        self.register_buffer("members", coarse_map.member_table, persistent=False)
        inside = torch.arange(coarse_map.member_table.shape[1]) < coarse_map.sizes[:, None]
        self.register_buffer("inside", inside, persistent=False)

    def siblings(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The labels (n, S) in the clusters of `targets` (n,), and which of them are no padding."""
        clusters = self.cluster[targets]
        return self.members[clusters], self.inside[clusters]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cluster_loss: ClusterLoss | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """−log P of each target under softmax(hidden · weightᵀ + bias), plus `cluster_loss` where one is given.

    Logits are computed part by part, and again for the gradient: of a vocabulary of 16,384 they would take far more
    memory, and time to move, than everything else in a small model.

    Args:
        hidden: (…, dim) states before the head.
        weight: (V, dim) the head's weight.
        targets: int64 (…) in [0, V).
        cluster_loss: over clusters of the V labels.
        bias: (V,), if the head has one.

    Returns:
        float32 (…), in nats.
    """
    if bias is not None:  # one more column of the weight, for one more number in each state
        hidden, weight = F.pad(hidden, (0, 1), value=1.0), torch.cat([weight, bias[:, None]], dim=1)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    losses = _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten(), cluster_loss)
    return losses.view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients of the logits, with p = softmax and q = p restricted to the target's cluster and normalised:
    p − onehot, and with clusters λ · (p − q) more."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, clusters: ClusterLoss | None) -> Tensor:
        losses, normalisers = [], []
        for h, y in _chunks(weight, hidden, targets):
            logits = (h @ weight.T).float()
            normalisers.append(logits.logsumexp(-1))
            loss = normalisers[-1] - logits.gather(1, y[:, None]).squeeze(1)
            if clusters is not None:
                columns, inside = clusters.siblings(y)
                of_cluster = logits.gather(1, columns).masked_fill_(~inside, -torch.inf).logsumexp(-1)
                loss += clusters.weight * (normalisers[-1] - of_cluster)
            losses.append(loss)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers))
        ctx.clusters = clusters
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        for_hidden, for_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        parts = _chunks(weight, hidden, targets, normalisers, gradient, for_hidden)
        for h, y, normaliser, scale, out in parts:
            logits = (h @ weight.T).float()
            added = None
            if ctx.clusters is not None:
                columns, inside = ctx.clusters.siblings(y)
                q = logits.gather(1, columns).masked_fill_(~inside, -torch.inf).softmax(1)
                added = columns, q.mul_(-ctx.clusters.weight)
            p = logits.sub_(normaliser[:, None]).exp_()
            if added is not None:
                p.mul_(1 + ctx.clusters.weight).scatter_add_(1, *added)
            p.scatter_add_(1, y[:, None], p.new_full((len(y), 1), -1.0))
            p = p.mul_(scale[:, None]).to(weight.dtype)
            out.copy_(p @ weight)
            if weight.dtype == torch.float32:
                for_weight.addmm_(p.T, h)
            else:
                for_weight += p.T @ h
        return for_hidden, for_weight.to(weight.dtype), None, None


def _chunks(weight: Tensor, *parts: Tensor) -> Any:
    rows = max(1, CHUNK.get(weight.device.type, CHUNK["cuda"]) // len(weight))
    return zip(*(part.split(rows) for part in parts), strict=True)
