"""Exact likelihood: log P(T) = Σ log P(Cᵢ | C₍<ᵢ₎) + Σ log P(Tᵢ | C), beside a baseline's on the same tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.images.sources import numbered_classes
from ctf.pipeline import StagePipeline
from ctf.progress import progress_bar
from ctf.sampling.settings import Sampling
from ctf.stages.stage import Stage, bits
from ctf.tokens.token_set import TokenSet

#: Bits per token, and how often the most probable label is right.
Score = tuple[float, float]


def bits_per_token(
    pipeline: StagePipeline,
    tokens: TokenSet,
    batch_size: int = 32,
    progress: bool = True,
    kept: Tensor | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Bits that a pipeline needs for a token of a set, without augmentation, in float32.

    They are those of the steps and the order in which each stage draws, at temperature 1 without guidance and filters:
    of the settings, `steps`, `order`, `schedule` and `order_seed` matter. Exact unless a stage that is given labels has
    support "full": it can draw the same tokens from other labels too, which are not counted, so the sum is then an
    upper bound on the bits.

    Args:
        pipeline: of any stages.
        tokens: held-out tokens of the pipeline's codebook.
        batch_size: images at a time.
        progress: show a progress bar.
        kept: bool (N,): measure completion, that is the other positions given these, at every stage.
        overrides: settings in place of the model's own, see `StagePipeline.sampling`.

    Returns:
        bits_per_token: of the whole pipeline, comparable between pipelines of any stages.
        unconditional_bits_per_token: with `kept`, of the same positions when the others are generated with them.
        <stage>_bits_per_token: the term of each stage, if there are several.
        token_accuracy, or <stage>_accuracy if there are several: how often the most probable label is right, given
            the right labels of the stage before and of earlier steps.
        bound: "upper", if `bits_per_token` is an upper bound.

    Raises:
        InputError: tokens of another codebook or grid, or of a class that the model lacks; steps or an order that a
            stage cannot take; the order confidence, whose likelihood is not known; positions that a stage cannot keep.
    """
    tokens = of_classes(pipeline, tokens)
    settings = {name: [sampling] for name, sampling in pipeline.sampling(**overrides).items()}
    scores = _measure(pipeline, tokens, settings, batch_size, progress, kept)
    result = _metrics(pipeline, {name: score for name, (score,) in scores.items()})
    if kept is not None:
        scores = _measure(pipeline, tokens, settings, batch_size, progress, positions=~kept)
        result["unconditional_bits_per_token"] = sum(score for ((score, _),) in scores.values())
    return result


def bits_by_steps(
    pipeline: StagePipeline,
    tokens: TokenSet,
    steps: Sequence[int],
    stage: str | None = None,
    batch_size: int = 32,
    progress: bool = True,
    **overrides: Any,
) -> dict[str, Any]:
    """`bits_per_token` in several numbers of steps of one stage; the others are computed once.

    Args:
        pipeline, tokens, batch_size, progress, overrides: as those of `bits_per_token`.
        steps: in how many the stage draws.
        stage: its name; the first stage when None.

    Returns:
        stage, kind, order, schedule, order_seed: the stage, and how it draws.
        rows: for each number of steps, ascending, `steps` and what `bits_per_token` returns.

    Raises:
        InputError: as `bits_per_token`; no such stage, or no steps.
    """
    tokens = of_classes(pipeline, tokens)
    measured = pipeline.stage(stage) if stage else pipeline.stages[0]
    if not steps:
        raise InputError("steps is empty: give at least one number of steps")
    each = [pipeline.sampling(**overrides | {f"{measured.name}_steps": count}) for count in sorted(set(steps))]
    settings = {name: [sampling] for name, sampling in each[0].items()}
    settings[measured.name] = [sampling[measured.name] for sampling in each]
    scores = _measure(pipeline, tokens, settings, batch_size, progress)
    rows = []
    for sampling, score in zip(settings[measured.name], scores[measured.name], strict=True):
        here = {name: score if name == measured.name else scores[name][0] for name in scores}
        rows.append({"steps": sampling.steps, **_metrics(pipeline, here)})
    facts = {name: getattr(settings[measured.name][0], name) for name in ("order", "schedule", "order_seed")}
    return {"stage": measured.name, "kind": measured.kind, **facts, "rows": rows}


