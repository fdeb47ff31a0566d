"""Fingerprints: 16 hexadecimal digits of SHA-256 that tell tensors and texts apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def text_fingerprint(lines: Iterable[str]) -> str:
    """16 hexadecimal digits (SHA-256) of lines of text."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def fingerprint(tensor: Tensor) -> str:
    """16 hexadecimal digits (SHA-256) of a tensor's shape and float32 or int64 values.

    Independent of the stored dtype as long as the values are: a float16 codebook and its exact float32
    copy have the same fingerprint.
    """
    import torch

    values = tensor.detach().cpu()
    values = values.to(torch.float32 if values.is_floating_point() else torch.int64).contiguous() + 0  # −0 is 0
    digest = hashlib.sha256(repr(tuple(values.shape)).encode())
    digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def joint_fingerprint(tensors: Iterable[Tensor]) -> str:
    """`fingerprint` of the concatenated values as float32, without concatenating them."""
    import torch

    tensors = list(tensors)
    digest = hashlib.sha256(repr((sum(tensor.numel() for tensor in tensors),)).encode())
    for tensor in tensors:
        digest.update((tensor.detach().cpu().to(torch.float32).contiguous() + 0).numpy().data)  # −0 is 0
    return digest.hexdigest()[:16]
