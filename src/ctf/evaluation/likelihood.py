"""Exact likelihood: log P(T) = Σ log P(Cᵢ | C₍<ᵢ₎) + Σ log P(Tᵢ | C), beside a baseline's on the same tokens."""

from __future__ import annotations

from typing import Any

import torch

from ctf.errors import InputError
from ctf.pipeline import StagePipeline
from ctf.progress import progress_bar
from ctf.stages.stage import bits
from ctf.tokens.token_set import TokenSet


@torch.inference_mode()
def bits_per_token(
    pipeline: StagePipeline, tokens: TokenSet, batch_size: int = 32, progress: bool = True
) -> dict[str, Any]:
    """Bits that a pipeline needs for a token of a set, without augmentation, in float32.

    Exact unless a stage that is given labels has support "full": it can draw the same tokens from other labels too,
    which are not counted, so the sum is then an upper bound on the bits.

    Args:
        pipeline: of any stages.
        tokens: held-out tokens of the pipeline's codebook.
        batch_size: images at a time.
        progress: show a progress bar.

    Returns:
        bits_per_token: of the whole pipeline, comparable between pipelines of any stages.
        <stage>_bits_per_token: the term of each stage, if there are several.
        token_accuracy, or <stage>_accuracy if there are several: how often the most probable label is right, given
            the right labels of the stage before.
        bound: "upper", if `bits_per_token` is an upper bound.

    Raises:
        InputError: tokens of another codebook or grid, or more classes than the model has.
    """
    tokens.check_codebook(pipeline.tokenizer.codebook)
    if tokens.grid != pipeline.grid or tokens.num_classes > len(pipeline.class_names):
        raise InputError(f"{tokens.folder}: grid or classes differ from the model's: give tokens of its images")
    nats, hits = ({stage.name: 0.0 for stage in pipeline.stages} for _ in range(2))
    with progress_bar(len(tokens), "likelihood", "image", hidden=not progress) as bar:
        for start in range(0, len(tokens), batch_size):
            images = range(start, min(start + batch_size, len(tokens)))
            exact = tokens.gather(images).to(pipeline.device)
            labels = torch.from_numpy(tokens.labels[images]).to(pipeline.device)
            for stage in pipeline.stages:
                log_prob, hit = stage.scores(exact, labels)
                nats[stage.name] -= log_prob.double().sum().item()
                hits[stage.name] += hit.double().sum().item()
            bar.update(len(exact))
    count = len(tokens) * tokens.num_tokens
    means = {name: bits(total / count) for name, total in nats.items()}
    result: dict[str, Any] = {"bits_per_token": sum(means.values())}
    if len(means) == 1:
        result["token_accuracy"] = sum(hits.values()) / count
    else:
        for name in means:
            result |= {f"{name}_bits_per_token": means[name], f"{name}_accuracy": hits[name] / count}
    if any(stage.given is not None and stage.support == "full" for stage in pipeline.stages):
        result["bound"] = "upper"
    return result
