"""The interface of feature extractors: uint8 images in, features out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import nn

from ctf.device import usable_device
from ctf.errors import InputError, first_line
from ctf.fingerprint import joint_fingerprint


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


class FeatureExtractor:
    """Maps uint8 images (n, H, W, 3) to `Features`. All n go through the network at once, so callers batch.

    Attributes:
        name: what `open_features` was given: "inception", "dinov2", "efficientnet", "emoji" or
            "file.py:function".
        distance: what to call the Fréchet distance of these features. "FID" is that of Inception alone.
        fingerprint: 16 hexadecimal digits of the weights.
        image_size: the side of the images that it takes, in pixels; None if it takes any size.
    """

    name: str
    distance: str
    fingerprint: str
    image_size: int | None = None

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> Features:
        """Raises InputError unless `images` is uint8 (n, H, W, 3) of a size that the network takes."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise InputError(
                f"features are those of uint8 images (n, H, W, 3), not {images.dtype} {images.shape}: "
                "convert them first"
            )
        height, width = images.shape[1:3]
        if self.image_size not in (None, height) or self.image_size not in (None, width):
            raise InputError(
                f"{self.name} features are for {self.image_size} × {self.image_size} images, and these are "
                f"{height} × {width}: choose inception, dinov2 or efficientnet"
            )
        return self._extract(images)

    def _extract(self, images: np.ndarray) -> Features:
        raise NotImplementedError

    def _place(self, network: nn.Module, device: str) -> None:
        """Move the extractor's network to `device`. The fingerprint covers parameters and running statistics."""
        self._device = usable_device(device)
        self._network = network.to(self._device)
        self.fingerprint = joint_fingerprint(network.state_dict().values())


def import_optional(package: str) -> ModuleType:
    """A package of the extra `eval`. Raises InputError where it does not import."""
    try:
        return import_module(package)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
        raise InputError(
            f"{package} does not import ({first_line(error)}): pip install -e '.[eval]' in a checkout of ctf"
        ) from None
