"""The adversarial loss of training: a PatchGAN discriminator with hinge losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        """(B, 3, H, W) in [-1, 1], sides of `smallest` and more → logits (B, 1, h, w); h = H / 2^layers - 2."""
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
