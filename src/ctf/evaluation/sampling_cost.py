"""How much memory sampling must read and how much it must compute: the roofline that its time is compared with.

Counted are products, attention and convolutions, two operations per multiply-add, and the weights and the cache that
they read. Embeddings, norms' and filters' arithmetic, activations, and the scales of int8 weights are left out, so the
roofline is a bound from below.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ctf.evaluation.machine import Machine
from ctf.models.config import TransformerConfig
from ctf.sampling.memory import block_weights
from ctf.sampling.products import Quantize
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.vq_tokenizer import VQTokenizer


@dataclass(frozen=True)
class Work:
    """Of one step, whose parts overlap at best."""

    bytes: float
    operations: float


def roofline(steps: Iterable[Work], machine: Machine) -> float:
    """Seconds that the steps take at least: Σ max(bytes / bandwidth, operations / rate)."""
    return sum(max(s.bytes / machine.memory_bandwidth, s.operations / machine.matrix_rate) for s in steps)


def decoding_steps(
    config: TransformerConfig, batch: int, guided: bool, dtype: str = "float32", quantize: Quantize | None = None
) -> list[Work]:
    """The N steps of stage 1 or of a baseline.

    With W weights in the blocks, V tokens, L layers, R = 2·batch rows with guidance and R = batch without, which only
    the blocks see, w bytes per weight and c bytes per cached number, step i (from 1) takes

        bytes = w·(W + dim·V) + 4·(2·L + 1)·dim + 2·c·L·R·kv_heads·head_dim·i
        operations = 2·R·W + 4·L·R·dim·i + 2·batch·dim·V

    The second term of the bytes are the norms, the third is the filled part of the cache, keys and values.
    """
    layers, dim, rows = config.layers, config.dim, batch * (2 if guided else 1)
    cached = 2 * layers * rows * config.num_kv_heads * config.head_dim * getattr(torch, dtype).itemsize
    head = dim * config.output_vocab
    weights = (block_weights(config) + head) * weight_bytes(dtype, quantize) + norm_bytes(config)
    products = 2 * rows * block_weights(config) + 2 * batch * head
    return [Work(weights + cached * i, products + 4 * layers * rows * dim * i) for i in range(1, config.num_tokens + 1)]


def refining(
    config: TransformerConfig,
    num_clusters: int,
    batch: int,
    dtype: str = "float32",
    quantize: Quantize | None = None,
) -> Work:
    """Stage 2 without guidance: one pass, the head over the members of each position's cluster.

    With the names of `decoding_steps`, K tokens and M clusters of K/M members on average,

        bytes = w·W + 4·(2·L + 1)·dim + 4·dim·K
        operations = batch · `forward_operations` with K/M outputs

    The head's weight stays in float32.
    """
    blocks = block_weights(config) * weight_bytes(dtype, quantize)
    head = 4 * config.dim * config.output_vocab
    operations = batch * forward_operations(config, config.output_vocab / num_clusters)
    return Work(blocks + norm_bytes(config) + head, operations)


def painting(config: TokenizerConfig, grid: tuple[int, int], batch: int) -> Work:
    """The VQ decoder: its float32 weights once, and the operations of its convolutions and its attention.

    The operations are those that PyTorch counts for one image, times `batch`. In float32 a GPU's convolutions compute
    in TF32 unless told otherwise, and a CPU's may save multiplications: both can beat a roofline of float32 products.
    """
    with torch.device("meta"), torch.no_grad():
        tokenizer = VQTokenizer(config)
        with FlopCounterMode(display=False) as counter:
            tokenizer.paint(torch.empty(1, grid[0] * grid[1], config.codebook_dim), *grid)
    parts = (tokenizer.post_quant_conv, tokenizer.decoder)
    weights = sum(p.numel() for part in parts for p in part.parameters())
    return Work(4 * weights, batch * counter.get_total_flops())


def forward_operations(config: TransformerConfig, outputs: float) -> float:
    """Of one image through a whole model, with `outputs` logits at each of its N tokens.

        2·n·W + 4·L·dim·n² + 2·N·dim·outputs

    W weights in the blocks, L layers, n positions: N under causal attention, where the label takes the place of the
    last token, N + 1 under full attention. Causal attention counts in full, as in PaLM's appendix B.
    """
    positions = config.num_tokens + (config.attention == "full")
    attention = 4 * config.layers * config.dim * positions**2
    return 2 * positions * block_weights(config) + attention + 2 * config.num_tokens * config.dim * outputs


def weight_bytes(dtype: str, quantize: Quantize | None) -> int:
    """Of one weight of a product."""
    return 1 if quantize == "int8" else getattr(torch, dtype).itemsize


def norm_bytes(config: TransformerConfig) -> int:
    """Of all norms' weights, which are float32: two per block, one before the head."""
    return 4 * (2 * config.layers + 1) * config.dim
