"""Classifier-free guidance on hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.sampling.settings import Sampling


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless `labels` are (B,) with B > 0, each in [0, num_classes]."""
    if labels.ndim != 1 or not labels.numel():
        raise InputError(f"labels of shape {tuple(labels.shape)}: one label per image is needed, at least one")
    if int(labels.min()) < 0 or int(labels.max()) > num_classes:
        raise InputError(
            f"labels range from {int(labels.min())} to {int(labels.max())}, the model has the classes "
            f"0 … {num_classes - 1} ({num_classes} is unconditional)"
        )


def both_branches(labels: Tensor, num_classes: int, sampling: Sampling) -> Tensor:
    """The labels of one batch: (B,) → (B,), or with guidance (2B,), the unconditional branch behind."""
    return torch.cat([labels, torch.full_like(labels, num_classes)]) if sampling.guided else labels


def guide(hidden: Tensor, sampling: Sampling, step: int = 0, steps: int = 1, known: float = 0.0) -> Tensor:
    """uncond + s · (cond − uncond) on the states before the head: with guidance (2B, …) → (B, …).

    The head is linear, so guiding its input is guiding its output, at half the head's cost and without
    the -inf of logits outside a cluster. The scale s is `sampling.cfg_scale_at(step, steps, known)`.
    """
    if not sampling.guided:
        return hidden
    cond, uncond = hidden.chunk(2)
    return uncond + sampling.cfg_scale_at(step, steps, known) * (cond - uncond)
