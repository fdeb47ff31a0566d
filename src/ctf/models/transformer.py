"""LlamaGen's Transformer, with causal, full or group attention (paper, sections 4.2 and 5.1)."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctf.elementwise import elementwise
from ctf.models.attention import attend as attend_whole
from ctf.models.attention import group_attention
from ctf.models.cache import KeyValueCache, attend_cached, attend_cached_group
from ctf.models.config import TransformerConfig
from ctf.models.rotary import rotary_table, rotate


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:  # the same bits in one call; FSDP may gather the weight in bfloat16
            return F.rms_norm(x, x.shape[-1:], self.weight.float(), self.eps)
        # float32, as LlamaGen does: the sum of squares of bfloat16 would lose most of its bits.
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class Attention(nn.Module):
    """The products before attention, and `out`, the one after it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.dim, (config.heads + 2 * config.num_kv_heads) * config.head_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, dim) → rotated queries (B, heads, n, head_dim) and keys, values (B, kv_heads, n, head_dim)."""
        c = self.config
        qkv = self.qkv(x).unflatten(-1, (-1, c.head_dim))  # (B, n, heads + 2·kv_heads, head_dim)
        qk, v = qkv.split([c.heads + c.num_kv_heads, c.num_kv_heads], dim=2)
        q, k = rotate(qk, rotary).split([c.heads, c.num_kv_heads], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads or kv_heads, n, head_dim)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def gate_and_up(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.w1(x), self.w3(x)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x)  # (B, n, ffn_dim)
        gate = elementwise(F.silu, gate)
        return self.w2(gate * up if torch.is_grad_enabled() else gate.mul_(up))  # in place where no gradient needs it


class Block(nn.Module):
    """The block of training and of sampling: sampling packs its products and passes attention over a cache.

    Attributes:
        recomputed: keep only the input for the backward pass, which then runs the block again (activation
            checkpointing).
        compiled: `before` and `after`, compiled by `compile_blocks`; they take the block as first argument.
    """

    recomputed = False
    compiled: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Tensor, attend: Callable[..., Tensor] | None = None) -> Tensor:
        """(B, n, dim) → (B, n, dim). `attend` (q, k, v → shape of q) replaces attention over x, as one over a cache."""
        attend = attend or partial(attend_whole, causal=self.config.attention == "causal")
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self._run, x, rotary, attend, use_reentrant=False, preserve_rng_state=self.random)
        return self._run(x, rotary, attend)

    @property
    def random(self) -> bool:
        """Whether a forward pass draws random numbers now."""
        return self.training and self.dropout.p > 0

    def _run(self, x: Tensor, rotary: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        before, after = self.compiled or (type(self).before, type(self).after)
        # One expression, so that q, k and v are freed before the feed-forward layer.
        return after(self, x, attend(*before(self, x, rotary)))

    def before(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, dim) → queries, keys and values for attention."""
        return self.attention(self.attention_norm(x), rotary)

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """The block's input (B, n, dim) and its attention (B, heads, n, head_dim) → its output."""
        y = self.attention.out(y.transpose(1, 2).flatten(2))  # (B, n, dim)
        x = x + (self.dropout(y) if self.training else y)
        y = self.ffn(self.ffn_norm(x))
        return x + (self.dropout(y) if self.training else y)


def compile_blocks(module: nn.Module) -> None:
    """Compile `before` and `after` of all blocks, in place.

    Both are compiled once for all blocks, whose weights are inputs of the graph. Attention stays outside, because its
    kernel and its mask depend on the caller.
    """
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    compiled = compile_copy(type(blocks[0]).before), compile_copy(type(blocks[0]).after)
    for block in blocks:
        block.compiled = compiled


_COPIES = itertools.count()


def compile_copy(method: Any, **settings: Any) -> Any:
    """`torch.compile` of a copy of an unbound method, with Dynamo's cache for itself.

    Dynamo keeps eight graphs for each code object, and remembers which sizes varied. Without the copy all models would
    share them: the fourth model would run uncompiled, and the second one with dynamic sizes. The method is unbound
    because a bound one, kept by its object, would be a reference cycle: weights would stay until garbage collection.
    """
    code = method.__code__.replace(co_name=f"{method.__name__}_{next(_COPIES)}")
    copied = types.FunctionType(code, method.__globals__, code.co_name, method.__defaults__, method.__closure__)
    return torch.compile(copied, **settings)


