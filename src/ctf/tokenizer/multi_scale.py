"""MultiScaleTokenizer: images to tokens on grids of growing size and back (VAR, arXiv 2404.02905, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.errors import InputError
from ctf.layout import Layout
from ctf.tokenizer.config import MultiScaleConfig, TokenizerConfig
from ctf.tokenizer.convolutional import ConvolutionalTokenizer
from ctf.tokenizer.quantizer import Quantized, Quantizer
from ctf.tokenizer.residual import ResidualSum, to_map, to_rows


class MultiScaleQuantizer(Quantizer):
    """One codebook for all scales: each scale quantises what the sum of the coarser ones left over."""

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__(config.codebook_size, config.codebook_dim, config.l2_normalize)
        self.residual = ResidualSum(config.codebook_dim, config.shared_convolutions)
        self.scales = Layout.square(*config.scales)
        self.residual.convolution_of_scale(self.scales)  # refuses too many scales now, not at the first image

    def search(self, features: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Quantise float32 features (B, H·W, d) scale by scale (VAR, algorithm 1).

        Yields:
            Of each scale the vectors that were searched (B, n, d), their tokens (B, n), and f̂ (B, H·W, d) with the
            gradient of codewords and convolutions.
        """
        rest = to_map(features.detach(), self.scales.finest)
        f_hat = torch.zeros_like(rest)
        for scale in range(len(self.scales)):
            vectors = self.residual.input_of_scale(rest, scale, self.scales)  # (B, n, d)
            tokens = self.nearest(vectors)  # (B, n)
            added = self.residual.contribution(F.embedding(tokens, self.weight), scale, self.scales)
            rest, f_hat = rest - added.detach(), f_hat + added
            yield vectors, tokens, to_rows(f_hat)

    def forward(self, features: Tensor) -> Quantized:
        """Quantise features (B, H·W, d); the losses are means over f̂ after each scale."""
        with torch.autocast(features.device.type, enabled=False):
            f = features.float()
            searched, tokens, sums = (list(parts) for parts in zip(*self.search(f), strict=True))
            found = torch.cat(tokens, 1)
            self._mark_used(found)
            codebook = torch.stack([F.mse_loss(f_hat, f.detach()) for f_hat in sums]).mean() + self._zero()
            commitment = torch.stack([F.mse_loss(f, f_hat.detach()) for f_hat in sums]).mean()
            vectors = f + (sums[-1] - f).detach()  # straight-through
            return Quantized(vectors, found, torch.cat(searched, 1), codebook, commitment)

    @torch.no_grad()
    def to_cluster(self, features: Tensor) -> Tensor:
        """Vectors that each scale would search if every vector were a codeword: (B, H·W, d) → (B · N, d)."""
        rest, found = to_map(features.float(), self.scales.finest), []
        for scale in range(len(self.scales)):
            found.append(self.residual.input_of_scale(rest, scale, self.scales))
            rest = rest - self.residual.contribution(found[-1], scale, self.scales)
        return torch.cat(found, 1).flatten(0, 1)


class MultiScaleTokenizer(ConvolutionalTokenizer):
    """VAR's tokenizer: tokens (B, N) scale by scale, row by row within a scale; N is the sum of the squared sides."""

    family = "multi-scale"
    config_type = MultiScaleConfig
    kernel_size = 3
    config: MultiScaleConfig
    quantizer: MultiScaleQuantizer

    @classmethod
    def new(cls, model: TokenizerConfig, **own: Any) -> ConvolutionalTokenizer:
        return super().new(model, **own, l2_normalize=False)  # which the family vq alone has

    @property
    def residual_fingerprint(self) -> str:
        return self.quantizer.residual.fingerprint(self.codebook)

    def build_quantizer(self) -> MultiScaleQuantizer:
        return MultiScaleQuantizer(self.config)

    def layout(self, image_size: Sequence[int]) -> Layout:
        grid, scales = super().layout(image_size).finest, self.quantizer.scales
        if grid != scales.finest:
            height, width = self.image_size(scales)
            raise InputError(
                f"images of {image_size[0]} × {image_size[1]} pixels: the scales {self.config.scales} of this "
                f"tokenizer take {height} × {width}"
            )
        return scales

    def layout_of(self, num_tokens: int) -> Layout:
        scales = self.quantizer.scales
        if num_tokens != scales.num_tokens:
            raise InputError(f"{num_tokens} tokens: the scales {self.config.scales} hold {scales.num_tokens}")
        return scales

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        features = self.features(self.check_images(images)).float()
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([tokens for _, tokens, _ in self.quantizer.search(features)], 1)

    def decode_embeddings(self, vectors: Tensor, layout: Layout) -> Tensor:
        """Vectors (B, n, d) of all scales of `layout`, or of the first ones for a preview → (B, 3, H, W)."""
        return self.decode_features(to_rows(self.quantizer.residual(vectors, layout)), layout.finest)

    def decoder_parts(self) -> list[torch.nn.Module]:
        return [self.quantizer.residual, *super().decoder_parts()]
