import numpy as np
import pytest
import torch

from ctf.images import open_images
from ctf.images.pixels import to_tensor
from ctf.layout import Layout
from ctf.tokenizer import load_tokenizer
from ctf.tokenizer.measure import psnr
from ctf.tokenizer.registry import BUNDLED


@pytest.mark.parametrize(
    ("name", "layout", "least"), [("emoji", Layout.square(8), 23.0), ("photos", Layout.square(16), 18.0)]
)
def test_bundled_tokenizers_keep_an_image(name, layout, least):
    """Images of emoji, which `photos` never saw."""
    images = open_images("emoji", "test", 64)
    pixels = torch.from_numpy(np.stack([images.read(i) for i in range(0, 64, 8)]))
    tokenizer = load_tokenizer(name)
    tokens = tokenizer.encode(to_tensor(pixels.numpy()))
    assert tokenizer.layout((64, 64)) == layout
    assert tokens.shape == (8, layout.num_tokens)
    decoded = (127.5 * tokenizer.decode(tokens) + 128).clamp(0, 255).byte().permute(0, 2, 3, 1)
    assert psnr(pixels, decoded).mean() > least


def test_every_bundled_folder_is_known():
    assert set(BUNDLED) == {"emoji", "photos"}
