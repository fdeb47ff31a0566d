"""The Fréchet distance between images and their reconstructions."""

from __future__ import annotations

import numpy as np
import torch

from ctf.evaluation.features import FeatureExtractor
from ctf.evaluation.metrics import frechet_distance
from ctf.evaluation.statistics import FeatureStatistics
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_bytes, to_tensor
from ctf.progress import progress_bar
from ctf.tokenizer import Tokenizer


@torch.inference_mode()
def reconstruction_distance(
    tokenizer: Tokenizer, images: ImageSet, extractor: FeatureExtractor, batch_size: int = 64, progress: bool = True
) -> dict[str, float]:
    """Encode and decode every image, in 8 bits as a viewer sees it, and compare all features before and after.

    Returns:
        "rFID" for Inception's features; for others a title that names them.

    Raises:
        InputError: fewer than two readable images, or of a size that the extractor does not take.
    """
    device = next(tokenizer.parameters()).device
    pair: list[FeatureStatistics] = []
    with progress_bar(len(images), "reconstruct", "image", hidden=not progress) as bar:
        for _, batch, _ in images.batches(images.as_many_pixels(batch_size)):
            tokens = tokenizer.encode(to_tensor(batch).to(device))
            layout = tokenizer.layout(batch.shape[1:3])
            features: list[np.ndarray] = [
                extractor(each).pool for each in (batch, to_bytes(tokenizer.decode(tokens, layout)))
            ]
            pair = pair or [FeatureStatistics(each.shape[1]) for each in features]
            for statistics, each in zip(pair, features, strict=True):
                statistics.update(each)
            bar.update(len(batch))
    name = "rFID" if extractor.name == "inception" else f"reconstruction {extractor.distance}"
    return {name: frechet_distance(*pair)}
