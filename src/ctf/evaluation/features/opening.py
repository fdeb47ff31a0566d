"""Feature extractors by name."""

from __future__ import annotations

from collections.abc import Callable

from ctf.errors import InputError
from ctf.evaluation.features.custom import CustomFeatures
from ctf.evaluation.features.dinov2 import DINOv2Features
from ctf.evaluation.features.emoji import EmojiFeatures
from ctf.evaluation.features.extractor import FeatureExtractor
from ctf.evaluation.features.inception import InceptionFeatures

EXTRACTORS: dict[str, Callable[[str | None, str], FeatureExtractor]] = {
    "inception": InceptionFeatures,
    "dinov2": DINOv2Features,
    "emoji": EmojiFeatures,
}


def open_features(name: str = "inception", weights: str | None = None, device: str = "cpu") -> FeatureExtractor:
    """A feature extractor, ready to be called.

    Args:
        name: "inception" (FID, sFID, Inception Score; any size), "dinov2" (FD-DINOv2; any size), "emoji" (64 × 64
            images, embedded weights), or a function of yours: "file.py:function" or "package.module:function".
        weights: a local file for inception and emoji, a local folder or hub id for dinov2; None is the published
            weights for inception and dinov2 (downloaded once), and the embedded ones for emoji.
        device: where to compute. A function of yours decides that itself.

    Raises:
        InputError: unknown name, an optional package that is not installed, or weights that cannot be used.
    """
    if ":" in name:
        if weights is not None:
            raise InputError(f"{name} reads its own weights: leave out weights {weights}")
        return CustomFeatures(name)
    if name not in EXTRACTORS:
        raise InputError(f"no features {name!r}: there are {', '.join(EXTRACTORS)} and your own file.py:function")
    return EXTRACTORS[name](weights, device)
