"""Classifier-free guidance on hidden states."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.sampling.settings import Sampling


def both_branches(labels: Tensor, num_classes: int, sampling: Sampling) -> Tensor:
    """Class labels of the rows of a batch: (B,) → (B,), or with guidance (2B,), the unconditional branch behind."""
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
