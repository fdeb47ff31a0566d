"""Classifier-free guidance on hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.errors import InputError


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless `labels` are (B,) with B > 0, each in [0, num_classes]."""
    if labels.ndim != 1 or not labels.numel():
        raise InputError(f"labels of shape {tuple(labels.shape)}: one label per image is needed, at least one")
    if int(labels.min()) < 0 or int(labels.max()) > num_classes:
        raise InputError(
            f"labels range from {int(labels.min())} to {int(labels.max())}, the model has the classes "
            f"0 … {num_classes - 1} ({num_classes} is unconditional)"
        )


def both_branches(labels: Tensor, num_classes: int, cfg_scale: float) -> Tensor:
    """The labels of one batch: (B,) → (B,), or (2B,) with the unconditional branch behind."""
    return labels if cfg_scale == 1 else torch.cat([labels, torch.full_like(labels, num_classes)])


def guide(hidden: Tensor, cfg_scale: float) -> Tensor:
    """uncond + s · (cond − uncond) on the states before the head: (2B, …) → (B, …).

    The head is linear, so guiding its input is guiding its output, at half the head's cost and without
    the -inf of logits outside a cluster.
    """
    if cfg_scale == 1:
        return hidden
    cond, uncond = hidden.chunk(2)
    return uncond + cfg_scale * (cond - uncond)
