import numpy as np
import pytest
import torch
from PIL import Image

from ctf.experiments.swap import swap_generated, swap_images
from ctf.images import open_images
from ctf.model_folder import Pipeline
from ctf.tokenizer.config import MultiScaleConfig
from ctf.tokenizer.multi_scale import MultiScaleTokenizer
from ctf.tokenizer.registry import load_tokenizer


@pytest.fixture
def images(tmp_path):
    """16 of the emoji, from every part of the set."""
    emoji = open_images("emoji", "test")
    for index in np.linspace(0, len(emoji) - 1, 16).astype(int):
        Image.fromarray(emoji.read(int(index))).save(tmp_path / f"{index:04d}.png")
    return open_images(str(tmp_path))


def test_swaps_within_kmeans_clusters_keep_the_image(images):
    result = swap_images(load_tokenizer("emoji"), images, (64,))
    assert list(result.psnr) == [64]
    assert result.psnr[64]["kmeans"] > result.psnr[64]["random"] + 4
    # Four rows of twelve images at twice their size, and labels beside them.
    assert result.figure.width > 12 * 128
    assert result.figure.height >= 4 * 128


def test_swaps_of_generated_tokens_keep_the_image():
    result = swap_generated(Pipeline.from_pretrained("emoji"), 12, (64,))
    assert result.psnr[64]["kmeans"] > result.psnr[64]["random"] + 4
    assert 3 * 128 <= result.figure.height < 4 * 128  # no row of images that the tokens were made of


def test_the_seed_fixes_the_swaps(images, make_tokenizer):
    results = [swap_images(make_tokenizer(), images, (4, 8), seed=seed) for seed in (1, 1, 2)]
    assert results[0].psnr == results[1].psnr
    assert results[0].figure.tobytes() == results[1].figure.tobytes()
    assert results[0].psnr != results[2].psnr


def test_one_scale_alone_is_swapped(images):
    """Swapping a scale alone changes its tokens only, so it changes less than swapping all."""
    torch.manual_seed(0)
    sizes = {"base_channels": 32, "channel_multipliers": (1,), "z_channels": 8, "patch_size": 8}
    config = MultiScaleConfig(**sizes, codebook_size=32, codebook_dim=8, scales=(1, 4, 8))
    (by_name,) = swap_images(MultiScaleTokenizer(config).eval(), images, (4,)).psnr.values()
    scales = ("1 × 1", "4 × 4", "8 × 8")
    assert list(by_name) == [f"{m}{end}" for m in ("kmeans", "random") for end in ("", *(f", {s}" for s in scales))]
    assert all(by_name[f"random, {scale}"] > by_name["random"] for scale in scales)
