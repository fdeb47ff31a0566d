"""VQTokenizer: images to tokens and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import load_tensors, save_tensors
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
        """(K, d), the vectors that the search uses: l2-normalised where the tokenizer normalises."""
        return self.quantizer.codebook.detach()

    def features(self, images: Tensor) -> Tensor:
        """Encoder output before quantisation: (B, 3, H, W) → (B, h·w, d)."""
        return from_grid(self.quant_conv(self.encoder(images)))

    def paint(self, vectors: Tensor, height: int, width: int) -> Tensor:
        """Decode codeword vectors (B, h·w, d) on a grid of `height` × `width` tokens to (B, 3, H, W)."""
        return self.decoder(self.post_quant_conv(to_grid(vectors, height, width)))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruct with gradients, for training: (B, 3, H, W) → the same, and the quantisation."""
        quantized = self.quantizer(self.features(images))
        f = self.config.downsampling
        return self.paint(quantized.vectors, images.shape[2] // f, images.shape[3] // f), quantized

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] → int64 tokens (B, h·w).

        Raises:
            InputError: the shape is not (B, 3, H, W) with sides that are multiples of the downsampling.
        """
        f = self.config.downsampling
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % f or images.shape[3] % f:
            raise InputError(
                f"images of shape {tuple(images.shape)}: the tokenizer takes (B, 3, H, W), H and W multiples of {f}"
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
        if tokens.ndim != 2:
            raise InputError(f"tokens of shape {tuple(tokens.shape)}: decode takes (B, h·w)")
        height, width = grid or square_grid(tokens.shape[1])
        if height * width != tokens.shape[1]:
            raise InputError(f"{tokens.shape[1]} tokens do not fill a grid of {height} × {width}")
        size = self.config.codebook_size
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= size):
            raise InputError(f"tokens range from {int(tokens.min())} to {int(tokens.max())}, the codebook has {size}")
        return self.paint(F.embedding(tokens, self.codebook).to(self.post_quant_conv.weight.dtype), height, width)

    def save(self, path: str | Path) -> None:
        """Write weights and settings to one safetensors file."""
        save_tensors(path, self.state_dict(), {"ctf": "tokenizer", "config": json.dumps(dataclasses.asdict(self.config))})

    @classmethod
    def load(cls, path: str | Path) -> VQTokenizer:
        """Read what `save` wrote; weights stored in half precision are widened to float32.

        Raises:
            InputError: missing, truncated, or not a tokenizer file.
        """
        tensors, metadata = load_tensors(path)
        if metadata.get("ctf") != "tokenizer":
            raise InputError(f"{path} is not a ctf tokenizer (it says {metadata.get('ctf', 'nothing')!r})")
        tokenizer = cls(TokenizerConfig(**json.loads(metadata["config"])))
        tokenizer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return tokenizer.eval()


def square_grid(count: int) -> tuple[int, int]:
    """The side of a square grid of `count` tokens, twice.

    Raises:
        InputError: `count` is not a square.
    """
    side = round(count**0.5)
    if side * side != count:
        raise InputError(f"{count} tokens are not a square grid: say the grid (height, width)")
    return side, side
