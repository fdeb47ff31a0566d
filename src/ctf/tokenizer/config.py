"""The tokenizer's settings, free of heavy imports so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctf.errors import InputError
from ctf.layout import Layout

#: The networks that LPIPS comes over.
Network = Literal["vgg", "alex"]


@dataclass(frozen=True)
class TokenizerConfig:
    """A convolutional VQGAN in LlamaGen's shape; the defaults are LlamaGen's VQ-16.

    Attributes:
        base_channels: channels at full resolution (more precisely: at the resolution after `patch_size`).
        channel_multipliers: channels of each level as multiples of `base_channels`; between two levels
            the resolution halves.
        encoder_blocks: residual blocks per level of the encoder.
        decoder_blocks: residual blocks per level of the decoder.
        z_channels: channels of the encoder's output, before the 1×1 convolution to `codebook_dim`.
        codebook_size: K, the number of codewords.
        codebook_dim: d, the dimension of a codeword.
        l2_normalize: search and decode on the unit sphere, as LlamaGen does.
        patch_size: pixels per side that are folded into channels before the first convolution and
            unfolded after the last one. 1 is LlamaGen; 4 makes a tokenizer that a laptop can train.
    """

    base_channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    z_channels: int = 256
    codebook_size: int = 16_384
    codebook_dim: int = 8
    l2_normalize: bool = True
    patch_size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_multipliers", tuple(self.channel_multipliers))
        if not self.channel_multipliers:
            raise InputError("tokenizer: channel_multipliers is empty; give one multiplier per level, e.g. [1, 2]")
        blocks, patch = (self.encoder_blocks, self.decoder_blocks), (self.codebook_dim, self.patch_size)
        sizes = [*self.channel_multipliers, self.base_channels, self.z_channels, *blocks, *patch]
        if not all(isinstance(size, int) and size > 0 for size in sizes) or self.codebook_size < 2:
            raise InputError(f"tokenizer: sizes are positive integers and codebook_size at least 2, got {self}")
        for multiplier in self.channel_multipliers:
            if self.base_channels * multiplier % 32:
                raise InputError(
                    f"tokenizer: base_channels × multiplier = {self.base_channels} × {multiplier} is not a multiple "
                    "of 32, the number of GroupNorm groups"
                )

    @property
    def downsampling(self) -> int:
        """f: pixels per token and side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


@dataclass(frozen=True)
class MultiScaleConfig(TokenizerConfig):
    """VAR's multi-scale residual tokenizer; the defaults are those of its published weights at 256 × 256 pixels.

    Attributes:
        scales: side of each square scale, coarsest first; the last is that of the encoder's feature map.
        shared_convolutions: how many convolutions the scales share: 4, or 1 for all scales.
        l2_normalize: False; VAR searches by distance.
    """

    base_channels: int = 160
    z_channels: int = 32
    codebook_size: int = 4096
    codebook_dim: int = 32
    l2_normalize: bool = False
    scales: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    shared_convolutions: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scales", tuple(side for side, _ in Layout.square(*self.scales)))
        if self.l2_normalize:
            raise InputError("tokenizer: a multi-scale tokenizer searches by distance: leave out l2_normalize")


def scales_up_to(side: int) -> tuple[int, ...]:
    """Sides of scales for a grid of so many tokens a side: VAR's for 256 × 256 pixels, as far as they are smaller."""
    return (*(scale for scale in MultiScaleConfig.scales if scale < side), side)


#: Named settings. `vq16` and `vq8` are LlamaGen's; their checkpoints load through `ctf.interop.llamagen`.
TOKENIZER_PRESETS: dict[str, TokenizerConfig] = {
    "vq16": TokenizerConfig(),
    "vq8": TokenizerConfig(channel_multipliers=(1, 2, 2, 4)),
}
