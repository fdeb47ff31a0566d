"""VQTokenizer: images to tokens on one grid and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.layout import Layout
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.convolutional import ConvolutionalTokenizer
from ctf.tokenizer.quantizer import Quantizer


class VQTokenizer(ConvolutionalTokenizer):
    """LlamaGen's tokenizer: each feature of the encoder becomes its nearest codeword (paper, section 2.1)."""

    family = "vq"
    config_type = TokenizerConfig
    kernel_size = 1

    def build_quantizer(self) -> Quantizer:
        c = self.config
        return Quantizer(c.codebook_size, c.codebook_dim, c.l2_normalize)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return self.quantizer.nearest(self.project(self.features(self.check_images(images)).float()))

    def decode_embeddings(self, vectors: Tensor, layout: Layout) -> Tensor:
        return self.decode_features(vectors, layout.finest)
