"""Checks of the labels that callers give a stage."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.errors import InputError


def check_classes(labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless class labels are (B,) with B > 0, each in [0, num_classes]."""
    if labels.ndim != 1 or not labels.numel():
        raise InputError(f"labels of shape {tuple(labels.shape)}: one label per image is needed, at least one")
    if int(labels.min()) < 0 or int(labels.max()) > num_classes:
        raise InputError(
            f"labels range from {int(labels.min())} to {int(labels.max())}, the model has the classes "
            f"0 … {num_classes - 1} ({num_classes} is unconditional)"
        )


def check_known(labels: Tensor, shape: tuple[int, int], vocabulary: int) -> None:
    """Raise InputError unless known labels are of `shape`, (B, N), each in [0, vocabulary), or −1 where to generate.

    Something must be left to generate, at the same positions in every image.
    """
    check_labels("known", labels, shape, -1, vocabulary)
    kept = labels >= 0
    if kept.all():
        raise InputError("all labels are known: nothing is left to draw")
    if not kept.eq(kept[:1]).all():
        raise InputError("known labels lie at other positions in some images: complete those one by one")


def check_labels(which: str, labels: Tensor, shape: tuple[int, int], lowest: int, vocabulary: int) -> None:
    """Raise InputError unless labels are of `shape`, (B, N), each in [lowest, vocabulary).

    Values on a GPU are not waited for: its own assertion fails.
    """
    unknown = ", -1 where to draw" if lowest < 0 else ""
    if labels.shape != shape:
        raise InputError(
            f"{which} labels of shape {tuple(labels.shape)} for {shape[0]} class labels: "
            f"{shape[1]} per image are needed{unknown}"
        )
    if labels.device.type == "cuda":  # from the stage before, which reading them would wait for
        inside = (labels >= lowest) & (labels < vocabulary)
        torch._assert_async(inside.all(), f"{which} labels lie outside of the level, which has {vocabulary}{unknown}")
    elif not lowest <= int(labels.min()) <= int(labels.max()) < vocabulary:
        raise InputError(
            f"{which} labels range from {int(labels.min())} to {int(labels.max())}: the level has {vocabulary}{unknown}"
        )
