"""Cross-entropy of a head's logits, computed in chunks, and IAR's loss on clusters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctf.codebook.coarse_map import CoarseMap
from ctf.models.cluster_head import ClusterMembers

#: Logits in a chunk: on a CPU as many as its cache holds, on a GPU half a gigabyte.
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 27}


class ClusterLoss(nn.Module):
    """IAR's loss (arXiv 2501.00880): weight · −log P(cluster of the target).

    A cluster's logit is the logsumexp of its members' logits, so its probability is the sum of its members'.

    Args:
        coarse_map: the clusters of the predicted labels.
        weight: λ; IAR's is 1.
    """

    cluster: Tensor  # (V,) of each label

    def __init__(self, coarse_map: CoarseMap, weight: float = 1.0) -> None:
        super().__init__()
        self.weight, self.members = weight, ClusterMembers(coarse_map)
        self.register_buffer("cluster", coarse_map.fine_to_coarse, persistent=False)

    def member_logits(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (n, S) in the cluster of each target (n,), and their logits of (n, V), padded with -inf."""
        clusters = self.cluster[targets]
        columns = self.members.table[clusters]
        return columns, logits.gather(1, columns).masked_fill_(~self.members.inside[clusters], -torch.inf)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cluster_loss: ClusterLoss | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """−log P of each target under softmax(hidden · weightᵀ + bias), plus `cluster_loss` where one is given.

    Logits are computed in chunks, and again for the gradient: for a vocabulary of 16,384 all of them would take far
    more memory, and time to move, than everything else in a small model.

    Args:
        hidden: (…, dim) states before the head.
        weight: (V, dim) the head's weight.
        targets: int64 (…) in [0, V).
        cluster_loss: over clusters of the V labels.
        bias: (V,), if the head has one.

    Returns:
        float32 (…), in nats.
    """
    if bias is not None:  # as one more column of the weight, for an added input of 1
        hidden, weight = F.pad(hidden, (0, 1), value=1.0), torch.cat([weight, bias[:, None]], dim=1)
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    losses = _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten(), cluster_loss)
    return losses.view(targets.shape)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of the logits is p − onehot with p = softmax(logits). `ClusterLoss` adds λ · (p − q), where q is p
    restricted to the target's cluster and normalised."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, clusters: ClusterLoss | None) -> Tensor:
        losses, normalisers = [], []
        for h, y in _chunks(weight, hidden, targets):
            logits = (h @ weight.T).float()  # (rows, V); float32, since bfloat16 would lose small probabilities
            normalisers.append(logits.logsumexp(-1))
            loss = normalisers[-1] - logits.gather(1, y[:, None]).squeeze(1)
            if clusters is not None:
                _, members = clusters.member_logits(logits, y)
                loss += clusters.weight * (normalisers[-1] - members.logsumexp(-1))
            losses.append(loss)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(normalisers))
        ctx.clusters = clusters
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets, normalisers = ctx.saved_tensors
        # Chunks add to the gradient of the weight in float32: in bfloat16 late ones would be rounded away.
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for h, y, normaliser, scale, out in _chunks(weight, hidden, targets, normalisers, gradient, grad_hidden):
            logits = (h @ weight.T).float()
            added = None
            if ctx.clusters is not None:  # before `p` takes the memory of the logits
                columns, members = ctx.clusters.member_logits(logits, y)
                added = columns, members.softmax(1).mul_(-ctx.clusters.weight)
            p = logits.sub_(normaliser[:, None]).exp_()
            if added is not None:
                p.mul_(1 + ctx.clusters.weight).scatter_add_(1, *added)
            p.scatter_add_(1, y[:, None], p.new_full((len(y), 1), -1.0))
            p = p.mul_(scale[:, None]).to(weight.dtype)
            out.copy_(p @ weight)
            if weight.dtype == torch.float32:
                grad_weight.addmm_(p.T, h)
            else:  # `addmm_` does not mix dtypes
                grad_weight += p.T @ h
        return grad_hidden, grad_weight.to(weight.dtype), None, None


def _chunks(weight: Tensor, *tensors: Tensor) -> Any:
    rows = max(1, CHUNK.get(weight.device.type, CHUNK["cuda"]) // len(weight))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
