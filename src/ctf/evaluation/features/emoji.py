"""A small classifier of the bundled emoji: a Fréchet distance offline and on one core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from ctf.evaluation.features.extractor import FeatureExtractor, Features
from ctf.files import load_module
from ctf.images.pixels import to_tensor

WEIGHTS = Path(__file__).parents[2] / "assets" / "emoji_features.safetensors"
KIND = "emoji features"


@dataclass(frozen=True)
class EmojiNetConfig:
    """Channels of each halving of the resolution; the last number is that of the features."""

    widths: tuple[int, ...] = (24, 48, 96, 128)
    num_classes: int = 54


class EmojiNet(nn.Module):
    """A residual network with batch norm, 64 × 64 pixels → 4 × 4 × 128, averaged."""

    def __init__(self, config: EmojiNetConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        channels = 3
        for width in config.widths:
            layers += [convolution(channels, width, stride=2), nn.ReLU()]
            if channels > 3:  # a residual block at 32 × 32 would cost as much as all others together
                layers.append(ResidualBlock(width))
            channels = width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(channels, config.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float (B, 3, 64, 64) in [-1, 1] → features (B, 128), logits (B, classes)."""
        pooled = self.trunk(images).mean((2, 3))
        return pooled, self.head(pooled)


class ResidualBlock(nn.Module):
    """x → ReLU(x + conv(ReLU(conv(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = convolution(channels, channels), convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W), as what it returns
        return (x + self.second(self.first(x).relu())).relu()


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3 × 3, with batch norm in place of a bias."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs))


class EmojiFeatures(FeatureExtractor):
    """128 features and 54 class probabilities (design and category) of 64 × 64 images.

    Made for comparing models of the bundled emoji with one another. It is not FID and says nothing about other
    images: the network has seen nothing but these emoji.

    Args:
        weights: a file of `scripts/train_emoji_features.py`; None is the bundled one.
        device: where to compute.

    Raises:
        InputError: the weights are missing, damaged or of another kind.
    """

    name = "emoji"
    distance = "Fréchet distance, emoji features"
    image_size = 64

    def __init__(self, weights: str | None, device: str) -> None:
        self._place(load_module(weights or WEIGHTS, KIND, lambda config: EmojiNet(EmojiNetConfig(**config))), device)

    def _extract(self, images: np.ndarray) -> Features:
        pooled, logits = self._network(to_tensor(images).to(self._device))
        return Features(pooled.cpu().numpy(), probabilities=logits.softmax(dim=1).cpu().numpy())
