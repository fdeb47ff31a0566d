from fractions import Fraction

import numpy as np
import pytest
import torch

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.tokenizer import MultiScaleConfig, MultiScaleTokenizer, load_tokenizer
from ctf.tokenizer.decode import decode_images
from ctf.tokenizer.residual import CONVOLUTION_OF_SCALE, ResidualSum

TINY = MultiScaleConfig(
    32, (1, 2), 1, 1, z_channels=8, codebook_size=64, codebook_dim=4, patch_size=2, scales=(1, 3, 5)
)
LAYOUT = Layout.square(1, 3, 5)


@pytest.fixture
def tokenizer():
    torch.manual_seed(0)
    tokenizer = MultiScaleTokenizer(TINY).eval()
    tokenizer.quantizer.weight.data.normal_()
    return tokenizer


@pytest.fixture
def images():
    return torch.rand(3, 3, 20, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1


def random_vectors(count):
    return torch.randn(3, count, 4, generator=torch.Generator().manual_seed(2))


# --------------------------------------------------------------------------------------- which convolution


def test_a_scale_takes_the_convolution_of_the_nearest_tick():
    """In exact arithmetic; of two equally near the table says which."""
    ticks = [Fraction(n, 36) for n in (3, 13, 23, 33)]
    assert sorted(CONVOLUTION_OF_SCALE) == list(range(2, 15))
    for scales, table in CONVOLUTION_OF_SCALE.items():
        for scale, convolution in enumerate(table):
            distances = [abs(Fraction(scale, scales - 1) - tick) for tick in ticks]
            assert distances[convolution] == min(distances), (scales, scale)
        assert len(table) == scales
    assert CONVOLUTION_OF_SCALE[10] == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)  # with ties at scales 2 and 7


def test_the_scales_convolutions_are_those_of_the_table():
    torch.manual_seed(0)
    residual = ResidualSum(4)
    for convolution in residual.convolutions:
        torch.nn.init.zeros_(convolution.weight)
    for number, convolution in enumerate(residual.convolutions):
        torch.nn.init.constant_(convolution.bias, 2.0 * number)
    layout = Layout.square(*range(1, 11))
    zeros = torch.zeros(1, layout.num_tokens, 4)
    found = [
        residual.contribution(zeros[:, part], scale, layout)[0, 0, 0, 0].item()
        for scale, part in enumerate(layout.slices)
    ]
    assert found == list(CONVOLUTION_OF_SCALE[10])


# ------------------------------------------------------------------------------------- the sum, scale by scale


def slow_pool(image, side):
    """Area pooling of (d, H, W) in NumPy: the mean over windows ⌊iH/p⌋ … ⌈(i+1)H/p⌉."""
    size = image.shape[1]
    windows = [slice(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]
    return np.stack([[image[:, rows, columns].mean((1, 2)) for columns in windows] for rows in windows])  # (p, p, d)


@torch.no_grad()
def test_encoding_against_slow_pooling(tokenizer, images):
    """Scales that do not divide the map; VAR's golden files have only others, and the sums."""
    codebook, residual = tokenizer.codebook, tokenizer.quantizer.residual
    for image, tokens in zip(images, tokenizer.encode(images), strict=True):
        rest, expected = tokenizer.features(image[None]).mT.unflatten(2, (5, 5)), []
        for scale, side in enumerate((1, 3, 5)):
            pooled = slow_pool(rest[0].double().numpy(), side)
            found = ((pooled[:, :, None] - codebook.double().numpy()) ** 2).sum(-1).argmin(-1).flatten()
            expected += found.tolist()
            rest = rest - residual.contribution(codebook[found][None], scale, LAYOUT)
        assert tokens.tolist() == expected


@torch.no_grad()
def test_scale_by_scale_as_all_at_once(tokenizer):
    residual, vectors = tokenizer.quantizer.residual, random_vectors(LAYOUT.num_tokens)
    inputs, f_hat = [], torch.zeros(3, 4, 5, 5)
    for scale, part in enumerate(LAYOUT.slices):
        if scale:
            inputs.append(residual.input_of_scale(f_hat, scale, LAYOUT))
        f_hat = f_hat + residual.contribution(vectors[:, part], scale, LAYOUT)
    assert torch.equal(f_hat, residual(vectors, LAYOUT))
    assert torch.equal(torch.cat(inputs, 1), residual.next_scale_input(vectors, LAYOUT))


@torch.no_grad()
def test_an_unknown_scale_is_left_out_and_not_zero(tokenizer):
    residual, vectors = tokenizer.quantizer.residual, random_vectors(LAYOUT.num_tokens)
    known = vectors[:, : LAYOUT.slices[1].stop]
    zeroed = torch.cat([known, torch.zeros(3, LAYOUT.sizes[2], 4)], 1)
    first_two = residual(known, LAYOUT)
    assert torch.equal(first_two, [*residual.partial_sums(vectors, LAYOUT)][1])
    assert not torch.allclose(first_two, residual(zeroed, LAYOUT), atol=1e-3)


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(tokenizer, images):
    def next_scale_input(tokens):
        return tokenizer.quantizer.residual.next_scale_input(tokenizer.embed(tokens), LAYOUT)

    tokens = tokenizer.encode(images)
    together = next_scale_input(tokens)
    decoded = decode_images(tokenizer, tokens, LAYOUT, torch.float32)
    for i in range(3):
        assert torch.equal(tokenizer.encode(images[i : i + 1])[0], tokens[i])
        assert torch.equal(next_scale_input(tokens[i : i + 1])[0], together[i])
        assert np.array_equal(decode_images(tokenizer, tokens[i : i + 1], LAYOUT, torch.float32)[0], decoded[i])


@torch.no_grad()
def test_sums_stay_in_float32_under_autocast(tokenizer):
    residual, vectors = tokenizer.quantizer.residual, random_vectors(LAYOUT.num_tokens)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = residual(vectors, LAYOUT)
    assert torch.equal(rounded, residual(vectors, LAYOUT))


def test_the_fingerprint_covers_codebook_and_convolutions(tokenizer):
    residual, codebook = tokenizer.quantizer.residual, tokenizer.codebook.clone()
    prints = [residual.fingerprint(codebook), residual.fingerprint(codebook + 1)]
    residual.convolutions[3].bias.data[0] += 1
    prints.append(residual.fingerprint(codebook))
    assert len(set(prints)) == 3


# ------------------------------------------------------------------------------------------- the tokenizer


def test_its_file(tokenizer, images, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.safetensors")
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, MultiScaleTokenizer)
    assert loaded.config == TINY
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))


