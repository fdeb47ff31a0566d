"""ConvolutionalTokenizer: what the families with LlamaGen's encoder and decoder have in common."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.layout import Grid, Layout
from ctf.tokenizer.autoencoder import Decoder, Encoder
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.decode import decoded_together
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.quantizer import Quantized, Quantizer


class ConvolutionalTokenizer(Tokenizer):
    """Encoder, quantizer and decoder of a convolutional VQGAN (paper, section 2.1); `ctf train tokenizer` trains it.

    Attributes:
        kernel_size: of the convolutions before and behind the quantizer.
    """

    config: TokenizerConfig
    kernel_size: ClassVar[int]

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        size, padding = self.kernel_size, self.kernel_size // 2
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, size, padding=padding)
        self.quantizer = self.build_quantizer()
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, size, padding=padding)
        self.decoder = Decoder(config)

    @classmethod
    def new(cls, model: TokenizerConfig, **own: Any) -> ConvolutionalTokenizer:
        """A tokenizer with random weights, of the shared settings `model` and those of this family alone."""
        return cls(cls.config_type(**dataclasses.asdict(model) | own))

    @abstractmethod
    def build_quantizer(self) -> Quantizer:
        """The family's quantizer for `config`, with random weights."""

    @property
    def codebook(self) -> Tensor:
        """(K, d), the vectors that the search uses: l2-normalised where the tokenizer normalises.

        Normalised in float64 on the CPU, so that every machine rounds to the same float32 values:
        coarse maps and token sets know their codebook by its hash.
        """
        weight = self.quantizer.weight.detach()
        return self.project(weight.cpu().double()).float().to(weight.device)

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @property
    def downsampling(self) -> int:
        return self.config.downsampling

    def project(self, vectors: Tensor) -> Tensor:
        return self.quantizer.project(vectors)

    def embed(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.quantizer.codebook)

    def features(self, images: Tensor) -> Tensor:
        """Encoder output before quantisation: (B, 3, f·H, f·W) → (B, H·W, d)."""
        return self.quant_conv(self.encoder(images)).flatten(2).transpose(1, 2)

    def decode_features(self, vectors: Tensor, grid: Grid) -> Tensor:
        """Quantised features (B, H·W, d) on a grid (H, W) → images (B, 3, f·H, f·W), not clamped."""
        features = vectors.transpose(1, 2).unflatten(2, grid)  # (B, d, rows, columns), in channels-last format
        return self.decoder(self.post_quant_conv(features.to(self.post_quant_conv.weight.dtype)))

    def forward(self, images: Tensor, quantize: bool = True) -> tuple[Tensor, Quantized]:
        """Reconstruct with gradients, for training: (B, 3, f·H, f·W) → the same, and the quantisation.

        With `quantize=False` the features pass unquantised, for the first steps of a run.
        """
        features = self.features(images)
        quantized = self.quantizer(features) if quantize else self.quantizer.bypass(features)
        return self.decode_features(quantized.vectors, self.layout(images.shape[2:]).finest), quantized

    def check_images(self, images: Tensor) -> Tensor:
        """The images, if they are (B, 3, H, W) with B positive and a size that fits; InputError if not."""
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise InputError(f"images of shape {tuple(images.shape)}: the tokenizer takes (B, 3, H, W), B positive")
        self.layout(images.shape[2:])
        return images

    def decoder_parts(self) -> list[nn.Module]:
        return [self.post_quant_conv, self.decoder]

    def decoding_memory(self, batch: int, layout: Layout, device_type: str, dtype: torch.dtype) -> int:
        """Bytes: activations of the decoder at full resolution, and the images of the batch."""
        c, (height, width) = self.config, self.image_size(layout)
        # A residual block at full resolution holds four tensors: its input, the first half's output, and two of the
        # second; two more are what a convolution reorders on a CPU, or its workspace on a GPU. A CPU's allocator keeps
        # some more.
        tensors = 8.5 if device_type == "cpu" else 6
        widest = c.base_channels * c.channel_multipliers[0] // c.patch_size**2
        together = min(batch, decoded_together(device_type))
        return int(together * height * width * tensors * widest * dtype.itemsize) + 3 * batch * height * width
