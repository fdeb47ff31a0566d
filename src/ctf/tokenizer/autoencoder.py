"""Encoder and decoder: LlamaGen's convolutional VQGAN with free width, depth and patch size."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ctf.tokenizer.config import TokenizerConfig


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm → swish → conv, twice, around a skip connection."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = group_norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, channels_in, H, W) → (B, channels_out, H, W)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, H·W, 3·C)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # (B, 1, H·W, C) each
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj(y.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 convolution; the padding (0, 1, 0, 1) is part of LlamaGen's weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, with attention after each at the deepest, then a resize."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, attention: bool, resize: nn.Module) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b) for a, b in pairwise(widths))
        self.attention = nn.ModuleList(
            AttentionBlock(channels_out) if attention else nn.Identity() for _ in range(blocks)
        )
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attention, strict=True):
            x = attention(block(x))
        return self.resize(x)


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels))


class Encoder(nn.Module):
    """Images (B, 3, H, W) → features (B, z_channels, H/f, W/f); eq. 1."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in (1, *config.channel_multipliers)]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, widths[0], 3, padding=1)
        last = len(config.channel_multipliers) - 1
        self.levels = nn.ModuleList(
            Level(a, b, config.encoder_blocks, i == last, nn.Identity() if i == last else Downsample(b))
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.middle = middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        for level in self.levels:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """Features (B, z_channels, h, w) → images (B, 3, f·h, f·w), not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.base_channels * m for m in (*config.channel_multipliers, config.channel_multipliers[-1])][::-1]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.middle = middle(widths[0])
        last = len(config.channel_multipliers) - 1
        self.levels = nn.ModuleList(
            Level(a, b, config.decoder_blocks, i == 0, nn.Identity() if i == last else Upsample(b))
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)
