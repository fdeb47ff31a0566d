"""Sizes of the Transformer, and how to compute with it; free of heavy imports so that `--help` stays fast."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ctf.errors import InputError
from ctf.layout import Layout

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

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

Dtype = Literal["float32", "bfloat16"]
#: How weights are stored for sampling, other than as they are: 8-bit integers with a scale per output.
Quantize = Literal["int8"]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Settings of either architecture, and sizes that follow from them.

    Attributes:
        output_vocab: number of different labels that it predicts.
        layout: where the N tokens of an image lie.
        num_classes: class labels 0 … num_classes − 1; the label `num_classes` means unconditional.
        layers: Transformer blocks.
        heads: attention heads.
        dim: width of the residual stream.
        given_vocab: number of different labels of a coarser level that the model is given; 0 for none.
        class_dropout: probability of replacing the label by the unconditional one, in training.
    """

    output_vocab: int
    layout: Layout
    num_classes: int
    layers: int
    heads: int
    dim: int
    given_vocab: int = 0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", Layout(self.layout))
        for name, value in vars(self).items():
            if type(value) is int and value < (0 if name in ("input_vocab", "given_vocab") else 1):
                raise InputError(f"model: every size must be positive, got {self}")
            if name in ("dropout", "drop_path", "class_dropout") and not 0 <= (value or 0) <= 1:
                raise InputError(f"model: {name} {value} must be in [0, 1]")

    @classmethod
    def sizes(cls) -> dict[str, tuple[int, int, int]]:
        """(layers, heads, dim) of each named size."""
        return MODEL_SIZES

    @classmethod
    def of_size(cls, size: str, **settings: Any) -> Self:
        """A named size, with the remaining settings by keyword. Raises InputError: no such size."""
        if size not in (sizes := cls.sizes()):
            raise InputError(f"model size {size!r} does not exist: choose one of {', '.join(sizes)}")
        layers, heads, dim = sizes[size]
        return cls(layers=layers, heads=heads, dim=dim, **settings)

    @property
    def size_name(self) -> str:
        """The name in `sizes` of this depth and width; "custom" without one."""
        names = {(layers, dim): name for name, (layers, _, dim) in self.sizes().items()}
        return names.get((self.layers, self.dim), "custom")

    @property
    def num_tokens(self) -> int:
        """N, tokens per image."""
        return self.layout.num_tokens

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.heads


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(NetworkConfig):
    """One architecture for every kind of stage that is a Transformer; more attributes are those of `NetworkConfig`.

    Attributes:
        input_vocab: number of different tokens that the model reads; 0 for none. A full model may read one more than
            it predicts, the mask token, whose embedding is rotated by its position; or one more for each of several
            scales.
        kv_heads: key and value heads for grouped-query attention; None means as many as `heads`.
        attention: "causal" predicts token i from the label and tokens < i; "full" sees all positions; "groups" predicts
            a group of positions from the label and earlier groups, in any order.
        rope_base: base of the 2-D rotary embedding.
        norm_eps: epsilon of RMSNorm.
        ffn_multiple: the feed-forward width is ⌊8/3 · dim⌋ rounded up to a multiple of this.
        dropout: probability on embeddings, attention output and feed-forward output, in training.
    """

    input_vocab: int
    kv_heads: int | None = None
    attention: Literal["causal", "full", "groups"] = "causal"
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    ffn_multiple: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.input_vocab or self.given_vocab):
            raise InputError(f"model: it must read tokens or given labels, got {self}")
        if self.attention not in ("causal", "full", "groups"):
            raise InputError(f"model: attention {self.attention!r} does not exist: choose causal, full or groups")
        if self.dim % self.heads or self.head_dim % 4:
            raise InputError(
                f"model: dim {self.dim} over {self.heads} heads must be a multiple of 4 per head (2-D rotary embedding)"
            )
        if self.heads % self.num_kv_heads:
            raise InputError(f"model: {self.heads} heads are not a multiple of {self.num_kv_heads} kv_heads")
        if self.attention == "full" and self.input_vocab - self.output_vocab > 1 and not self.hidden_by_scale:
            raise InputError(
                f"model: it reads {self.input_vocab} tokens and predicts {self.output_vocab}: one more at most, or one "
                "for each of several scales"
            )
        if self.attention != "full" and self.input_vocab != self.output_vocab:
            raise InputError(
                f"model: one with {self.attention} attention reads what it writes, so input_vocab and output_vocab "
                "must be equal"
            )

    @property
    def hidden_by_scale(self) -> bool:
        """Whether hidden tokens of each scale have an embedding of their own."""
        return self.input_vocab - self.output_vocab == len(self.layout) > 1

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def ffn_dim(self) -> int:
        hidden = 2 * (4 * self.dim) // 3
        return -(-hidden // self.ffn_multiple) * self.ffn_multiple

    @property
    def positions(self) -> int:
        """Length of a sequence in training: N under causal attention, where the label takes the place of the last
        token, N + 1 under full attention, up to 2·N where each position has a query."""
        return {"causal": self.num_tokens, "full": self.num_tokens + 1, "groups": 2 * self.num_tokens}[self.attention]

    @property
    def block_weights(self) -> int:
        """Weights of all blocks' products: attention and feed-forward."""
        attention = self.dim * (2 * self.heads + 2 * self.num_kv_heads) * self.head_dim
        return self.layers * (attention + 3 * self.dim * self.ffn_dim)


@dataclass(frozen=True)
class Compute:
    """Precision and compilation of sampling, which converts copies of the weights.

    Attributes:
        dtype: of the stages' products and caches: "float32", "bfloat16", or "auto", which is bfloat16 on a GPU and
            float32 on a CPU. Norms, guidance and sampling are always float32.
        quantize: "int8" weights in every stage, on a CPU.
        compile: on a CPU, compile a decoding step: about 30 s of warm-up and a C++ compiler; saves a few % (float32),
            20 % (int8). A GPU always compiles stages and decoder.
        decoder_dtype: of the tokenizer's convolutions; published results use a float32 decoder.

    Raises:
        InputError: no such choice.
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    quantize: Quantize | None = None
    compile: bool = False
    decoder_dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        choices = {"dtype": ("auto", *get_args(Dtype)), "quantize": (None, "int8"), "decoder_dtype": get_args(Dtype)}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise InputError(f"{name} {value!r} does not exist: choose one of {', '.join(map(str, allowed))}")

    def on(self, device: torch.device) -> Compute:
        """A copy with a dtype in place of "auto"."""
        if self.dtype != "auto":
            return self
        return dataclasses.replace(self, dtype="bfloat16" if device.type == "cuda" else "float32")

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as PyTorch's; "auto" must have been resolved by `on`."""
        import torch

        return getattr(torch, self.dtype)
