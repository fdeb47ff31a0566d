"""VAR's Transformer: all positions of a scale at once, given the scales before (arXiv 2404.02905)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.elementwise import elementwise, gelu
from ctf.models.attention import scale_attention
from ctf.models.cache import KeyValueCache, attend_cached_scale
from ctf.models.next_scale_config import NextScaleConfig
from ctf.models.transformer import Block, drop_classes

#: Largest logarithm of a head's scale. VAR's bound, which keeps softmax from becoming an argmax.
LARGEST_SCALE = math.log(100)


def normalize(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LN(x) · (1 + scale) + shift, with an LN without weights: (B, n, dim) and (B, 1, dim) → (B, n, dim), float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class ScaleAttention(nn.Module):
    """The products around attention with normalised queries and keys. Queries and values have biases, keys none."""

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.scale = nn.Parameter(torch.full((1, config.heads, 1, 1), math.log(4)))
        self.q_bias = nn.Parameter(torch.zeros(config.dim))
        self.v_bias = nn.Parameter(torch.zeros(config.dim))
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, dim) → queries, keys and values (B, heads, n, head_dim)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, n, dim) each
        biased = q + self.q_bias, k, (v + self.v_bias).type_as(v)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in biased)  # (B, heads, n, head_dim)
        # softmax(exp(scale) · q · k): √head_dim cancels the division in `attend`.
        factor = self.scale.clamp(max=LARGEST_SCALE).exp() * math.sqrt(v.shape[-1])  # (1, heads, 1, 1)
        q, k = F.normalize(q.float(), dim=-1) * factor, F.normalize(k.float(), dim=-1)
        return q.type_as(v), k.type_as(v), v


class ScaleFeedForward(nn.Module):
    """down(gelu(up(x))), with GELU in its tanh form."""

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.ffn_dim)
        self.down = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(elementwise(gelu, self.up(x)))


class ScaleBlock(Block):
    """A block modulated by the class label (AdaLN). `forward` takes a modulation in place of a rotary table."""

    attention: ScaleAttention  # type: ignore[assignment]
    ffn: ScaleFeedForward  # type: ignore[assignment]

    def __init__(self, config: NextScaleConfig, number: int) -> None:
        nn.Module.__init__(self)
        self.drop_path = config.drop_path_of(number)
        self.attention, self.ffn = ScaleAttention(config), ScaleFeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        if config.shared_modulation:
            self.offset = nn.Parameter(torch.randn(1, 1, 6, config.dim))
        else:
            self.modulation = nn.Linear(config.dim, 6 * config.dim)

    @property
    def random(self) -> bool:
        return self.training and max(self.dropout.p, self.drop_path) > 0

    def _run(self, x: Tensor, modulation: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        before, after = self.compiled or (type(self).before, type(self).after)
        return after(self, x, attend(*before(self, x, modulation)), modulation)

    def before(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the input (B, n, dim); `modulation` is γ₁, γ₂, s₁, s₂, b₁, b₂ (B, 1, 6, dim)."""
        _, _, scale, _, shift, _ = modulation.unbind(2)  # (B, 1, dim) each
        return self.attention(normalize(x, scale, shift))

    def after(self, x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:  # type: ignore[override]
        """The block's input (B, n, dim) and its attention (B, heads, n, head_dim) → its output."""
        gamma_attention, gamma_ffn, _, scale, _, shift = modulation.unbind(2)
        # x + γ₁ · attention(LN(x) · (1 + s₁) + b₁), then x + γ₂ · ffn(LN(x) · (1 + s₂) + b₂)
        x = x + self._branch(self.attention.out(y.transpose(1, 2).flatten(2)), gamma_attention)
        return x + self._branch(self.ffn(normalize(x, scale, shift)), gamma_ffn)

    def _branch(self, y: Tensor, gamma: Tensor) -> Tensor:
        """γ · y; in training, drop path makes it 0 for some images and larger for the others."""
        if not self.random:
            return gamma * y
        kept = torch.rand(len(y), 1, 1, device=y.device) >= self.drop_path  # (B, 1, 1)
        return gamma * self.dropout(y) * (kept / max(1 - self.drop_path, 1e-6))


def silu(y: Tensor) -> Tensor:
    """SiLU of rows (rows, dim), each the same bits whatever the number of rows.

    On a CPU PyTorch computes 32 numbers at a time (AVX-512) and rounds what is left over in another way: whole rows of
    such pieces leave nothing over.
    """
    dim = y.shape[-1]
    return elementwise(F.silu, F.pad(y, (0, -dim % 32)))[..., :dim]


class NextScaleTransformer(nn.Module):
    """VAR's network: vectors and class labels in, states before the head out.

    It reads no tokens. Its input for each scale but the first is the area-pooled sum of the contributions of the scales
    before, `x` below, which the stage makes.
    """

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.config, dim = config, config.dim
        self.label_embedding = nn.Embedding(config.num_classes + 1, dim)
        self.start = nn.Parameter(torch.empty(1, config.layout.sizes[0], dim))
        self.vector_embedding = nn.Linear(config.codeword_dim, dim)
        self.scale_embedding = nn.Embedding(len(config.layout), dim)
        self.position_embedding = nn.Parameter(torch.empty(1, config.num_tokens, dim))
        if config.given_vocab:
            self.given_embedding = nn.Embedding(config.given_vocab, dim)
        if config.shared_modulation:
            self.modulation = nn.Linear(dim, 6 * dim)
        self.blocks: Any = nn.ModuleList(ScaleBlock(config, number) for number in range(config.layers))
        self.head_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, config.output_vocab)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """VAR's values: truncated normal, smaller for the head, the modulation and the last product of each branch."""
        c = self.config
        std = math.sqrt(1 / (3 * c.dim))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for embedding in (self.start, self.position_embedding):
            nn.init.trunc_normal_(embedding, std=std)
        self.head.weight.mul_(0.02)
        self.head_modulation.weight.mul_(0.5)
        for block in self.blocks:
            block.attention.out.weight.div_(math.sqrt(2 * c.layers))
            block.ffn.down.weight.div_(math.sqrt(2 * c.layers))
            if c.shared_modulation:
                rows = nn.init.normal_(block.offset, std=c.dim**-0.5)[0, 0]
            else:
                rows = block.modulation.weight.view(6, c.dim, c.dim)
            rows[:2].mul_(c.gamma_start)  # the two γ
            rows[2:].mul_(0.5)  # scales and shifts

    def hidden(self, x: Tensor, labels: Tensor, given: Tensor | None = None) -> Tensor:
        """States of all positions, which see their own scale and the scales before.

        Args:
            x: float32 (B, N − p₀², codeword_dim), input vectors of all scales but the first.
            labels: int64 (B,) in [0, num_classes]; `num_classes` means unconditional. In training mode each label is
                replaced by it with probability `class_dropout`.
            given: int64 (B, N) in [0, given_vocab), where the model is given labels.

        Returns:
            (B, N, dim), float32.
        """
        c = self.config
        y = self.condition(drop_classes(labels, c) if self.training else labels)  # (B, dim)
        parts = x.split(c.layout.sizes[1:], dim=1)
        inputs = [self.first(y), *map(self.vector_embedding, parts)]
        placed = [self.placed(part, scale, given) for scale, part in enumerate(inputs)]
        attend = scale_attention(c.layout.sizes, x.device)
        return self._run(torch.cat(placed, dim=1), y, self.modulations(y), [attend] * c.layers)

    def condition(self, labels: Tensor) -> Tensor:
        """Class labels (rows,) → their embeddings (rows, dim), the only place where they enter the network."""
        return self.label_embedding(labels)

    def first(self, y: Tensor) -> Tensor:
        """Inputs of the first scale, (rows, p₀², dim)."""
        return y[:, None] + self.start

    def placed(self, inputs: Tensor, scale: int, given: Tensor | None) -> Tensor:
        """Inputs (rows, p², dim) of a scale, plus embeddings of scale, position and given labels."""
        at = self.config.layout.slices[scale]
        inputs = inputs + (self.scale_embedding.weight[scale] + self.position_embedding[:, at])
        return inputs if given is None else inputs + self.given_embedding(given[:, at])

    def modulations(self, y: Tensor) -> list[Tensor]:
        """γ, scale and shift of the two branches of each block: (rows, 1, 6, dim) each."""
        gated, rows = silu(y), (len(y), 1, 6, self.config.dim)
        if self.config.shared_modulation:
            shared = self.modulation(gated).view(rows)
            return [shared + block.offset for block in self.blocks]
        return [block.modulation(gated).view(rows) for block in self.blocks]

    def step(self, inputs: Tensor, y: Tensor, modulations: list[Tensor], cache: KeyValueCache, position: int) -> Tensor:
        """One scale in sampling: (rows, p², dim) from `placed` → states (rows, p², dim).

        Args:
            inputs: of the scale.
            y, modulations: from `condition` and `modulations`.
            cache: keys and values of the scales before; this scale's are added.
            position: of the scale's first token.
        """
        stored = zip(cache.keys, cache.values, strict=True)
        attend = [partial(attend_cached_scale, keys=keys, values=values, position=position) for keys, values in stored]
        return self._run(inputs, y, modulations, attend)

    def _run(self, x: Tensor, y: Tensor, modulations: list[Tensor], attend: Sequence[Callable[..., Tensor]]) -> Tensor:
        for block, modulation, attention in zip(self.blocks, modulations, attend, strict=True):
            x = block(x, modulation, attention)
        scale, shift = self.head_modulation(silu(y))[:, None].chunk(2, dim=-1)  # (rows, 1, dim) each
        return normalize(x, scale, shift)
