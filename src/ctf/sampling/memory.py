"""How much memory a batch takes: what `--batch_size auto` decides by."""

from __future__ import annotations

import contextlib
import ctypes
from dataclasses import dataclass

import torch

from ctf.models.config import TransformerConfig
from ctf.sampling.products import Quantize
from ctf.tokenizer.config import TokenizerConfig
from ctf.tokenizer.paint import painted_together

#: Images that stage 2 refines together: enough to keep any device busy, few enough that their activations stay below
#: the cache of a large batch.
REFINED_TOGETHER = 64

#: What libraries take for themselves at the first batch: thread pools, compiled kernels, scratch.
LIBRARIES = 32 * 2**20

#: `auto` takes at most this many images: beyond, a step is bound by arithmetic and no longer by reading weights.
LARGEST_BATCH = 256


@dataclass(frozen=True)
class SamplingMemory:
    """Bytes that sampling adds to a loaded pipeline.

    Attributes:
        packed: weights laid out for sampling, of both stages.
        decoding: the cache of stage 1, or of the baseline, and the logits of a step.
        refining: activations of stage 2.
        painting: activations of the VQ decoder, and the images of the batch.
        recorded: the loop is a CUDA graph, whose memory stays its own between batches.
    """

    packed: int
    decoding: int
    refining: int
    painting: int
    recorded: bool = False

    @property
    def peak(self) -> int:
        """Of the three phases, which follow each other."""
        later = max(self.refining, self.painting)
        phases = self.decoding + later if self.recorded else max(self.decoding, later)
        return LIBRARIES + self.packed + phases


def sampling_memory(
    batch: int,
    tokenizer: TokenizerConfig,
    causal: TransformerConfig,
    fine: TransformerConfig | None = None,
    guided: bool = True,
    dtype: torch.dtype = torch.float32,
    quantize: Quantize | None = None,
    device: str = "cpu",
) -> SamplingMemory:
    """Predict the peak of one batch from the configurations alone.

    Args:
        batch: images.
        tokenizer: of the pipeline.
        causal: stage 1 or the baseline.
        fine: stage 2, without guidance.
        guided: two rows per image in stage 1.
        dtype: of products and of the cache.
        quantize: of the weights.
        device: its type. A CPU copies all weights into another layout, a GPU those that `dtype` converts.
    """
    size = dtype.itemsize
    stored = 1 if quantize == "int8" else size
    rows = batch * (2 if guided else 1)
    models = [causal] if fine is None else [causal, fine]
    converted = device == "cpu" or dtype != torch.float32
    packed = sum(stored * (block_weights(c) + c.dim * c.output_vocab) if converted else 0 for c in models)
    cache = 2 * causal.layers * rows * causal.num_kv_heads * causal.num_tokens * causal.head_dim * size
    # Draws keep logits, probabilities (float32) and their sums (float64).
    logits = batch * causal.output_vocab * (size + 4 + 4 + 8)
    refining = 0
    if fine is not None:
        positions = min(batch, REFINED_TOGETHER) * (fine.num_tokens + 1)
        # In a feed-forward layer: the residual stream, both halves, and their product's two factors.
        refining = positions * (4 * fine.dim + 4 * fine.ffn_dim * size) + 4 * fine.output_vocab * fine.dim
    side = tokenizer.downsampling
    pixels = causal.num_tokens * side * side
    # A residual block at full resolution holds four tensors: its input, the first half's output, and two of the second;
    # two more are what a convolution reorders on a CPU, or its workspace on a GPU. A CPU's allocator keeps some more.
    tensors = 8.5 if device == "cpu" else 6
    widest = tokenizer.base_channels * tokenizer.channel_multipliers[0] // tokenizer.patch_size**2
    painting = int(min(batch, painted_together(device)) * pixels * tensors * widest * size) + 3 * batch * pixels
    return SamplingMemory(packed, cache + logits, refining, painting, recorded=device == "cuda")


def block_weights(config: TransformerConfig) -> int:
    """Weights of all blocks' products: attention and feed-forward."""
    attention = config.dim * (2 * config.heads + 2 * config.num_kv_heads) * config.head_dim
    return config.layers * (attention + 3 * config.dim * config.ffn_dim)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system: glibc keeps the holes that converted weights leave."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)


def available_memory(device: torch.device) -> int:
    """Bytes that a new batch may use on `device`, now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
