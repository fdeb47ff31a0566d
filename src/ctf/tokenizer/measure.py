"""Quality of a tokenizer's reconstructions, and usage of its codebook."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_bytes, to_tensor
from ctf.progress import progress_bar
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.lpips import LPIPS
from ctf.tokenizer.quantizer import codebook_use, count_tokens

WINDOW, SIGMA = 11, 1.5  # pixels, of SSIM's Gaussian
STABILIZERS = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of 8-bit images: uint8 (B, H, W, 3) twice → float64 (B,).

    Identical images count as an error of half a grey level in one value, so that the mean stays finite.
    """
    error = (images.double() - others.double()).square().flatten(1)
    return 10 * torch.log10(255**2 / error.mean(1).clamp_min(0.25 / error.shape[1]))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of 8-bit images: uint8 (B, H, W, 3) twice → float64 (B,), at most 1.

    Gaussian windows of 11 × 11 pixels, σ 1.5, that lie wholly inside the image; the mean over windows and channels.

    Raises:
        InputError: images smaller than the window.
    """
    if min(images.shape[1:3]) < WINDOW:
        size = f"{images.shape[1]} × {images.shape[2]}"
        raise InputError(f"SSIM of {size} pixels: images must have {WINDOW} × {WINDOW} or more")
    return torch.stack([_ssim(*pair) for pair in zip(images, others, strict=True)])  # one at a time stays in the cache


def _ssim(image: Tensor, other: Tensor) -> Tensor:
    x, y = image.double(), other.double()
    mean_x, mean_y, xx, yy, xy = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    c1, c2 = STABILIZERS
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return (luminance * structure).mean()


def _blur(maps: Tensor) -> Tensor:
    """(n, H, W, 3) → (n, H − 10, W − 10, 3)."""
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = (-offsets.square() / (2 * SIGMA**2)).softmax(0).tolist()
    for dim in (1, 2):
        size = maps.shape[dim] - WINDOW + 1
        shifted = [maps.narrow(dim, offset, size) for offset in range(WINDOW)]
        maps = shifted[0] * weights[0]
        for weight, part in zip(weights[1:], shifted[1:], strict=True):
            maps.add_(part, alpha=weight)
    return maps


def standard_error(values: np.ndarray) -> float | None:
    """Standard error of the mean of independent values (n,); None for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


@torch.inference_mode()
def measure_tokenizer(
    tokenizer: Tokenizer,
    images: ImageSet,
    batch_size: int = 128,
    progress: bool = True,
    perceptual: LPIPS | None = None,
    part: range | None = None,
    total: Callable[[Tensor], Tensor] = torch.clone,
) -> dict[str, Any]:
    """Encode and decode every image, in 8 bits as a viewer sees it.

    Args:
        tokenizer: to measure, on any device.
        images: readable ones count.
        batch_size: images at once, of 64 × 64 pixels; fewer of larger ones.
        progress: show a bar.
        perceptual: adds the mean LPIPS; on the tokenizer's device.
        part: indices of the images that this process measures, where several share them; all by default.
        total: the sum of a tensor over these processes.

    Returns:
        psnr: mean over images of each image's PSNR, in dB.
        psnr_of_mean: PSNR of the mean squared error over all images, in dB; never larger than `psnr`.
        ssim: mean over images of each image's structural similarity, 1 for identical ones.
        lpips: mean over images of the perceptual distance, 0 for identical ones; with `perceptual` only.
        usage: fraction of the codewords that occur; of several scales also of each, `usage_scale_0` and so on.
        perplexity: exp of the entropy of their distribution, likewise.
        images: how many were readable.
        standard_error: of `psnr`, `ssim` and `lpips` over the images, by their names; None for a single image.
    """
    device = next(tokenizer.parameters()).device
    layout = tokenizer.layout((images.size, images.size))
    counts = torch.zeros(len(layout), tokenizer.codebook_size, dtype=torch.int64)
    types = {"psnr": torch.float64, "ssim": torch.float64, **({"lpips": torch.float32} if perceptual else {})}
    each = {name: torch.zeros(len(images), dtype=dtype) for name, dtype in types.items()}
    readable = torch.zeros(len(images), dtype=torch.int64)
    with progress_bar(len(images), "measure", "image", hidden=not progress) as bar:
        for indices, batch, _ in images.batches(images.as_many_pixels(batch_size), part):
            tokens = tokenizer.encode(to_tensor(batch).to(device))
            decoded = to_bytes(tokenizer.decode(tokens, layout))
            count_tokens(counts, tokens.cpu(), layout)
            pair = torch.from_numpy(batch), torch.from_numpy(decoded)
            readable[indices] = 1
            each["psnr"][indices], each["ssim"][indices] = psnr(*pair), ssim(*pair)
            if perceptual:
                each["lpips"][indices] = perceptual(*(to_tensor(x).to(device) for x in (batch, decoded))).cpu()
            bar.update(len(batch))
    counts, there = total(counts).cpu(), total(readable).cpu() > 0
    each = {name: total(values).cpu()[there] for name, values in each.items()}
    mean_error = (10 ** (-each["psnr"] / 10)).mean()
    return {
        **{name: values.mean().item() for name, values in each.items()},
        "psnr_of_mean": (-10 * torch.log10(mean_error)).item(),
        **codebook_use(counts),
        "images": len(each["psnr"]),
        "standard_error": {name: standard_error(values.numpy()) for name, values in each.items()},
    }
