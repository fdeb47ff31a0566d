"""VQTokenizer: images to tokens and back."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import load_module, save_module
from ctf.tokenizer.autoencoder import Decoder, Encoder, from_grid, to_grid
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.quantizer import Quantized, Quantizer


class VQTokenizer(nn.Module):
    """Encoder, codebook and decoder (paper, section 2.1).

    Images are float (B, 3, H, W) in [-1, 1] with H and W multiples of `config.downsampling`; tokens are
    int64 (B, h·w), row by row.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.quantizer = Quantizer(config.codebook_size, config.codebook_dim, config.l2_normalize)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)
        self.decoder = Decoder(config)

    @property
    def codebook(self) -> Tensor:
        """(K, d), the vectors that the search uses: l2-normalised where the tokenizer normalises.

        Normalised in float64 on the CPU, so that every machine rounds to the same float32 values:
        coarse maps and token sets know their codebook by its hash.
        """
        weight = self.quantizer.weight.detach()
        return self.quantizer.project(weight.cpu().double()).float().to(weight.device)

    def features(self, images: Tensor) -> Tensor:
        """Encoder output before quantisation: (B, 3, H, W) → (B, h·w, d)."""
        return from_grid(self.quant_conv(self.encoder(images)))

    def paint(self, vectors: Tensor, height: int, width: int) -> Tensor:
        """Decode codeword vectors (B, h·w, d) on a grid of `height` × `width` tokens to (B, 3, H, W)."""
        grid = to_grid(vectors, height, width).to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(grid))

    def forward(self, images: Tensor, quantize: bool = True) -> tuple[Tensor, Quantized]:
        """Reconstruct with gradients, for training: (B, 3, H, W) → the same, and the quantisation.

        With `quantize=False` the features pass unquantised, for the first steps of a run.
        """
        features = self.features(images)
        quantized = self.quantizer(features) if quantize else self.quantizer.bypass(features)
        f = self.config.downsampling
        return self.paint(quantized.vectors, images.shape[2] // f, images.shape[3] // f), quantized

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → int64 tokens (B, h·w).

        Raises:
            InputError: the shape is not (B, 3, H, W) with sides that are multiples of the downsampling.
        """
        f = self.config.downsampling
        sides = images.shape[2:]
        if images.ndim != 4 or images.shape[1] != 3 or any(side % f for side in sides) or not images.numel():
            raise InputError(
                f"images of shape {tuple(images.shape)}: the tokenizer takes (B, 3, H, W), B positive, "
                f"H and W multiples of {f}"
            )
        return self.quantizer.nearest(self.quantizer.project(self.features(images).float()))

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """int64 tokens (B, h·w) → float (B, 3, H, W), not clamped.

        Args:
            tokens: token indices in [0, K).
            grid: (h, w); a square by default.

        Raises:
            InputError: a token is out of range, or the tokens do not fill the grid.
        """
        if tokens.ndim != 2 or not tokens.numel():
            raise InputError(f"tokens of shape {tuple(tokens.shape)}: decode takes (B, h·w), B positive")
        tokens = tokens.long()
        height, width = grid or square_grid(tokens.shape[1])
        if height * width != tokens.shape[1] or height < 1:
            raise InputError(f"{tokens.shape[1]} tokens do not fill a grid of {height} × {width}")
        size = self.config.codebook_size
        if int(tokens.min()) < 0 or int(tokens.max()) >= size:
            raise InputError(f"tokens range from {int(tokens.min())} to {int(tokens.max())}, the codebook has {size}")
        return self.paint(F.embedding(tokens, self.quantizer.codebook), height, width)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, as `dtype`, and settings to one safetensors file.

        Half precision rounds the codebook too: it becomes another codebook, with another fingerprint.
        """
        save_module(path, self, "tokenizer", self.config, dtype)

    @classmethod
    def load(cls, path: str | Path) -> VQTokenizer:
        """Read what `save` wrote; weights stored in half precision are widened to float32.

        Raises:
            InputError: missing, truncated, or not a tokenizer file.
        """
        return load_module(path, "tokenizer", lambda config: cls(TokenizerConfig(**config)))


def square_grid(count: int) -> tuple[int, int]:
    """The side of a square grid of `count` tokens, twice.

    Raises:
        InputError: `count` is not a square.
    """
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"{count} tokens are not a square grid: say the grid (height, width)")
    return side, side
