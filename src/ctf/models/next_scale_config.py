"""Sizes of VAR's Transformer (arXiv 2404.02905), which predicts scale after scale; free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ctf.errors import InputError
from ctf.models.config import MODEL_SIZES, NetworkConfig

if TYPE_CHECKING:
    from typing_extensions import Self

#: name: (layers, heads, dim), VAR's published models with a vocabulary of 4,096; others are those of `MODEL_SIZES`.
NEXT_SCALE_SIZES: dict[str, tuple[int, int, int]] = {
    "d12": (12, 12, 768),  #    133 M
    "d16": (16, 16, 1024),  #   310 M
    "d20": (20, 20, 1280),  #   601 M
    "d24": (24, 24, 1536),  #   1.0 B
    "d30": (30, 30, 1920),  #   2.0 B
    "d36-s": (36, 36, 2304),  # 2.4 B, with one modulation for all blocks
}
#: Largest depth: factor on the initial weights of γ, as in VAR.
GAMMA_START = {20: 1e-3, 24: 1e-4, 30: 1e-5}


@dataclass(frozen=True, kw_only=True)
class NextScaleConfig(NetworkConfig):
    """Settings of VAR's network, which predicts one scale of the layout in each step.

    More attributes are those of `NetworkConfig`.

    Attributes:
        codeword_dim: d, width of the vectors that it reads.
        convolutions: number of ψ, the tokenizer's convolutions that the scales share.
        shared_modulation: one product makes a modulation for all blocks, and each block adds its own offset.
        dropout: probability on attention output and feed-forward output, in training.
        drop_path: probability of skipping a branch of the last block for an image, in training. It falls linearly to 0
            at the first block. None is VAR's: depth / 240.
    """

    codeword_dim: int
    convolutions: int = 4
    shared_modulation: bool = False
    dropout: float = 0.0
    drop_path: float | None = None

    attention: ClassVar[str] = "scales"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise InputError(f"model: dim {self.dim} must be a multiple of {self.heads} heads")

    @classmethod
    def sizes(cls) -> dict[str, tuple[int, int, int]]:
        return {**MODEL_SIZES, **NEXT_SCALE_SIZES}

    @classmethod
    def of_size(cls, size: str, **settings: Any) -> Self:
        return super().of_size(size, **{"shared_modulation": size == "d36-s", **settings})

    @property
    def ffn_dim(self) -> int:
        return 4 * self.dim

    @property
    def positions(self) -> int:
        """Length of a sequence in training."""
        return self.num_tokens

    @property
    def block_weights(self) -> int:
        """Weights of all blocks' products over positions: attention and feed-forward."""
        return self.layers * 12 * self.dim**2

    @property
    def block_modulation_weights(self) -> int:
        """Weights of the products over class labels that modulate the blocks."""
        return 6 * (1 if self.shared_modulation else self.layers) * self.dim**2

    @property
    def modulation_weights(self) -> int:
        """Weights of all products over class labels: the modulation of the blocks and of the head's norm."""
        return self.block_modulation_weights + 2 * self.dim**2

    def drop_path_of(self, block: int) -> float:
        """Probability of skipping a branch of block number `block`."""
        last = self.layers / 240 if self.drop_path is None else self.drop_path
        return last * block / max(1, self.layers - 1)

    @property
    def gamma_start(self) -> float:
        """Factor on the initial weights of γ: deeper models start with smaller branches."""
        return next((factor for depth, factor in GAMMA_START.items() if self.layers <= depth), 5e-6)
