"""Pixels as bytes and as what the networks see."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_tensor(images: np.ndarray | Tensor) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) in [-1, 1]: x / 127.5 − 1."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_uint8(images: Tensor) -> Tensor:
    """float (B, 3, H, W) → uint8 (B, H, W, 3): clamp(127.5·x + 128, 0, 255), truncated, as LlamaGen and ADM do."""
    scaled = images.detach().float().mul(127.5).add(128).clamp(0, 255)
    return scaled.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def to_bytes(images: Tensor) -> np.ndarray:
    """`to_uint8` of images on any device, on the host."""
    return to_uint8(images).cpu().numpy()
