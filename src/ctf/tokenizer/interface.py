"""The interface of every family of tokenizers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.files import load_module, save_module
from ctf.layout import Layout, square_layout

Family = TypeVar("Family", bound="Tokenizer")


class Tokenizer(nn.Module, ABC):
    """Images ⇄ tokens of a codebook of K vectors of dimension d.

    Images are float (B, 3, H, W) in [-1, 1] with H and W multiples of `downsampling`; tokens are int64 (B, N),
    in the order of their `Layout`: here one grid, row by row. A family of several scales overrides `layout` and
    `layout_of`. A new family implements what is abstract here and is made known by
    `ctf.tokenizer.registry.register_tokenizer`.

    Attributes:
        family: the family's tag in a tokenizer file.
        config_type: dataclass of the family's settings.
        config: the settings of this tokenizer; `type(self)(config)` builds another like it.
    """

    family: ClassVar[str]
    config_type: ClassVar[type]
    config: Any

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """float32 (K, d): the vectors that the search compares with, the same on every machine."""

    @property
    def codebook_size(self) -> int:
        """K."""
        return len(self.codebook)

    @property
    def residual_fingerprint(self) -> str | None:
        """16 hexadecimal digits of codebook and convolutions between scales; None with one scale."""
        return None

    @property
    @abstractmethod
    def downsampling(self) -> int:
        """f: pixels per token and side."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) → int64 tokens (B, N). Raises InputError: images of another shape."""

    @abstractmethod
    def decode_embeddings(self, vectors: Tensor, layout: Layout) -> Tensor:
        """Vectors (B, N, d) in the space of the codebook, of every scale of `layout` → (B, 3, H, W), not clamped."""

    @abstractmethod
    def decoding_memory(self, batch: int, layout: Layout, device_type: str, dtype: torch.dtype) -> int:
        """Bytes that `decode_images` takes for `batch` images in `dtype`: what `--batch_size auto` reckons with."""

    def decoder_parts(self) -> list[nn.Module]:
        """The modules whose weights decoding reads."""
        return [self]

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors (…, d), such as means of codewords, to the space of the codebook."""
        return vectors

    def embed(self, tokens: Tensor) -> Tensor:
        """int64 tokens (B, N) → their codewords (B, N, d), for `decode_embeddings`."""
        return F.embedding(tokens, self.codebook)

    @torch.no_grad()
    def decode(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        """Integer tokens (B, N) → float (B, 3, H, W), not clamped.

        Args:
            tokens: token indices in [0, K).
            layout: where they lie; by default `layout_of(N)`.

        Raises:
            InputError: a token is out of range, or the tokens do not fill the layout.
        """
        layout = self.check_tokens(tokens, layout)
        return self.decode_embeddings(self.embed(tokens.long()), layout)

    def check_tokens(self, tokens: Tensor, layout: Layout | None = None) -> Layout:
        """The layout that integer tokens (B, N) fill; arguments and errors as those of `decode`. Waits for a GPU."""
        if tokens.ndim != 2 or not tokens.numel():
            raise InputError(f"tokens of shape {tuple(tokens.shape)}: decode takes (B, N), B positive")
        tokens = tokens.long()
        layout = layout or self.layout_of(tokens.shape[1])
        if layout.num_tokens != tokens.shape[1]:
            raise InputError(f"{tokens.shape[1]} tokens do not fill the layout {layout}")
        size, low, high = self.codebook_size, int(tokens.min()), int(tokens.max())
        if low < 0 or high >= size:
            raise InputError(f"tokens range from {low} to {high}, the codebook has {size}")
        return layout

    def layout(self, image_size: Sequence[int]) -> Layout:
        """Layout of an image of (height, width) pixels. Raises InputError: the size does not fit."""
        (height, width), f = image_size, self.downsampling
        if height % f or width % f or min(height, width) < f:
            raise InputError(f"images of {height} × {width} pixels: the tokenizer takes multiples of {f}")
        return Layout([(height // f, width // f)])

    def layout_of(self, num_tokens: int) -> Layout:
        """Layout of N tokens by default: a square. Raises InputError: N is no such number."""
        return square_layout(num_tokens)

    def image_size(self, layout: Layout) -> tuple[int, int]:
        """(height, width) in pixels of what is decoded from a layout."""
        rows, columns = layout.finest
        return rows * self.downsampling, columns * self.downsampling

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, as `dtype`, family and settings to one safetensors file.

        Half precision rounds the codebook too: it becomes another codebook, with another fingerprint.
        """
        save_module(path, self, "tokenizer", self.config, dtype, {"family": self.family})

    @classmethod
    def load(cls: type[Family], path: str | Path) -> Family:
        """Read what `save` of this family wrote; weights stored in half precision are widened to float32.

        Raises:
            InputError: missing, truncated, or not a tokenizer file.
        """
        return load_module(path, "tokenizer", lambda config: cls(cls.config_type(**config)))
