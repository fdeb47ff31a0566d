"""A Transformer made ready for sampling: weights laid out once, a cache, no dropout, no mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctf.errors import InputError
from ctf.models.config import TransformerConfig
from ctf.models.rotary import rotate
from ctf.models.transformer import Block, Transformer
from ctf.sampling.memory import return_freed_memory
from ctf.sampling.products import Quantize, lay_out


class KeyValueCache:
    """Preallocated keys and values for step-by-step decoding, filled position by position.

    Of each layer two tensors (rows · kv_heads, N, head_dim).
    """

    def __init__(self, config: TransformerConfig, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.layers, rows * config.num_kv_heads, config.num_tokens, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype).unbind()
        self.values = torch.empty(shape, device=device, dtype=dtype).unbind()


class PackedTransformer(nn.Module):
    """The weights of a `Transformer` at one moment, for sampling with about `rows` rows at a time.

    Args:
        model: stays as it is; where nothing is converted, its weights are shared.
        rows: positions that go through a layer together: 2 × batch for a guided causal model, B · N for a full one.
        dtype: of products and of the cache; norms, guidance and draws are float32.
        quantize: "int8" weights in all blocks and the head, on a CPU.
        compile: on a CPU, turn a whole step into one compiled function at the first call: half a minute and a C++
            compiler against a few percent of a step in float32 and a fifth in int8. A GPU always compiles.

    Raises:
        InputError: int8 on a device or build without it; at the first step, nothing to compile with.
    """

    blocks: Sequence[PackedBlock]

    def __init__(
        self,
        model: Transformer,
        rows: int,
        dtype: torch.dtype = torch.float32,
        quantize: Quantize | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.dtype = model.config, dtype
        self.head_weight = model.head.weight.detach()
        self.device = self.head_weight.device
        self.label_embedding = model.label_embedding.weight.detach()
        self.token_embedding = model.token_embedding.weight.detach()
        self.rotary, self.norm = model.rotary, model.norm.weight.detach()
        blocks = (PackedBlock(block, rows, dtype, quantize) for block in model.blocks)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.head = lay_out(self.head_weight.to(dtype), rows, quantize)
        self.recorded: Any = None  # the loop as a CUDA graph, see `generate_tokens`
        # One compilation serves all blocks: their weights are inputs of the compiled graph.
        on_gpu = self.device.type == "cuda"
        self.before = torch.compile(PackedBlock.before) if on_gpu else PackedBlock.before
        self.after = torch.compile(PackedBlock.after) if on_gpu else PackedBlock.after
        self.attend: Callable[..., Tensor] = attend_cached
        self._compiled_step: Callable[..., Tensor] | None = None
        if compile and not on_gpu:
            self.attend = attend_opaque
            self._compiled_step = torch.compile(self._step, dynamic=True)

    def step(self, x: Tensor, cache: KeyValueCache, position: int) -> Tensor:
        """One position of a causal model: embeddings float32 (rows, dim) → normalised float32 (rows, dim).

        Position 0 takes `label_embedding` of the labels, each later one `token_embedding` of the tokens before it.
        """
        # A compiler takes 0 and 1 for constants, and would compile once for each of them.
        if self._compiled_step is None or position < 2:
            return self._step(x, cache.keys, cache.values, position)
        from torch._inductor import config, exc

        # Frozen, laid-out weights are constants of the compiled function; inputs could not have such a layout.
        with config.patch(freezing=True):
            try:
                return self._compiled_step(x, cache.keys, cache.values, position)
            except exc.InductorError as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(
                    f"compile does not work here ({reason}): install a C++ compiler, or leave it out"
                ) from None

    def _step(self, x: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], position: int) -> Tensor:
        rotary = self.rotary[position : position + 1]
        x = x[:, None]
        for i, block in enumerate(self.blocks):
            q, k, v = self.before(block, x, rotary)
            x = self.after(block, x, self.attend(q, k, v, keys[i], values[i], position))
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
        return_freed_memory()

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
        return x + self.w2(F.silu(gate).mul_(up))


def attend_cached(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
    """Store a new position and let it attend over all stored ones.

    Every stored position may be seen, so there is no mask. Query heads that share keys are rows of one product.

    Args:
        q: (rows, heads, 1, head_dim).
        k, v: (rows, kv_heads, 1, head_dim).
        keys, values: (rows · kv_heads, N, head_dim), filled below `position`.
        position: the new one.

    Returns:
        As q.
    """
    keys[:, position] = k.flatten(0, 2)
    values[:, position] = v.flatten(0, 2)
    seen = slice(position + 1)
    grouped = q.reshape(len(keys), -1, q.shape[-1])  # (rows · kv_heads, group, head_dim)
    by = attend_by_products if q.device.type == "cpu" else F.scaled_dot_product_attention
    return by(grouped, keys[:, seen], values[:, seen]).view(q.shape)


def attend_by_products(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q (R, group, d), keys and values (R, n, d) → (R, group, d).

    On a CPU two batched products read the cache faster than the fused kernel does, in bfloat16 several times.
    """
    scaled = (q * q.shape[-1] ** -0.5).to(keys.dtype)
    scores = torch.bmm(keys, scaled.transpose(1, 2)).transpose(1, 2)  # keys first: they are read as they lie
    return torch.bmm(scores.float().softmax(-1).to(values.dtype), values).type_as(q)


#: One operation for a compiler, which would write its own slower loops for products of single rows.
attend_opaque = torch.library.custom_op("ctf::attend_cached", attend_cached, mutates_args=("keys", "values"))
attend_opaque.register_fake(lambda q, k, v, keys, values, position: q.new_empty(q.shape))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, eps)
