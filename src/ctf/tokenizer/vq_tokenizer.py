"""VQTokenizer: images to tokens and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.tokenizer.autoencoder import Decoder, Encoder
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.decode import decoded_together
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.quantizer import Quantized, Quantizer


class VQTokenizer(Tokenizer):
    """Encoder, codebook and decoder of a convolutional VQGAN (paper, section 2.1)."""

    family = "vq"
    config_type = TokenizerConfig
    config: TokenizerConfig

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
        """Encoder output before quantisation: (B, 3, H, W) → (B, N, d)."""
        return self.quant_conv(self.encoder(images)).flatten(2).transpose(1, 2)

    def decode_embeddings(self, vectors: Tensor, layout: Layout) -> Tensor:
        features = vectors.transpose(1, 2).unflatten(2, layout.finest)  # (B, d, rows, columns), in channels-last format
        return self.decoder(self.post_quant_conv(features.to(self.post_quant_conv.weight.dtype)))

    def forward(self, images: Tensor, quantize: bool = True) -> tuple[Tensor, Quantized]:
        """Reconstruct with gradients, for training: (B, 3, H, W) → the same, and the quantisation.

        With `quantize=False` the features pass unquantised, for the first steps of a run.
        """
        features = self.features(images)
        quantized = self.quantizer(features) if quantize else self.quantizer.bypass(features)
        return self.decode_embeddings(quantized.vectors, self.layout(images.shape[2:])), quantized

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise InputError(f"images of shape {tuple(images.shape)}: the tokenizer takes (B, 3, H, W), B positive")
        self.layout(images.shape[2:])
        return self.quantizer.nearest(self.project(self.features(images).float()))

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
