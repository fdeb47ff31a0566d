import io

import numpy as np
import pytest
import torch
from PIL import Image

from ctf.errors import InputError
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_tensor
from ctf.images.sources import Records
from ctf.tokenizer import TokenizerConfig, VQTokenizer
from ctf.tokenizer.measure import measure_tokenizer, psnr


def make_images(pixels, corrupt=()):
    def encoded(index):
        file = io.BytesIO()
        Image.fromarray(pixels[index]).save(file, "PNG")
        return b"" if index in corrupt else file.getvalue()

    return ImageSet(Records(np.zeros(len(pixels), np.int64), ["image"], str, encoded), "noise", pixels.shape[1])


def test_psnr_by_hand():
    image = torch.full((1, 2, 2, 3), 100, dtype=torch.uint8)
    other = image.clone()
    other[0, 0, 0, 0] = 112  # a mean squared error of 144 / 12 = 12
    assert psnr(image, other).item() == pytest.approx(10 * np.log10(255**2 / 12))
    assert psnr(image, image).item() == pytest.approx(10 * np.log10(255**2 / (0.25 / 12)))


def test_figures_against_numpy():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    torch.manual_seed(0)
    config = TokenizerConfig(32, (1,), 1, 1, 8, codebook_size=64, codebook_dim=4, patch_size=8)
    tokenizer = VQTokenizer(config).eval()
    figures = measure_tokenizer(tokenizer, make_images(pixels, corrupt={2}), batch_size=2, progress=False)

    kept = pixels[[0, 1, 3, 4]]
    tokens = tokenizer.encode(to_tensor(kept))
    floats = tokenizer.decode(tokens).permute(0, 2, 3, 1).numpy()
    painted = np.floor(np.clip(127.5 * floats + 128, 0, 255))
    errors = ((kept.astype(np.float64) - painted) ** 2).reshape(4, -1).mean(1)
    frequency = np.unique(tokens.numpy(), return_counts=True)[1] / tokens.numel()
    assert figures["images"] == 4
    assert figures["psnr"] == pytest.approx(np.mean(10 * np.log10(255**2 / errors)), abs=1e-3)
    assert figures["psnr_of_mean"] == pytest.approx(10 * np.log10(255**2 / errors.mean()), abs=1e-3)
    assert figures["psnr_of_mean"] <= figures["psnr"]
    assert figures["usage"] == pytest.approx(len(frequency) / 64)
    assert figures["perplexity"] == pytest.approx(np.exp(-(frequency * np.log(frequency)).sum()))


def test_nothing_readable():
    tokenizer = VQTokenizer(TokenizerConfig(32, (1,), 1, 1, 8, 64, 4, patch_size=8)).eval()
    images = make_images(np.zeros((2, 16, 16, 3), np.uint8), corrupt={0, 1})
    with pytest.raises(InputError, match="not one image is readable"):
        measure_tokenizer(tokenizer, images, progress=False)