@torch.inference_mode()
def stage_score(
    stage: Stage,
    tokens: TokenSet,
    sampling: Sampling | None = None,
    batch_size: int = 32,
    progress: bool = True,
    kept: Tensor | None = None,
    positions: Tensor | None = None,
) -> Score:
    """The term of one stage, and how often its most probable label is right, as `bits_per_token` says.

    Args:
        stage: any, given the right labels of the level before.
        tokens, batch_size, progress: as those of `bits_per_token`.
        sampling: steps and order; the stage's own when None.
        kept: bool (N,), positions that the others are given.
        positions: bool (N,), those that count; all but `kept` when None.

    Raises:
        InputError: as `bits_per_token`.
    """
    if positions is None:
        positions = torch.ones(stage.num_tokens, dtype=torch.bool) if kept is None else ~kept
    same = (tokens.codebook_size, tokens.grid) == (stage.codebook_size, stage.grid)
    if not same or tokens.num_classes > stage.num_classes:
        raise InputError(
            f"{tokens.folder}: codebook, grid or classes differ from the model's: give tokens of its images"
        )
    nats = hits = 0.0
    with progress_bar(len(tokens), f"bits of {stage.name}", "image", hidden=not progress) as bar:
        for start in range(0, len(tokens), batch_size):
            images = range(start, min(start + batch_size, len(tokens)))
            labels = torch.from_numpy(tokens.labels[images])
            log_prob, hit = stage.scores(
                tokens.gather(images).to(stage.device), labels.to(stage.device), sampling, kept
            )
            nats -= log_prob[:, positions].double().sum().item()
            hits += hit[:, positions].double().sum().item()
            bar.update(len(images))
    count = len(tokens) * int(positions.sum())
    return bits(nats / count), hits / count


def of_classes(pipeline: StagePipeline, tokens: TokenSet) -> TokenSet:
    """The tokens with the model's labels, matched by the names of the classes.

    Where the classes of one of them are only numbered, as LlamaGen's are, labels are taken for the model's, with a
    warning.

    Raises:
        InputError: images of a class that the model lacks.
    """
    both = tokens.class_names, pipeline.class_names
    if any(names == numbered_classes(len(names)) for names in both) and not set.intersection(*map(set, both)):
        warnings.warn(
            f"{tokens.folder} and the model have names and numbers for classes: bits mean something only if its labels "
            "are the model's",
            stacklevel=3,
        )
        return tokens
    return tokens.in_classes(pipeline.class_names, "the model's")


def _measure(
    pipeline: StagePipeline,
    tokens: TokenSet,
    settings: dict[str, list[Sampling]],
    batch_size: int,
    progress: bool,
    kept: Tensor | None = None,
    positions: Tensor | None = None,
) -> dict[str, list[Score]]:
    """Of each stage, by its name, in each of its settings; `kept` and `positions` as of `stage_score`."""
    tokens.check_codebook(pipeline.tokenizer.codebook)
    for stage in pipeline.stages:  # what has no likelihood fails now, not after the work of others
        for sampling in settings[stage.name]:
            stage.groups(sampling)
        if kept is not None:
            stage.check_kept(kept)
    how = (batch_size, progress, kept, positions)
    return {
        stage.name: [stage_score(stage, tokens, each, *how) for each in settings[stage.name]]
        for stage in pipeline.stages
    }


def _metrics(pipeline: StagePipeline, scores: dict[str, Score]) -> dict[str, Any]:
    """What `bits_per_token` returns."""
    result: dict[str, Any] = {"bits_per_token": sum(score for score, _ in scores.values())}
    if len(scores) == 1:
        ((_, result["token_accuracy"]),) = scores.values()
    else:
        for name, (score, accuracy) in scores.items():
            result |= {f"{name}_bits_per_token": score, f"{name}_accuracy": accuracy}
    if any(stage.given is not None and stage.support == "full" for stage in pipeline.stages):
        result["bound"] = "upper"
    return result
