"""A Transformer made ready for sampling: weights laid out once, a cache, no dropout, no mask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.models.config import TransformerConfig
from ctf.models.rotary import rotate
from ctf.models.transformer import Block, Transformer
from ctf.sampling.products import Quantize, lay_out


class KeyValueCache:
    """Preallocated keys and values of every layer for step-by-step decoding.

    Two tensors of shape (layers, rows, kv_heads, N, head_dim), filled position by position.
    """

    def __init__(self, config: TransformerConfig, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, rows, config.num_kv_heads, config.num_tokens, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)


class PackedTransformer:
    """The weights of a `Transformer` at one moment, for sampling with about `rows` rows at a time.

    Args:
        model: stays as it is; where nothing is converted, its weights are shared.
        rows: positions that go through a layer together: 2 × batch for a guided causal model, B · N for a full one.
        dtype: of products and of the cache; norms, guidance and draws are float32.
        quantize: "int8" weights in all blocks and the head, on a CPU.

    Raises:
        InputError: int8 on a device or build without it.
    """

    def __init__(
        self, model: Transformer, rows: int, dtype: torch.dtype = torch.float32, quantize: Quantize | None = None
    ) -> None:
        self.config, self.dtype = model.config, dtype
        self.head_weight = model.head.weight.detach()
        self.device = self.head_weight.device
        self.label_embedding = model.label_embedding.weight.detach()
        self.token_embedding = model.token_embedding.weight.detach()
        self.rotary, self.norm = model.rotary, model.norm.weight.detach()
        self.blocks = [PackedBlock(block, rows, dtype, quantize) for block in model.blocks]  # type: ignore[arg-type]
        self.head = lay_out(self.head_weight.to(dtype), rows, quantize)
        self.recorded: Any = None  # the loop as a CUDA graph, see `generate_tokens`
        # One compilation serves all blocks: their weights are inputs of the compiled graph.
        compiled = torch.compile if self.device.type == "cuda" else lambda function, **_: function
        self.before = compiled(PackedBlock.before, fullgraph=True, dynamic=False)
        self.after = compiled(PackedBlock.after, fullgraph=True, dynamic=False)

    def step(self, x: Tensor, cache: KeyValueCache, position: int) -> Tensor:
        """One position of a causal model: embeddings float32 (rows, dim) → normalised float32 (rows, dim).

        Position 0 takes `label_embedding` of the labels, each later one `token_embedding` of the tokens before it.
        """
        rotary = self.rotary[position : position + 1]
        x = x[:, None]
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            q, k, v = self.before(block, x, rotary)
            keys[:, :, position : position + 1] = k
            values[:, :, position : position + 1] = v
            x = self.after(block, x, attend(q, keys[:, :, : position + 1], values[:, :, : position + 1]))
        return rms_norm(x, self.norm, self.config.norm_eps)[:, 0]

    def hidden(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """As `Transformer.hidden` in evaluation mode: (B, N) and (B,) → float32 (B, N, dim)."""
        causal = self.config.attention == "causal"
        tokens = F.embedding(tokens[:, :-1] if causal else tokens, self.token_embedding)
        x = torch.cat([F.embedding(labels, self.label_embedding)[:, None], tokens], dim=1)
        rotary = self.rotary[: x.shape[1]]
        for block in self.blocks:
            q, k, v = self.before(block, x, rotary)
            x = self.after(block, x, F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True))
        x = rms_norm(x, self.norm, self.config.norm_eps)
        return x if causal else x[:, 1:]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 (…, dim) → float32 (…, output_vocab)."""
        return self.head(hidden.to(self.dtype)).float()


class PackedBlock(nn.Module):
    """One block in two halves, before and after attention."""

    def __init__(self, block: Block, rows: int, dtype: torch.dtype, quantize: Quantize | None) -> None:
        super().__init__()
        attention, ffn = block.attention, block.ffn
        self.config, self.dtype = attention.config, dtype
        self.attention_norm, self.ffn_norm = block.attention_norm.weight.detach(), block.ffn_norm.weight.detach()
        gate_and_up = torch.cat([ffn.w1.weight, ffn.w3.weight])
        weights = (attention.qkv.weight, attention.out.weight, gate_and_up, ffn.w2.weight)
        self.qkv, self.out, self.w13, self.w2 = (lay_out(w.detach().to(dtype), rows, quantize) for w in weights)

    def before(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, n, dim) → queries (rows, heads, n, head_dim), keys and values (rows, kv_heads, n, head_dim)."""
        c = self.config
        x = rms_norm(x, self.attention_norm, c.norm_eps).to(self.dtype)
        qkv = self.qkv(x).unflatten(-1, (-1, c.head_dim))  # (rows, n, heads + 2·kv_heads, head_dim)
        qk, v = qkv.split([c.heads + c.num_kv_heads, c.num_kv_heads], dim=2)
        q, k = rotate(qk, rotary).split([c.heads, c.num_kv_heads], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's input (rows, n, dim) and its attention (rows, heads, n, head_dim) → its output."""
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.w13(rms_norm(x, self.ffn_norm, self.config.norm_eps).to(self.dtype)).chunk(2, dim=-1)
        return x + self.w2(F.silu(gate) * up)


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One new position attends over all stored ones: q (rows, heads, 1, d), keys and values (rows, kv_heads, n, d).

    Every stored position may be seen, so there is no mask. Query heads that share keys are rows of one product.
    """
    grouped = q.reshape(q.shape[0], keys.shape[1], -1, q.shape[-1])  # (rows, kv_heads, group, d)
    by = attend_by_products if q.device.type == "cpu" else F.scaled_dot_product_attention
    return by(grouped, keys, values).view_as(q)


def attend_by_products(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """On a CPU two batched products read the cache faster than the fused kernel does, in bfloat16 several times."""
    weights = (q @ keys.transpose(-1, -2)).float().mul_(q.shape[-1] ** -0.5).softmax(-1)
    return weights.to(values.dtype) @ values


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)
