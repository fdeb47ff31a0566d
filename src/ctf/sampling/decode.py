"""Stage 1, or a whole baseline: tokens one after another from a causal model (paper, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ctf.errors import InputError
from ctf.models.transformer import Transformer
from ctf.sampling.cuda_graph import ReplayedLoop
from ctf.sampling.draw import check_sampling, draw
from ctf.sampling.guidance import guidance_labels, guide
from ctf.sampling.packed import KeyValueCache, PackedTransformer
from ctf.sampling.uniforms import image_seeds, uniforms


@dataclass(frozen=True)
class SamplingSettings:
    """What is the same at every step, see `generate_tokens`."""

    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float


@torch.inference_mode()
def generate_tokens(
    model: Transformer | PackedTransformer,
    labels: Tensor,
    seeds: Sequence[int] | Tensor | None = None,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Generate token sequences with a preallocated cache, both guidance branches in one batch.

    An image depends on its own seed and label only, not on its batch.

    Args:
        model: a causal Transformer. To generate several batches, pack it once: `PackedTransformer(model, rows)`.
        labels: int64 (B,) in [0, num_classes]; `num_classes` means unconditional.
        seeds: one integer per image; fresh ones from torch's global generator when None.
        cfg_scale: classifier-free guidance; 1 is none.
        temperature: divides the guided logits; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to cumulative probability p; 1 keeps all.

    Returns:
        int64 (B, N).

    Raises:
        InputError: a full-attention model, a label out of range, seeds that do not match, or a setting
            without meaning.
    """
    if model.config.attention != "causal":
        raise InputError("generate_tokens takes a causal model (a baseline or a coarse one), not a fine model")
    check_sampling(cfg_scale, temperature, top_k, top_p)
    settings = SamplingSettings(cfg_scale, temperature, top_k, top_p)
    seeds = image_seeds(seeds, len(labels))
    both = guidance_labels(labels, model.config.num_classes, cfg_scale)
    uniform = uniforms(seeds, model.config.num_tokens, "stage1")
    if isinstance(model, PackedTransformer) and model.device.type == "cuda":
        if model.recorded is None or not model.recorded.serves(settings, len(uniform)):
            model.recorded = ReplayedLoop(decode, model, settings, both, uniform)
        tokens = model.recorded(both, uniform)
    else:
        packed = model if isinstance(model, PackedTransformer) else PackedTransformer(model, len(both))
        tokens = decode(packed, settings, both.to(packed.device), uniform.to(packed.device))
    with torch.inference_mode(False):  # an ordinary tensor, which may go into a training step
        return tokens.clone()


def decode(model: PackedTransformer, settings: SamplingSettings, labels: Tensor, uniform: Tensor) -> Tensor:
    """The loop itself: everything stays on the device, and no shape depends on a value.

    Args:
        model: packed, causal.
        settings: of all images.
        labels: int64 (rows,), the unconditional branch behind, see `guidance_labels`.
        uniform: float64 (B, N).

    Returns:
        int64 (B, N).
    """
    cache = KeyValueCache(model.config, len(labels), model.device, model.dtype)
    tokens = torch.empty(uniform.shape, dtype=torch.int64, device=model.device)
    inputs = F.embedding(labels, model.label_embedding)
    for i in range(uniform.shape[1]):
        hidden = guide(model.step(inputs, cache, i), settings.cfg_scale)
        drawn = draw(model.logits(hidden), uniform[:, i], settings.temperature, settings.top_k, settings.top_p)
        tokens[:, i] = drawn
        inputs = F.embedding(drawn, model.token_embedding).repeat(len(labels) // len(drawn), 1)
    return tokens
