"""DINOv2 ViT-L/14, whose Fréchet distance follows human judgement more closely (Stein et al., arXiv 2306.04675)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from ctf.errors import InputError
from ctf.evaluation.features.extractor import FeatureExtractor, Features, import_optional

MODEL = "facebook/dinov2-large"
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DINOv2Features(FeatureExtractor):
    """The class token after the last norm, of images resized to 224 × 224 by Pillow's bicubic filter.

    transformers interpolates the position embeddings to 224 pixels in its own way, so values differ slightly from
    those of the authors' repository. What is tested here is the wiring; the published weights have not been run
    by this project.

    Args:
        weights: a local folder or hub id that transformers reads as DINOv2; None is "facebook/dinov2-large".
        device: where to compute.

    Raises:
        InputError: transformers does not import, or the weights are out of reach, incomplete or of another network.
    """

    name = "dinov2"
    distance = "FD-DINOv2"

    def __init__(self, weights: str | None, device: str) -> None:
        self._place(load_network(weights or MODEL), device)

    def _extract(self, images: np.ndarray) -> Features:
        resized = (Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images)
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).to(self._device).float() / 255
        pixels = (pixels - pixels.new_tensor(MEAN)) / pixels.new_tensor(STD)
        return Features(self._network(pixels.permute(0, 3, 1, 2)).pooler_output.float().cpu().numpy())


def load_network(source: str) -> nn.Module:
    package = import_optional("transformers")
    try:
        # Safetensors only, because other weights are pickles, which can run code.
        network, loaded = package.AutoModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # the library lets through whatever the hub, JSON and safetensors raise
        reason = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
        raise InputError(f"{source} does not open as DINOv2 ({reason}): give a local folder or a hub id") from None
    if network.config.model_type != "dinov2":
        raise InputError(f"{source} is a {network.config.model_type}, not a dinov2: give {MODEL} or a copy of it")
    if missing := sorted(loaded["missing_keys"]):  # which transformers fills with random numbers
        raise InputError(f"{source} lacks {len(missing)} of DINOv2's weights ({missing[0]}, …): copy it again")
    return network.eval()
