"""LPIPS: the perceptual distance of Zhang et al. (arXiv 1801.03924), VGG16 version 0.1, in plain torch."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import load_tensors, save_tensors

#: VGG16's convolutions, one row per resolution; max pooling halves between rows.
WIDTHS = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]

#: What a folder or hub repository may hold; everything found is put together.
FILES = ["*.safetensors", "vgg16*.pth", "vgg.pth", "vgg_lpips.pth"]
FILES_NEEDED = (
    "one .safetensors file of LPIPS.save, or torchvision's vgg16-397923af.pth and the lpips package's vgg.pth"
)


class LPIPS(nn.Module):
    """Weighted squared distance of unit-normalised VGG16 features, averaged over space (eq. 1 there).

    Frozen: gradients reach the images, never the weights. The weights start at random; see `load`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
        channels = 3
        for widths in WIDTHS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)  # torchvision's numbering: features.0 … features.29
        self.heads = nn.ModuleList(nn.Conv2d(widths[-1], 1, 1, bias=False) for widths in WIDTHS)
        # ImageNet's mean and standard deviation, for pixels in [-1, 1], rounded as the published heads expect.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Two batches (B, 3, H, W) in [-1, 1], sides of at least 16 pixels → distances (B,)."""
        x, y = (images - self.shift) / self.scale, (others - self.shift) / self.scale
        distance = x.new_zeros(len(x))
        heads = dict(zip(self.taps, self.heads, strict=True))
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in heads:
                # F.normalize, because its gradient is zero, not NaN, where every feature is.
                difference = F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)
                distance = distance + heads[i](difference.square()).mean((1, 2, 3))
        return distance

    def save(self, path: str | Path) -> None:
        """Write backbone and heads to one safetensors file."""
        save_tensors(path, self.state_dict(), {"ctf": "lpips"})

    @classmethod
    def load(cls, source: str | Path) -> LPIPS:
        """Read published weights, or what `save` wrote.

        Args:
            source: a file, a folder, or the id of a hub repository. A file holds everything; a folder or
                repository may hold the backbone (torchvision's `vgg16*.pth`) and the heads (the lpips
                package's or taming-transformers' `vgg.pth` or `vgg_lpips.pth`) apart.

        Raises:
            InputError: not found, unreadable, incomplete, or of other shapes.
        """
        path = local(source)
        files = [path] if path.is_file() else sorted(file for pattern in FILES for file in path.glob(pattern))
        model = cls()
        names = model.state_dict().keys()
        tensors: dict[str, Tensor] = {}
        for file in files:
            for name, tensor in read(file).items():
                name = re.sub(r"^lin(\d)\.model\.1\.", r"heads.\1.", name)
                if name in names:  # torchvision's file also holds the classifier
                    tensors[name] = tensor
        if missing := sorted(names - tensors.keys()):
            raise InputError(f"{source} lacks {len(missing)} LPIPS weights ({missing[0]}, …): it needs {FILES_NEEDED}")
        try:
            model.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(
                f"{source}: weights of another network than VGG16 ({str(error).splitlines()[-1].strip()})"
            ) from None
        return model


def local(source: str | Path) -> Path:
    """`source` itself, or the folder of a hub repository's snapshot."""
    from huggingface_hub import snapshot_download

    if Path(source).exists():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=FILES))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{source} is neither a local path nor a hub repository within reach ({type(error).__name__}): "
            f"give a file or folder with {FILES_NEEDED}"
        ) from None


def read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_tensors(file)[0]
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        raise InputError(f"{file} is damaged or not a state dict ({type(error).__name__}): copy it again") from None
    if not isinstance(tensors, dict):
        raise InputError(f"{file} holds a {type(tensors).__name__}, not a state dict: it needs {FILES_NEEDED}")
    return tensors
