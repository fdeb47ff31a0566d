import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctf.errors import InputError
from ctf.files import save_tensors
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.vq_tokenizer import VQTokenizer, square_grid

TINY = TokenizerConfig(base_channels=32, channel_multipliers=(1, 2), z_channels=16, codebook_size=64, patch_size=4)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    return VQTokenizer(TINY).eval()


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_encode_and_decode_shapes(tokenizer, images):
    tokens = tokenizer.encode(images)
    assert tokens.shape == (3, 16)
    assert tokens.dtype == torch.int64
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == images.shape
    assert not decoded.requires_grad


def test_oblong_images_need_their_grid(tokenizer, images):
    tokens = tokenizer.encode(images[:, :, :24, :])
    assert tokens.shape == (3, 12)
    assert tokenizer.decode(tokens, grid=(3, 4)).shape == (3, 3, 24, 32)


def test_decoding_the_tokens_is_the_reconstruction(tokenizer, images):
    with torch.no_grad():
        reconstruction, quantized = tokenizer(images)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens, quantized.tokens)
    torch.testing.assert_close(tokenizer.decode(tokens), reconstruction, rtol=1e-4, atol=1e-5)


def test_codebook_is_normalized(tokenizer):
    torch.testing.assert_close(tokenizer.codebook.norm(dim=1), torch.ones(64))
    assert not tokenizer.codebook.requires_grad


def test_an_images_tokens_do_not_depend_on_its_batch(tokenizer, images):
    together = tokenizer.encode(images)
    for image, tokens in zip(images, together, strict=True):
        assert torch.equal(tokenizer.encode(image[None])[0], tokens)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 30), (1, 3, 28, 32)])
def test_encode_refuses_other_shapes(tokenizer, shape):
    with pytest.raises(InputError, match="multiples of 8"):
        tokenizer.encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("tokens", "grid", "message"),
    [
        (torch.zeros(16, dtype=torch.int64), None, r"decode takes \(B, h·w\)"),
        (torch.zeros(1, 15, dtype=torch.int64), None, "15 tokens are not a square grid"),
        (torch.zeros(1, 16, dtype=torch.int64), (3, 5), "16 tokens do not fill a grid of 3 × 5"),
        (torch.full((1, 16), 64), None, "range from 64 to 64, the codebook has 64"),
        (torch.full((1, 16), -1), None, "range from -1 to -1"),
    ],
)
def test_decode_refuses(tokenizer, tokens, grid, message):
    with pytest.raises(InputError, match=message):
        tokenizer.decode(tokens, grid)


@given(st.integers(1, 5000))
def test_square_grid_takes_squares_only(count):
    side = math.isqrt(count)
    if side * side == count:
        assert square_grid(count) == (side, side)
    else:
        with pytest.raises(InputError, match="not a square"):
            square_grid(count)


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


def test_load_refuses_a_truncated_file(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    tokenizer.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated"):
        VQTokenizer.load(path)


def test_load_refuses_another_kind(tmp_path):
    path = tmp_path / "map.safetensors"
    save_tensors(path, {"fine_to_coarse": torch.zeros(3)}, {"ctf": "coarse_map"})
    with pytest.raises(InputError, match=r"not a ctf tokenizer.*coarse_map"):
        VQTokenizer.load(path)


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such safetensors file"):
        VQTokenizer.load(tmp_path / "nothing.safetensors")
