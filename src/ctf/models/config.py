"""Sizes and settings of the Transformer, free of heavy imports so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ctf.errors import InputError

#: name: (layers, heads, dim). B to 3B are LlamaGen's; the rest are for small grids and CPUs.
MODEL_SIZES: dict[str, tuple[int, int, int]] = {
    "nano": (4, 4, 128),
    "micro": (6, 4, 192),
    "mini": (8, 6, 288),
    "S": (12, 6, 384),
    "B": (12, 12, 768),  #   111 M with a vocabulary of 16,384
    "L": (24, 16, 1024),  #  343 M
    "XL": (36, 20, 1280),  # 775 M
    "XXL": (48, 24, 1536),  # 1.4 B
    "3B": (24, 32, 3200),  # 3.1 B
}


@dataclass(frozen=True)
class TransformerConfig:
    """One architecture for the three models: baseline, coarse and fine.

    Attributes:
        input_vocab: number of input tokens: K for the baseline, M for the coarse and the fine model.
        output_vocab: number of output tokens: K for the baseline and the fine model, M for the coarse one.
        grid: (rows, columns) of tokens; N = rows · columns.
        num_classes: class labels 0 … num_classes − 1; the label `num_classes` means unconditional.
        layers: Transformer blocks.
        heads: attention heads.
        dim: width of the residual stream.
        kv_heads: key and value heads for grouped-query attention; None means as many as `heads`.
        attention: "causal" predicts token i from the label and tokens < i; "full" sees all tokens.
        rope_base: base of the 2-D rotary embedding.
        norm_eps: epsilon of RMSNorm.
        ffn_multiple: the feed-forward width is ⌊8/3 · dim⌋ rounded up to a multiple of this.
        dropout: probability on embeddings, attention output and feed-forward output, in training.
        class_dropout: probability of replacing the label by the unconditional one, in training.
    """

    input_vocab: int
    output_vocab: int
    grid: tuple[int, int]
    num_classes: int
    layers: int
    heads: int
    dim: int
    kv_heads: int | None = None
    attention: Literal["causal", "full"] = "causal"
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    ffn_multiple: int = 256
    dropout: float = 0.1
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        sizes = (self.input_vocab, self.output_vocab, self.num_classes, self.layers, self.heads, self.dim, *self.grid)
        if min(*sizes, self.ffn_multiple) < 1 or (self.kv_heads is not None and self.kv_heads < 1):
            raise InputError(f"model: every size must be positive, got {self}")
        if not (0 <= self.dropout <= 1 and 0 <= self.class_dropout <= 1):
            raise InputError(f"model: dropout {self.dropout} and class_dropout {self.class_dropout} must be in [0, 1]")
        if self.attention not in ("causal", "full"):
            raise InputError(f"model: attention {self.attention!r} does not exist: choose causal or full")
        if self.dim % self.heads or self.head_dim % 4:
            raise InputError(
                f"model: dim {self.dim} over {self.heads} heads must be a multiple of 4 per head (2-D rotary embedding)"
            )
        if self.heads % self.num_kv_heads:
            raise InputError(f"model: {self.heads} heads are not a multiple of {self.num_kv_heads} kv_heads")
        if self.attention == "causal" and self.input_vocab != self.output_vocab:
            raise InputError(
                "model: a causal model reads what it writes, so input_vocab and output_vocab must be equal"
            )

    @classmethod
    def of_size(cls, size: str, **settings: object) -> TransformerConfig:
        """A named size from `MODEL_SIZES` with the remaining settings given by keyword.

        Raises:
            InputError: no such size.
        """
        if size not in MODEL_SIZES:
            raise InputError(f"model size {size!r} does not exist: choose one of {', '.join(MODEL_SIZES)}")
        layers, heads, dim = MODEL_SIZES[size]
        return cls(layers=layers, heads=heads, dim=dim, **settings)  # type: ignore[arg-type]

    @property
    def num_tokens(self) -> int:
        """N, tokens per image."""
        return self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def ffn_dim(self) -> int:
        hidden = 2 * (4 * self.dim) // 3
        return -(-hidden // self.ffn_multiple) * self.ffn_multiple
