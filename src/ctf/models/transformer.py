"""The Transformer of all three models: LlamaGen's, with causal or full attention (paper, sections 4.2 and 5.1)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.files import load_module, save_module
from ctf.models.cluster_head import ClusterMembers, member_logits
from ctf.models.config import TransformerConfig
from ctf.models.rotary import rotary_table, rotate


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.dim, (config.heads + 2 * config.num_kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:  # (B, n, dim)
        c = self.config
        qkv = self.qkv(x).unflatten(-1, (-1, c.head_dim))  # (B, n, heads + 2·kv_heads, head_dim)
        q, k, v = qkv.split([c.heads, c.num_kv_heads, c.num_kv_heads], dim=2)
        q, k, v = rotate(q, rotary).transpose(1, 2), rotate(k, rotary).transpose(1, 2), v.transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=c.attention == "causal", enable_gqa=c.num_kv_heads != c.heads
        )
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class Transformer(nn.Module):
    """Tokens and class labels in, logits out.

    The class label is position 0 of the sequence. A causal model (eqs. 3 and 8) is given whole sequences
    and shifts them itself: its logits at i depend on the label and tokens < i. A full model (eq. 10) sees
    the label and all tokens: its logits at i predict fine token i.
    """

    rotary: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.label_embedding = nn.Embedding(config.num_classes + 1, config.dim)
        self.token_embedding = nn.Embedding(config.input_vocab, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.output_vocab, bias=False)
        self.register_buffer("rotary", rotary_table(config.grid, config.head_dim, config.rope_base), persistent=False)
        self.apply(self._initialize)
        nn.init.zeros_(self.head.weight)  # the first loss is exactly log(output_vocab)

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor, labels: Tensor, members: ClusterMembers | None = None) -> Tensor:
        """Logits for whole sequences.

        Args:
            tokens: int64 (B, N) in [0, input_vocab).
            labels: int64 (B,) in [0, num_classes]; `num_classes` means unconditional. In training mode
                each label is replaced by it with probability `class_dropout`.
            members: for a fine model: compute the logits of the members of each token's cluster only
                (`support="cluster"`).

        Returns:
            (B, N, output_vocab), or with `members` (B, N, size of the largest cluster), see `member_logits`.
        """
        hidden = self.hidden(tokens, labels)
        return self.head(hidden) if members is None else member_logits(hidden, self.head.weight, tokens, members)

    def hidden(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Normalised states before the head: (B, N) and (B,) → (B, N, dim)."""
        if self.training and self.config.class_dropout > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.config.class_dropout
            labels = labels.masked_fill(dropped, self.config.num_classes)
        causal = self.config.attention == "causal"
        tokens = self.token_embedding(tokens[:, :-1] if causal else tokens)
        x = torch.cat([self.label_embedding(labels)[:, None], tokens], dim=1)
        x, rotary = self.dropout(x), self.rotary[: x.shape[1]]
        for block in self.blocks:
            x = block(x, rotary)
        x = self.norm(x)
        return x if causal else x[:, 1:]

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights, as `dtype`, and settings to one safetensors file."""
        save_module(path, self, "transformer", self.config, dtype)

    @classmethod
    def load(cls, path: str | Path) -> Transformer:
        """Read what `save` wrote, in float32 and evaluation mode.

        Raises:
            InputError: missing, truncated, or not a Transformer file.
        """
        return load_module(path, "transformer", lambda config: cls(TransformerConfig(**config)))
