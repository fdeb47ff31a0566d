"""Stage 2: all exact tokens in one pass from the coarse labels (paper, sections 4.2.2 and 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ctf.codebook.coarse_map import CoarseMap
from ctf.errors import InputError
from ctf.models.cluster_head import ClusterMembers, member_logits
from ctf.models.transformer import Transformer
from ctf.sampling.draw import check_sampling, draw
from ctf.sampling.guidance import guidance_labels, guide
from ctf.sampling.memory import REFINED_TOGETHER
from ctf.sampling.packed import PackedTransformer
from ctf.sampling.uniforms import image_seeds, uniforms

Support = Literal["cluster", "full"]


@torch.no_grad()  # not inference_mode: the tokens may go into a training step
def refine_tokens(
    model: Transformer | PackedTransformer,
    coarse: Tensor,
    labels: Tensor,
    coarse_map: CoarseMap,
    seeds: Sequence[int] | Tensor | None = None,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    support: Support = "cluster",
) -> Tensor:
    """Draw fine tokens for whole coarse sequences, in one step.

    Args:
        model: a full-attention Transformer, from M coarse labels to K tokens. For several batches, pack it once.
        coarse: int64 (B, N) in [0, M).
        labels: int64 (B,) in [0, num_classes].
        coarse_map: the clusters that the model was trained with.
        seeds: one integer per image, the same as for stage 1; fresh ones when None.
        cfg_scale: classifier-free guidance; 1 is none.
        temperature: divides the guided logits; 0 is greedy.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the most probable tokens up to cumulative probability p; 1 keeps all.
        support: "cluster" draws from the members of each position's cluster only; "full" from all K
            tokens, as the paper does.

    Returns:
        int64 (B, N) in [0, K).

    Raises:
        InputError: a causal model, a map of other sizes, coarse labels or classes out of range, seeds that do
            not match, or a setting without meaning.
    """
    config = model.config
    if config.attention != "full":
        raise InputError("refine_tokens takes a fine model (full attention), not a causal one")
    if (config.input_vocab, config.output_vocab) != (coarse_map.num_coarse, coarse_map.num_fine):
        raise InputError(
            f"the fine model maps {config.input_vocab} labels to {config.output_vocab} tokens, the coarse map "
            f"{coarse_map.num_coarse} to {coarse_map.num_fine}: they do not belong together"
        )
    if coarse.shape != (len(labels), config.num_tokens):
        raise InputError(
            f"coarse labels of shape {tuple(coarse.shape)} for {len(labels)} class labels: "
            f"{config.num_tokens} per image are needed"
        )
    if coarse.numel() and not 0 <= int(coarse.min()) <= int(coarse.max()) < config.input_vocab:
        raise InputError(
            f"coarse labels range from {int(coarse.min())} to {int(coarse.max())}, the coarse map has "
            f"{config.input_vocab} clusters"
        )
    if support not in get_args(Support):
        raise InputError(f"support {support!r} does not exist: choose one of {', '.join(get_args(Support))}")
    check_sampling(cfg_scale, temperature, top_k, top_p)
    copies = 1 if cfg_scale == 1 else 2
    together = min(len(labels), REFINED_TOGETHER) * copies * config.num_tokens
    packed = model if isinstance(model, PackedTransformer) else PackedTransformer(model, together)
    uniform = uniforms(image_seeds(seeds, len(labels)), config.num_tokens, "stage2")
    parts = zip(*(t.to(packed.device).split(REFINED_TOGETHER) for t in (coarse, labels, uniform)), strict=True)
    members = ClusterMembers.of(coarse_map, packed.device) if support == "cluster" else None
    refined = []
    for coarse, labels, uniform in parts:
        both = guidance_labels(labels, config.num_classes, cfg_scale)
        hidden = guide(packed.hidden(coarse.repeat(copies, 1), both), cfg_scale)  # (b, N, dim)
        if members is not None:
            logits = member_logits(hidden, packed.head_weight, coarse, members)
            refined.append(members.tokens(coarse, draw(logits, uniform, temperature, top_k, top_p)))
        else:  # all K logits of one image at a time: of a whole batch they would be the largest tensor by far
            images = zip(hidden, uniform, strict=True)
            refined += [draw(packed.logits(h), u, temperature, top_k, top_p)[None] for h, u in images]
    return torch.cat(refined)
