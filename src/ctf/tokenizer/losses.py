"""Losses of training beside the squared error: a PatchGAN discriminator with hinge losses, and LPIPS."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.weights import read_state_dict

#: VGG16's convolutions, one row per resolution; max pooling halves between rows.
WIDTHS = [[64, 64], [128, 128], [256, 256, 256], [512, 512, 512], [512, 512, 512]]

#: What a folder or hub repository may hold; everything found is put together.
FILES = ["*.safetensors", "vgg16*.pth", "vgg.pth", "vgg_lpips.pth"]
FILES_NEEDED = (
    "one .safetensors file of LPIPS.save, or torchvision's vgg16-397923af.pth and the lpips package's vgg.pth"
)


class PatchDiscriminator(nn.Module):
    """One real-or-fake logit per patch (pix2pix, arXiv 1611.07004), in VQGAN's and LlamaGen's shape.

    With 3 layers a logit sees 70 × 70 pixels; 2 layers see 34 × 34 and 1 sees 16 × 16, for small images.

    Args:
        channels: width of the first layer; it doubles with each layer, up to 8-fold.
        layers: convolutions of stride 2. Images need sides of at least 3·2^layers pixels: 24 for 3 layers.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.smallest = 3 * 2**layers
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for i in range(layers):
            stride = 2 if i < layers - 1 else 1
            body += [
                nn.Conv2d(widths[i], widths[i + 1], 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i + 1]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.body = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for layer in self.body:
            if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
                nn.init.normal_(layer.weight, 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0, 0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → logits (B, 1, h, w); h = H / 2^layers - 2.

        Raises:
            InputError: the images are too small for the number of layers.
        """
        if min(images.shape[2:]) < self.smallest:
            raise InputError(
                f"the discriminator takes images of at least {self.smallest} × {self.smallest} pixels, "
                f"got {images.shape[2]} × {images.shape[3]}: give it fewer layers"
            )
        return self.body(images)


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Scalar; zero once every real logit is above 1 and every fake one below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Scalar: the generator's side of the hinge loss."""
    return -fake_logits.mean()


def adaptive_weight(reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: Tensor) -> Tensor:
    """Weight of `generator_loss` that makes both gradients at the decoder's last layer equal (VQGAN, eq. 7).

    Both losses are scalars of one forward pass, whose graphs stay usable for the backward pass; the first includes
    the perceptual loss. The weight is a scalar in [0, 1e4], detached.
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    # 1e-4 is δ in VQGAN's and LlamaGen's code; their paper prints 1e-6.
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0, 1e4).detach()


class LPIPS(nn.Module):
    """The perceptual distance of Zhang et al. (arXiv 1801.03924), VGG16 version 0.1: weighted squared distance of
    unit-normalised features, averaged over space (eq. 1 there).

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
        found = {name: tensor for file in files for name, tensor in read_state_dict(file).items()}
        tensors = {re.sub(r"^lin(\d)\.model\.1\.", r"heads.\1.", name): tensor for name, tensor in found.items()}
        if missing := sorted(names - tensors.keys()):
            raise InputError(f"{source} lacks {len(missing)} LPIPS weights ({missing[0]}, …): it needs {FILES_NEEDED}")
        try:
            model.load_state_dict({name: tensors[name] for name in names})  # torchvision's classifier is left out
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
