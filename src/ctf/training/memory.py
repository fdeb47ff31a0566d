"""Prediction of the memory that training a stage takes on a GPU, in bytes."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import singledispatch
from typing import Any, ClassVar

from ctf.errors import InputError
from ctf.models.config import TransformerConfig
from ctf.models.loss import CHUNK
from ctf.models.next_scale_config import NextScaleConfig
from ctf.stages.transformer_stage import TransformerStage
from ctf.training.config import OptimizerConfig
from ctf.training.optimizer import is_for_muon

#: The CUDA context, NCCL's buffers, and scratch of the libraries.
RESERVED = 2 * 2**30


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each GPU.

    Attributes:
        weights: float32.
        gradients: float32; twice with several GPUs and unsharded weights, because DDP sends copies.
        optimizer: its state, float32.
        average: the moving average of the weights, if there is one.
        copies: weights in bfloat16, which autocast keeps for the backward pass; or blocks gathered from shards.
        activations: tensors that the blocks keep for the backward pass.
        head: logits, and tensors that the loss keeps of them.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    copies: float
    activations: float
    head: float

    reserved: ClassVar[int] = RESERVED

    @property
    def peak(self) -> float:
        return self.reserved + sum(astuple(self))


def training_memory(
    stage: TransformerStage,
    images: int,
    optimizer: OptimizerConfig,
    average: bool = False,
    bfloat16: bool = True,
    gpus: int = 1,
    shard: bool = False,
    recompute: bool = False,
) -> TrainingMemory:
    """Predict the peak of a training step.

    Args:
        stage: may be without values, on "meta".
        images: at a time on each GPU.
        optimizer: its name counts.
        average: whether a moving average of the weights is kept.
        bfloat16: autocast; else float32.
        gpus: how many share the work.
        shard: weights, gradients, optimizer state and average are sharded over the GPUs (FSDP2).
        recompute: blocks keep their input alone and are computed again in the backward pass (checkpointing).
    """
    config, size = stage.config, 2 if bfloat16 else 4
    shards = gpus if shard else 1
    weights = 4 * stage.num_parameters()
    trained = 4 * sum(p.numel() for p in stage.parameters() if p.requires_grad)  # a tokenizer's part is frozen
    matrices = config.block_weights
    # Muon keeps one number for each weight of a block's matrices; AdamW keeps two for each weight.
    by_muon = sum(p.numel() for name, p in stage.named_parameters() if is_for_muon(name, p))
    states = 2 * trained - (4 * by_muon if optimizer.name == "muon" else 0)
    products = matrices + (config.dim * stage.vocabulary if stage.members is None else 0)
    products += getattr(config, "modulation_weights", 0)
    two_blocks = 2 * size * matrices / config.layers  # FSDP gathers the next block while one computes
    return TrainingMemory(
        weights=weights / shards,
        gradients=(1 if shard or gpus == 1 else 2) * trained / shards,
        optimizer=states / shards,
        average=weights / shards if average else 0,
        copies=two_blocks if shard else size * products if bfloat16 else 0,
        activations=images * activations(stage, size, recompute),
        head=head_bytes(stage, images, size),
    )


def activations(stage: TransformerStage, size: int, recompute: bool = False) -> float:
    """Bytes that the blocks keep of one image, with fused attention and norms; a product's element has `size` bytes."""
    c = stage.config
    block = kept_of_position(c, size)
    return c.positions * (c.layers * 4 * c.dim + block if recompute else c.layers * block)


@singledispatch
def kept_of_position(config: Any, size: int) -> int:
    """Bytes that one block keeps of one position for the backward pass."""
    raise InputError(f"what a block of {type(config).__name__} keeps is not known: register it in kept_of_position")


@kept_of_position.register
def _(c: TransformerConfig, size: int) -> int:
    """LlamaGen's block.

    It keeps two states of the residual stream (float32); both norms' outputs, the second one twice in bfloat16, because
    autocast casts it for either product; queries, keys and values, and queries and keys again when rotated; attention's
    output and its normaliser; four tensors of the feed-forward layer's width; and two masks of dropout.
    """
    attention = c.dim + 3 * c.num_kv_heads * c.head_dim + 2 * c.dim  # rotated q, k; q, k and v; output
    norms = c.dim + (c.dim if size == 4 else 2 * c.dim)
    masks = 2 * c.dim if c.dropout else 0
    return 8 * c.dim + size * (attention + norms + 4 * c.ffn_dim) + 4 * c.heads + masks


@kept_of_position.register
def _(c: NextScaleConfig, size: int) -> int:
    """VAR's block.

    In float32 it keeps two states of the residual stream, two norms' outputs before modulation, queries with their bias
    and once normalised, and keys (within one tensor with queries and values, if products are in float32). In the dtype
    of products it keeps two modulated states, normalised queries and keys, values, attention's output, both branches
    before their factor, and two tensors of the feed-forward layer's width. Five numbers for each head are norms of
    queries and keys, before and after clamping, and attention's normaliser.
    """
    keys = (3 if size == 4 else 1) * c.dim
    in_float32 = 6 * c.dim + keys + 5 * c.heads
    masks = 2 * c.dim if c.dropout else 0
    return 4 * in_float32 + size * (8 * c.dim + 2 * c.ffn_dim) + masks


def head_bytes(stage: TransformerStage, images: int, size: int) -> float:
    """Bytes of logits, and of tensors that the loss keeps of them, for so many images."""
    c = stage.config
    tokens = images * c.num_tokens
    if stage.members is not None:  # logits, probabilities and the gradients of both, padded to the largest cluster
        return tokens * (16 * max(stage.members.sizes) + 2 * 4 * c.dim)
    rows = min(tokens, CHUNK["cuda"] // stage.vocabulary)
    return rows * stage.vocabulary * (2 * size + 4 if size == 2 else 4) + 4 * c.dim * stage.vocabulary
