"""What a tokenizer keeps of an image, and how much of its codebook it uses."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_bytes, to_tensor
from ctf.progress import progress_bar
from ctf.tokenizer.quantizer import perplexity, usage
from ctf.tokenizer.vq_tokenizer import VQTokenizer


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of 8-bit images: uint8 (B, H, W, 3) twice → float64 (B,).

    Identical images count as an error of half a grey level in one value, so that the mean stays finite.
    """
    error = (images.double() - others.double()).square().flatten(1)
    return 10 * torch.log10(255**2 / error.mean(1).clamp_min(0.25 / error.shape[1]))


@torch.inference_mode()
def measure_tokenizer(
    tokenizer: VQTokenizer, images: ImageSet, batch_size: int = 128, progress: bool = True
) -> dict[str, float]:
    """Encode and decode every image, in 8 bits as a viewer sees it.

    Returns:
        psnr: mean over images of each image's PSNR, in dB.
        psnr_of_mean: PSNR of the mean squared error over all images, in dB; never larger than `psnr`.
        usage: fraction of the codewords that occur.
        perplexity: exp of the entropy of their distribution.
        images: how many were readable.
    """
    device = next(tokenizer.parameters()).device
    counts = torch.zeros(tokenizer.config.codebook_size, dtype=torch.int64)
    values = []
    with progress_bar(len(images), "measure", "image", hidden=not progress) as bar:
        for _, batch, _ in images.batches(batch_size):
            tokens = tokenizer.encode(to_tensor(batch).to(device))
            grid = tuple(side // tokenizer.config.downsampling for side in batch.shape[1:3])
            painted = to_bytes(tokenizer.decode(tokens, grid))
            counts += torch.bincount(tokens.flatten().cpu(), minlength=len(counts))
            values.append(psnr(torch.from_numpy(batch), torch.from_numpy(painted)))
            bar.update(len(batch))
    all_values = torch.cat(values)
    mean_error = (10 ** (-all_values / 10)).mean()
    return {
        "psnr": all_values.mean().item(),
        "psnr_of_mean": (-10 * torch.log10(mean_error)).item(),
        "usage": usage(counts),
        "perplexity": perplexity(counts),
        "images": len(all_values),
    }
