"""What sampling takes: bytes of memory, and the work that a roofline is computed from."""

from __future__ import annotations

from dataclasses import dataclass

#: What libraries take for themselves at the first batch: thread pools, compiled kernels, scratch.
LIBRARIES = 32 * 2**20

#: `--batch_size auto` takes at most this many images: beyond, a step is bound by arithmetic, not by reading weights.
LARGEST_BATCH = 256


@dataclass(frozen=True)
class StageMemory:
    """Bytes that a stage adds to a loaded pipeline.

    Attributes:
        weights: packed for sampling; they stay.
        activations: caches, states and logits of a batch.
        stays: activations keep their memory between batches: those of a CUDA graph, and on a GPU those of any stage,
            since what a stream has freed is kept for it, and the first stage runs beside the decoder.
    """

    weights: int
    activations: int
    stays: bool = False


@dataclass(frozen=True)
class SamplingMemory:
    """Bytes that a batch adds to a loaded pipeline: those of its stages, which follow each other, and the decoder's."""

    stages: list[StageMemory]
    decoding: int

    @property
    def peak(self) -> int:
        lasting = sum(s.weights + (s.activations if s.stays else 0) for s in self.stages)
        return LIBRARIES + lasting + max([self.decoding, *(s.activations for s in self.stages if not s.stays)])


@dataclass(frozen=True)
class Work:
    """Of one step, whose parts overlap at best.

    Attributes:
        bytes: read from memory: weights and caches. Embeddings, activations and int8 scales are left out.
        operations: of products, attention and convolutions, two per multiply-add.
    """

    bytes: float
    operations: float
