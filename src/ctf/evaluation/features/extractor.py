"""What every feature extractor is: bytes of images in, features out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from ctf.errors import InputError
from ctf.files import fingerprint


@dataclass(frozen=True)
class Features:
    """Features of n images.

    Attributes:
        pool: float32 (n, d): what Fréchet and kernel distances, precision and recall are computed from.
        spatial: float32 (n, 2023), what sFID is computed from; None where the network has none.
        probabilities: float32 (n, classes), what the Inception Score is computed from; None where there are none.
    """

    pool: np.ndarray
    spatial: np.ndarray | None = None
    probabilities: np.ndarray | None = None


class FeatureExtractor(Protocol):
    """Maps uint8 images (n, H, W, 3) to `Features`. All n go through the network at once, so callers batch.

    Attributes:
        name: what `open_features` was given: "inception", "dinov2", "emoji" or "file.py:function".
        distance: what to call the Fréchet distance of these features. "FID" is that of Inception alone.
        fingerprint: 16 hexadecimal digits of the weights.
        image_size: the side of the images that it takes, in pixels; None if it takes any size.
    """

    @property
    def name(self) -> str: ...
    @property
    def distance(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def image_size(self) -> int | None: ...

    def __call__(self, images: np.ndarray) -> Features: ...


def check_images(images: np.ndarray) -> None:
    """Raise InputError unless `images` is uint8 (n, H, W, 3)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InputError(
            f"features are those of uint8 images (n, H, W, 3), not {images.dtype} {images.shape}: convert them first"
        )


def weights_fingerprint(module: nn.Module) -> str:
    """The fingerprint of all that a network computes with: parameters and running statistics, in order."""
    return fingerprint(torch.cat([tensor.detach().flatten().float() for tensor in module.state_dict().values()]))
