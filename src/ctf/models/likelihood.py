"""log P of tokens under a model: the losses of training and the bits per token of every report."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ctf.models.cluster_head import ClusterMembers


def token_losses(
    module: nn.Module, inputs: Tensor, labels: Tensor, targets: Tensor, members: ClusterMembers | None = None
) -> Tensor:
    """Negative log-likelihood of each target in nats (eqs. 4, 9 and 10): (B, N) in, float32 (B, N) out.

    Args:
        module: a Transformer, wrapped or not.
        inputs: tokens that the model reads, int64 (B, N).
        labels: int64 (B,).
        targets: tokens to predict, int64 (B, N).
        members: for a fine model with `support="cluster"`: normalise over the members of the cluster of
            each input only. A target outside its cluster is not representable and must not occur.
    """
    logits, columns = _logits(module, inputs, labels, targets, members)
    return F.cross_entropy(logits.flatten(0, 1), columns.flatten(), reduction="none").view(targets.shape)


def token_scores(
    module: nn.Module, inputs: Tensor, labels: Tensor, targets: Tensor, members: ClusterMembers | None = None
) -> tuple[Tensor, Tensor]:
    """`token_losses`, and whether the most probable token is the target: float32 and bool, (B, N) each."""
    logits, columns = _logits(module, inputs, labels, targets, members)
    losses = F.cross_entropy(logits.flatten(0, 1), columns.flatten(), reduction="none").view(targets.shape)
    return losses, logits.argmax(-1) == columns


def _logits(
    module: nn.Module, inputs: Tensor, labels: Tensor, targets: Tensor, members: ClusterMembers | None
) -> tuple[Tensor, Tensor]:
    """float32 logits, and the targets as columns of them."""
    logits = module(inputs, labels, members).float()
    return logits, targets if members is None else members.index[targets]


def bits(nats: float) -> float:
    """Nats to bits."""
    return nats / math.log(2)
