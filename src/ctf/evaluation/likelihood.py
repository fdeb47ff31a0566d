"""Exact likelihood: log P(T) = Σ log P(Cᵢ | C₍<ᵢ₎) + Σ log P(Tᵢ | C), beside the baseline's on the same tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.models.cluster_head import ClusterMembers
from ctf.models.likelihood import bits, token_scores
from ctf.pipeline import Pipeline
from ctf.progress import progress_bar
from ctf.tokens.token_set import TokenSet


@torch.inference_mode()
def bits_per_token(
    pipeline: Pipeline, tokens: TokenSet, batch_size: int = 32, progress: bool = True
) -> dict[str, float]:
    """Bits that a pipeline needs for a token of a set, without augmentation, in float32.

    Args:
        pipeline: a baseline or a coarse-to-fine model.
        tokens: held-out tokens of the pipeline's codebook.
        batch_size: images at a time.
        progress: show a progress bar.

    Returns:
        bits_per_token: of the whole model, comparable between both kinds.
        coarse_bits_per_token, fine_bits_per_token: its two terms, for a coarse-to-fine model.
        token_accuracy, or coarse_accuracy and fine_accuracy (given the true coarse labels): how often the
            most probable token is right.

    Raises:
        InputError: tokens of another codebook or grid, or more classes than the model has.
    """
    tokens.check_codebook(pipeline.tokenizer.codebook)
    if tokens.grid != pipeline.grid or tokens.num_classes > len(pipeline.class_names):
        raise InputError(f"{tokens.folder}: grid or classes differ from the model's")
    coarse_map = pipeline.coarse_map
    members = None
    if coarse_map is not None and pipeline.support == "cluster":
        members = ClusterMembers.of(coarse_map, pipeline.device)
    sums: dict[str, float] = {}

    def add(name: str, scores: tuple[Tensor, Tensor]) -> None:
        for key, value in zip((f"{name}bits_per_token", f"{name}accuracy"), scores, strict=True):
            sums[key] = sums.get(key, 0.0) + value.double().sum().item()

    with progress_bar(len(tokens), "likelihood", "image", hidden=not progress) as bar:
        for start in range(0, len(tokens), batch_size):
            images = range(start, min(start + batch_size, len(tokens)))
            fine = tokens.gather(images).to(pipeline.device)
            labels = torch.from_numpy(tokens.labels[images]).to(pipeline.device)
            if pipeline.baseline is not None:
                add("token_", token_scores(pipeline.baseline, fine, labels, fine))
            else:
                assert coarse_map is not None
                assert pipeline.coarse is not None
                assert pipeline.fine is not None
                coarse = coarse_map.fine_to_coarse.to(pipeline.device)[fine]
                add("coarse_", token_scores(pipeline.coarse, coarse, labels, coarse))
                add("fine_", token_scores(pipeline.fine, coarse, labels, fine, members))
            bar.update(len(fine))
    count = len(tokens) * tokens.num_tokens
    means = {key: bits(value / count) if "bits" in key else value / count for key, value in sums.items()}
    total = sum(value for key, value in means.items() if "bits" in key)
    return {"bits_per_token": total, **{key: value for key, value in means.items() if key != "token_bits_per_token"}}