@torch.no_grad()
def test_the_reconstruction_in_training_is_the_decoded_encoding(tokenizer, images):
    reconstruction, quantized = tokenizer(images)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens, quantized.tokens)
    assert quantized.searched.shape == (3, LAYOUT.num_tokens, 4)
    torch.testing.assert_close(tokenizer.decode(tokens), reconstruction, rtol=1e-4, atol=1e-5)


def test_with_codewords_everywhere_nothing_is_left_to_cluster(tokenizer):
    """Identity-like ψ (h ↦ h) takes away all that a scale can hold, so that the last scale leaves nothing."""
    for convolution in tokenizer.quantizer.residual.convolutions:
        torch.nn.init.dirac_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    features = random_vectors(25)
    found = tokenizer.quantizer.to_cluster(features).unflatten(0, (3, LAYOUT.num_tokens))
    torch.testing.assert_close(found[:, 0], features.mean(1))
    sums = tokenizer.quantizer.residual(found, LAYOUT)
    torch.testing.assert_close(sums.flatten(2).transpose(1, 2), features)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 24), (24, 24)])
def test_images_that_the_scales_do_not_fit(tokenizer, height, width):
    with pytest.raises(InputError, match=rf"images of {height} × {width} .* scales \(1, 3, 5\) .* take 20 × 20"):
        tokenizer.encode(torch.zeros(1, 3, height, width))


def test_tokens_that_do_not_fill_the_scales(tokenizer):
    with pytest.raises(InputError, match=r"25 tokens: the scales \(1, 3, 5\) hold 35"):
        tokenizer.decode(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(InputError, match="11 vectors are not those of the first scales"):
        tokenizer.decode_embeddings(torch.zeros(1, 11, 4), LAYOUT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scales": tuple(range(1, 16))}, "15 scales: a multi-scale tokenizer has from 2 to 14"),
        ({"scales": (5,)}, "1 scales: a multi-scale tokenizer has from 2 to 14"),
        ({"scales": (5, 3)}, "scales go from coarse to fine"),
        ({"scales": (0, 3)}, "at least one scale, and one row"),
        ({"shared_convolutions": 3}, "3 convolutions shared by the scales: it must be 4, or 1"),
        ({"l2_normalize": True}, "searches by distance: leave out l2_normalize"),
    ],
)
def test_settings_without_meaning(settings, message):
    with pytest.raises(InputError, match=message):
        MultiScaleTokenizer(MultiScaleConfig(32, (1,), 1, 1, z_channels=4, codebook_size=4, codebook_dim=4, **settings))
