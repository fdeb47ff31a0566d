"""Inception-v3, the TensorFlow graph of 2015, as ported by torch-fidelity: FID, sFID and the Inception Score."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctf.errors import InputError, first_line
from ctf.evaluation.features.extractor import FeatureExtractor, Features, import_optional
from ctf.files import existing
from ctf.weights import read_state_dict

SPATIAL_CHANNELS = 7  # of 192, on a grid of 17 × 17: 2023 values, about as many as `pool` has


class InceptionFeatures(FeatureExtractor):
    """The features that ADM's evaluation uses: `pool_3`, 7 channels of `mixed_6/conv`, softmax without the bias.

    `mixed_6/conv` of the graph, behind its batch norm and ReLU, is `Mixed_6d.branch1x1` of the port.
    The port resizes to 299 × 299 itself, as the graph does. What is tested here is the wiring; the published
    weights have not been run by this project.

    Args:
        weights: path of `weights-inception-2015-12-05-6726825d.pth`; None lets torch-fidelity download it.
        device: where to compute.

    Raises:
        InputError: torch-fidelity does not import, or the weights are missing, damaged or of another network.
    """

    name = "inception"
    distance = "FID"

    def __init__(self, weights: str | None, device: str) -> None:
        self._place(load_network(weights), device)
        self._spatial: Tensor | None = None
        self._network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # TensorFlow's order: y, x, channel

    def _extract(self, images: np.ndarray) -> Features:
        pool, logits = self._network(torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2))
        assert self._spatial is not None
        arrays = [tensor.float().cpu().numpy() for tensor in (pool, self._spatial, logits.softmax(dim=1))]
        return Features(*arrays)


def load_network(weights: str | None) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        path = None
        if weights is not None:  # torch-fidelity unpickles whatever it is given: it gets a copy of the tensors alone
            path = f"{folder}/weights.pth"
            torch.save(read_state_dict(existing(weights, "file of Inception weights")), path)
        package = import_optional("torch_fidelity")
        try:
            return package.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
            ).eval()
        except OSError as error:
            raise InputError(
                f"the Inception weights cannot be downloaded ({error}): "
                "give the path of weights-inception-2015-12-05-6726825d.pth as weights"
            ) from None
        except (RuntimeError, TypeError) as error:
            reason = first_line(error)
            raise InputError(f"{weights} holds other weights than torch-fidelity's Inception ({reason})") from None
