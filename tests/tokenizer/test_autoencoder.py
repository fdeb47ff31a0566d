import math

import pytest
import torch
import torch.nn.functional as F

from ctf.errors import InputError
from ctf.tokenizer.autoencoder import AttentionBlock, Decoder, Downsample, Encoder, Upsample
from ctf.tokenizer.config import TokenizerConfig


def small(**settings):
    return TokenizerConfig(**{"base_channels": 32, "z_channels": 16, "codebook_size": 64, **settings})


@pytest.mark.parametrize(
    ("config", "downsampling"),
    [
        (small(channel_multipliers=(1,)), 1),
        (small(channel_multipliers=(1, 2)), 2),
        (small(channel_multipliers=(1,), patch_size=8), 8),
        (small(channel_multipliers=(1, 2), patch_size=4, encoder_blocks=1, decoder_blocks=2), 8),
        (small(channel_multipliers=(2, 1, 3), patch_size=2, z_channels=5), 8),
    ],
)
def test_shapes(config, downsampling):
    assert config.downsampling == downsampling
    z = Encoder(config)(torch.randn(2, 3, 16, 24))
    assert z.shape == (2, config.z_channels, 16 // downsampling, 24 // downsampling)
    assert Decoder(config)(z).shape == (2, 3, 16, 24)


def test_attention_is_softmax_attention():
    torch.manual_seed(0)
    block = AttentionBlock(32).double()
    torch.nn.init.normal_(block.norm.weight)
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)

    normal = F.group_norm(x, 32, block.norm.weight, block.norm.bias, eps=1e-6)
    q, k, v = (
        torch.einsum("oc,bchw->bohw", weight.flatten(1), normal) + bias[:, None, None]
        for weight, bias in zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True)
    )
    out = torch.empty_like(x)
    for b in range(2):
        for i in range(3):
            for j in range(4):
                scores = torch.einsum("c,chw->hw", q[b, :, i, j], k[b]) / math.sqrt(32)
                weights = scores.exp() / scores.exp().sum()
                out[b, :, i, j] = torch.einsum("hw,chw->c", weights, v[b])
    proj = torch.einsum("oc,bchw->bohw", block.proj.weight.flatten(1), out) + block.proj.bias[:, None, None]
    torch.testing.assert_close(block(x), x + proj)


def test_downsample_takes_3x3_windows_from_the_top_left():
    torch.manual_seed(0)
    layer = Downsample(2).double()
    x = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    padded = torch.zeros(1, 2, 5, 7, dtype=torch.float64)
    padded[:, :, :4, :6] = x  # zeros at the bottom and on the right only
    expected = torch.empty(1, 2, 2, 3, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            window = padded[0, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[0, :, i, j] = (layer.conv.weight * window).sum((1, 2, 3)) + layer.conv.bias
    torch.testing.assert_close(layer(x), expected)


def test_upsample_repeats_pixels():
    torch.manual_seed(0)
    layer = Upsample(2)
    x = torch.randn(1, 2, 3, 4)
    torch.testing.assert_close(layer(x), layer.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channel_multipliers": ()}, "channel_multipliers is empty"),
        ({"base_channels": 48}, "not a multiple of 32"),
        ({"patch_size": 0}, "positive integers"),
        ({"codebook_size": 1}, "at least 2"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(InputError, match=message):
        TokenizerConfig(**settings)
