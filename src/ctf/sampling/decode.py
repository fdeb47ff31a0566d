"""Stage 1, or a whole baseline: tokens one after another from a causal model (paper, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.models.transformer import KeyValueCache, Transformer
from ctf.sampling.draw import check_sampling, draw
from ctf.sampling.guidance import guidance_labels, guide
from ctf.sampling.uniforms import image_seeds, uniforms


@torch.inference_mode()
def generate_tokens(
    model: Transformer,
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
        model: a causal Transformer in evaluation mode.
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
    seeds = image_seeds(seeds, len(labels))

    weight = model.head.weight
    count = model.config.num_tokens
    inputs = model.label_embedding(guidance_labels(labels.to(weight.device), model.config.num_classes, cfg_scale))
    cache = KeyValueCache(model.config, len(inputs), weight.device, inputs.dtype)
    uniform = uniforms(seeds, count, "stage1").to(weight.device)
    with torch.inference_mode(False):  # an ordinary tensor, which may go into a training step
        tokens = torch.empty(len(labels), count, dtype=torch.int64, device=weight.device)
    for i in range(count):
        hidden = guide(model.step(inputs, cache), cfg_scale)
        tokens[:, i] = draw(model.head(hidden), uniform[:, i], temperature, top_k, top_p)
        inputs = model.token_embedding(tokens[:, i].repeat(1 if cfg_scale == 1 else 2))
    return tokens
