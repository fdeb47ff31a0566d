import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.layout import Layout
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.vq_tokenizer import VQTokenizer

TINY = TokenizerConfig(base_channels=32, channel_multipliers=(1, 2), z_channels=16, codebook_size=64, patch_size=4)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VQTokenizer(TINY).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_oblong_images_need_their_layout(tokenizer, images):
    tokens = tokenizer.encode(images[:, :, :24, :])
    assert tokens.shape == (3, 12)
    assert tokenizer.decode(tokens, Layout((3, 4))).shape == (3, 3, 24, 32)


def test_decoding_the_tokens_is_the_reconstruction(tokenizer, images):
    with torch.no_grad():
        reconstruction, quantized = tokenizer(images)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens, quantized.tokens)
    assert (tokens.shape, tokens.dtype) == ((3, 16), torch.int64)
    torch.testing.assert_close(tokenizer.decode(tokens), reconstruction, rtol=1e-4, atol=1e-5)


def test_codebook_is_normalized(tokenizer):
    torch.testing.assert_close(tokenizer.codebook.norm(dim=1), torch.ones(64))
    assert not tokenizer.codebook.requires_grad


def test_an_images_tokens_do_not_depend_on_its_batch(tokenizer, images):
    together = tokenizer.encode(images)
    for image, tokens in zip(images, together, strict=True):
        assert torch.equal(tokenizer.encode(image[None])[0], tokens)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (0, 3, 32, 32)])
def test_encode_refuses_other_shapes(tokenizer, shape):
    with pytest.raises(InputError, match=r"the tokenizer takes \(B, 3, H, W\)"):
        tokenizer.encode(torch.zeros(shape))


@pytest.mark.parametrize(("height", "width"), [(32, 30), (28, 32), (0, 32)])
def test_encode_refuses_other_sizes(tokenizer, height, width):
    with pytest.raises(InputError, match=f"images of {height} × {width} pixels: the tokenizer takes multiples of 8"):
        tokenizer.encode(torch.zeros(1, 3, height, width))


def test_layout_and_image_size_are_inverse(tokenizer):
    assert tokenizer.layout((24, 32)) == Layout((3, 4))
    assert tokenizer.image_size(Layout((3, 4))) == (24, 32)


@given(st.integers(1, 4), st.integers(1, 4))
def test_tokens_run_row_by_row(height, width):
    tokenizer = VQTokenizer(dataclasses.replace(TINY, codebook_dim=3))
    tokenizer.encoder = tokenizer.quant_conv = tokenizer.decoder = nn.Identity()
    tokenizer.post_quant_conv.weight.data = torch.eye(3)[:, :, None, None]  # z_channels do not matter any more
    tokenizer.post_quant_conv.bias.data = torch.zeros(3)
    pixels = torch.arange(height * width * 3.0).view(1, height, width, 3).permute(0, 3, 1, 2)
    features = tokenizer.features(pixels)
    assert features.flatten().tolist() == list(range(height * width * 3))
    assert torch.equal(tokenizer.decode_embeddings(features, Layout((height, width))), pixels)


def test_mean_codewords_decode_in_the_space_of_the_codebook(tokenizer):
    mean = tokenizer.project(tokenizer.codebook[:5].mean(0))
    assert mean.norm().item() == pytest.approx(1)
    assert tokenizer.decode_embeddings(mean.expand(1, 6, -1), Layout((2, 3))).shape == (1, 3, 16, 24)


def test_decoding_reads_the_weights_of_its_parts(tokenizer, images):
    tokens = tokenizer.encode(images)
    untouched = tokenizer.decode(tokens)
    for module in (tokenizer.encoder, tokenizer.quant_conv):
        for parameter in module.parameters():
            parameter.data.zero_()
    assert torch.equal(tokenizer.decode(tokens), untouched)
    for part in tokenizer.decoder_parts():
        for parameter in part.parameters():
            parameter.data.zero_()
    assert not tokenizer.decode(tokens).any()


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_decoding_memory_of_vq16(device, dtype):
    """Written out for 64 images of 256 × 256 pixels: 128 channels at full resolution, and 3 bytes per pixel."""
    with torch.device("meta"):
        tokenizer = VQTokenizer(TokenizerConfig())
    together = min(torch.get_num_threads(), 16) if device == "cpu" else 32
    bytes_per_pixel = 8.5 * 128 * 4 if device == "cpu" else 6 * 128 * 2
    expected = together * 256 * 256 * bytes_per_pixel + 64 * 256 * 256 * 3
    assert tokenizer.decoding_memory(64, Layout.square(16), device, dtype) == expected


@pytest.mark.parametrize(
    ("tokens", "layout", "message"),
    [
        (torch.zeros(16, dtype=torch.int64), None, r"decode takes \(B, N\)"),
        (torch.zeros(1, 15, dtype=torch.int64), None, "15 tokens are not a square"),
        (torch.zeros(1, 16, dtype=torch.int64), Layout((3, 5)), "16 tokens do not fill the layout 3x5"),
        (torch.full((1, 16), 64), None, "range from 64 to 64, the codebook has 64"),
        (torch.full((1, 16), -1), None, "range from -1 to -1"),
    ],
)
def test_decode_refuses(tokenizer, tokens, layout, message):
    with pytest.raises(InputError, match=message):
        tokenizer.decode(tokens, layout)


def test_saved_tokenizer_is_the_same(tokenizer, images, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    loaded = VQTokenizer.load(tmp_path / "tokenizer.safetensors")
    assert loaded.config == TINY
    assert not loaded.training
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), tokenizer.parameters(), strict=True))


def test_half_precision_is_widened(tokenizer, tmp_path):
    path = tmp_path / "half.safetensors"
    half = {name: tensor.half() for name, tensor in tokenizer.state_dict().items()}
    save_tensors(path, half, {"ctf": "tokenizer", "config": json.dumps(dataclasses.asdict(TINY))})
    for name, tensor in VQTokenizer.load(path).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[name].float())