def drop_classes(labels: Tensor, config: Any) -> Tensor:
    """Class labels (B,), each replaced by the unconditional one with probability `class_dropout`."""
    if not config.class_dropout:  # draws no random numbers
        return labels
    return labels.masked_fill(torch.rand(labels.shape, device=labels.device) < config.class_dropout, config.num_classes)


def take(x: Tensor, positions: Tensor) -> Tensor:
    """x (B, N) at positions (n,) for all rows, or (B, n) for each: (B, n)."""
    return x[:, positions] if positions.ndim == 1 else x.gather(1, positions)


class Transformer(nn.Module):
    """Tokens, labels of a coarser level, and class labels in; logits out.

    The class label is position 0 of the sequence. A causal model (eqs. 3 and 8) takes whole sequences and shifts them:
    its logits at i depend on the label, tokens < i, and given labels ≤ i. A full model (eq. 10) sees all positions: its
    logits at i predict token i. A model of groups has a query for each position, which is one learned vector rotated by
    the position; it predicts a group from the groups before. A given label is added to the input that predicts its
    position.
    """

    rotary: Tensor  # (1 + N, 2, head_dim)
    scales: Tensor  # (N,) scale of each position

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.label_embedding = nn.Embedding(config.num_classes + 1, config.dim)
        if config.input_vocab:
            self.token_embedding = nn.Embedding(config.input_vocab, config.dim)
        if config.given_vocab:
            self.given_embedding = nn.Embedding(config.given_vocab, config.dim)
        if config.attention == "groups":
            self.query_embedding = nn.Embedding(1, config.dim)
        # Cells of several scales can have one centre. A causal model tells them apart by how many tokens each sees.
        if config.attention != "causal" and len(config.layout) > 1:
            self.scale_embedding = nn.Embedding(len(config.layout), config.dim)
            scales = torch.tensor([scale for scale, _, _ in config.layout.coordinates])
            self.register_buffer("scales", scales, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks: Any = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.output_vocab, bias=False)
        self.register_buffer("rotary", rotary_table(config.layout, config.head_dim, config.rope_base), persistent=False)
        self.apply(self._initialize)
        nn.init.zeros_(self.head.weight)  # the first loss is exactly log(output_vocab)

    @staticmethod
    def _initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor | None, labels: Tensor, given: Tensor | None = None) -> Tensor:
        """Logits of whole sequences: (B, N), (B,) and (B, N) → (B, N, output_vocab); see `hidden`."""
        return self.head(self.hidden(tokens, labels, given))

    def hidden(self, tokens: Tensor | None, labels: Tensor, given: Tensor | None = None) -> Tensor:
        """Normalised states, the head's input.

        Args:
            tokens: int64 (B, N) in [0, input_vocab); None for a full model that reads none.
            labels: int64 (B,) in [0, num_classes]; `num_classes` means unconditional. In training mode
                each label is replaced by it with probability `class_dropout`.
            given: int64 (B, N) in [0, given_vocab), where the model is given labels.

        Returns:
            (B, N, dim).
        """
        x = self._embed(tokens, labels, given)
        x = self._run(x, self.rotary[: x.shape[1]])
        return x if self.config.attention == "causal" else x[:, 1:]

    def hidden_in_groups(
        self, tokens: Tensor, labels: Tensor, given: Tensor | None, positions: Tensor, sizes: list[int]
    ) -> Tensor:
        """Normalised states of all queries. Each depends on the label, the groups before its own, and the given labels
        of its group.

        The sequence is the label, the tokens of all groups but the last, and the queries of all groups (LPD, arXiv
        2507.01957, section 3.2).

        Args:
            tokens, labels, given: see `hidden`.
            positions: int64 (N,), or (B, N) where images differ: raster indices in the order of generation.
            sizes: of the groups, in that order.

        Returns:
            (B, N, dim), in the order of `positions`.
        """
        known = self.config.num_tokens - sizes[-1]  # tokens of all groups but the last
        before, table = positions[..., :known], self.rotary[1 + positions]  # (N, 2, head_dim), or (B, N, 2, head_dim)
        start = self.rotary[:1].expand(*table.shape[:-3], -1, -1, -1)
        rotary = torch.cat([start, table[..., :known, :, :], table], dim=-3)
        queries = self.queries(positions, None if given is None else take(given, positions))
        embedded = self.embed_tokens(take(tokens, before), before)
        x = torch.cat([self._first(labels), embedded, queries.expand(len(labels), -1, -1)], dim=1)
        return self._run(x, rotary, group_attention(tuple(sizes), tokens.device))[:, 1 + known :]  # (B, N, dim)

    def queries(self, at: Tensor | slice, given: Tensor | None) -> Tensor:
        """Queries of the positions `at`, int64 (n,) or a slice of n: (1, n, dim).

        With given labels (B, n), or positions (B, n) where images differ, (B, n, dim).
        """
        queries = self._marked(self._rotated(self.query_embedding.weight, self.rotary[1:][at]), at)
        return queries if given is None else queries + self.given_embedding(given)

    def embed_tokens(self, tokens: Tensor, at: Tensor | slice) -> Tensor:
        """Inputs of known tokens (B, n) at the positions `at`: (B, n, dim)."""
        return self._marked(self.token_embedding(tokens), at)

    def _marked(self, x: Tensor, at: Tensor | slice) -> Tensor:
        """Inputs (…, n, dim) plus the embedding of each position's scale, if there are several."""
        return x if len(self.config.layout) == 1 else x + self.scale_embedding(self.scales[at])

    def _rotated(self, vector: Tensor, table: Tensor) -> Tensor:
        """One vector (1, dim), or one for each position (n, dim), rotated by position: (1, n, dim), or (B, n, dim) with
        a table for each image."""
        return rotate(vector.view(1, len(vector), self.config.heads, -1), table).flatten(-2)

    def _run(self, x: Tensor, rotary: Tensor, attend: Callable[..., Tensor] | None = None) -> Tensor:
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotary, attend)
        return self.norm(x)

    def _first(self, labels: Tensor) -> Tensor:
        """Class labels (B,) → (B, 1, dim); in training some become unconditional."""
        return self.label_embedding(drop_classes(labels, self.config) if self.training else labels)[:, None]

    def _embed(self, tokens: Tensor | None, labels: Tensor, given: Tensor | None) -> Tensor:
        """(B, N, dim) for a causal model, whose last token predicts nothing; (B, 1 + N, dim) for a full one."""
        c, first = self.config, self._first(labels)
        if c.attention == "causal":
            assert tokens is not None
            x = torch.cat([first, self.token_embedding(tokens[:, :-1])], dim=1)
            return x if given is None else x + self.given_embedding(given)
        x = self.given_embedding(given) if tokens is None else self._known_or_hidden(tokens)  # (B, N, dim)
        if tokens is not None and given is not None:
            x = x + self.given_embedding(given)
        return torch.cat([first, self._marked(x, slice(None))], dim=1)

    def _known_or_hidden(self, tokens: Tensor) -> Tensor:
        """(B, N) → (B, N, dim); from `output_vocab` on, tokens stand for hidden ones (mask tokens)."""
        x, vocabulary = self.token_embedding(tokens), self.config.output_vocab
        if (masks := self.config.input_vocab - vocabulary) < 1:
            return x
        vectors = self.token_embedding.weight[vocabulary:]  # (1, dim), or (scales, dim)
        # Rotary attention is relative: if all mask vectors were equal, only edges of the image would give a position.
        hidden = self._rotated(vectors if masks == 1 else vectors[self.scales], self.rotary[1:])  # (1, N, dim)
        return x.where((tokens < vocabulary)[..., None], hidden)

    def step(self, x: Tensor, cache: KeyValueCache, position: int) -> Tensor:
        """One position of a causal model: embeddings (rows, dim) → normalised states (rows, dim).

        The input of position 0 is `label_embedding` of the labels, that of position i `token_embedding` of token i − 1;
        both plus `given_embedding` of the label given at the position.
        """
        return self._step(x, cache.keys, cache.values, position)

    #: Attention of `step`, which stores a position in the cache and attends over it.
    attend = staticmethod(attend_cached)

    def _step(self, x: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], position: int) -> Tensor:
        rotary = self.rotary[position : position + 1]
        x = x[:, None]  # (rows, 1, dim)
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, partial(self.attend, keys=keys[i], values=values[i], position=position))
        return self.norm(x)[:, 0]

    def step_group(self, x: Tensor, rotary: Tensor, cache: KeyValueCache, position: int, tokens: int) -> Tensor:
        """One group: inputs (rows, n, dim), `tokens` known ones and then queries → states of the queries.

        Known inputs are the label, later the tokens of the group before. They go to the cache from `position` on.
        """
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            attend = partial(attend_cached_group, keys=keys, values=values, position=position, tokens=tokens)
            x = block(x, rotary, attend)
        return self.norm(x[:, tokens:])
