"""Exact likelihood: log P(T) = Σ log P(Cᵢ | C₍<ᵢ₎) + Σ log P(Tᵢ | C), beside a baseline's on the same tokens."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctf.errors import InputError
from ctf.images.records import numbered_classes
from ctf.pipeline import StagePipeline
from ctf.progress import progress_bar
from ctf.sampling.settings import Sampling
from ctf.stages.stage import Stage
from ctf.tokenizer.measure import standard_error
from ctf.tokens.token_set import TokenSet


@dataclass(frozen=True)
class Score:
    """The term of one stage in each of n images.

    Attributes:
        bits: per token, float64 (n,).
        accuracy: how often the most probable label is right, float64 (n,).
    """

    bits: np.ndarray
    accuracy: np.ndarray


def bits_per_token(
    pipeline: StagePipeline,
    tokens: TokenSet,
    batch_size: int = 32,
    progress: bool = True,
    kept: Tensor | None = None,
    against: StagePipeline | None = None,
    **overrides: Any,
) -> dict[str, Any]:
    """Bits that a pipeline needs for a token of a set, without augmentation, in float32.

    They are those of the steps and the order in which each stage samples, at temperature 1 without guidance or filters:
    of the settings, `steps`, `order`, `schedule` and `order_seed` matter. Exact unless a stage that is given labels has
    support "full": it can draw the same tokens from other labels too, which are not counted, so the sum is then an
    upper bound on the bits.

    With `kept` they are those of completion as `StagePipeline.complete` does it: every stage samples the other labels
    of its level given the kept labels of that level. Where all stages are autoregressive that is −log2 P(rest | kept)
    of the pipeline. Elsewhere it is another distribution: kept positions come first whatever the order, and stage 1
    does not hear what the kept exact tokens say about the labels of the rest.

    Args:
        pipeline: of any stages.
        tokens: held-out tokens of the pipeline's codebook.
        batch_size: images at a time.
        progress: show a progress bar.
        kept: bool (N,): measure completion, that is the other positions given these, at every stage.
        against: another pipeline, measured on the same tokens with its own settings.
        overrides: settings in place of the model's own, see `StagePipeline.sampling`.

    Returns:
        bits_per_token: of the whole pipeline, comparable between pipelines of any stages.
        <stage>_bits_per_token: the term of each stage, if there are several.
        token_accuracy, or <stage>_accuracy if there are several: how often the most probable label is right, given
            the right labels of the stage before and of earlier steps.
        unconditional_bits_per_token: with `kept`, of the same positions when the others are generated with them, in
            the usual order.
        bound: "upper", if `bits_per_token` is an upper bound.
        images: how many.
        standard_error: of each of these means over the images, by its name; None for a single image.
        against: the same of the other pipeline, with `difference`: bits per token of `pipeline` less those of
            `against`, and its standard error, from the differences image by image.

    Raises:
        InputError: tokens of another codebook or layout, or of a class that the model lacks; steps or an order that a
            stage cannot take; the order confidence, whose likelihood is not known; positions that a stage cannot keep.
    """
    compared = [(pipeline, of_classes(pipeline, tokens), pipeline.sampling(**overrides))]
    if against is not None:
        compared.append((against, of_classes(against, tokens), against.sampling()))
    for model, labelled, sampling in compared:
        _check(model, labelled, sampling, kept)
    found = []
    for model, labelled, sampling in compared:
        scores = {s.name: stage_score(s, labelled, sampling[s.name], batch_size, progress, kept) for s in model.stages}
        found.append(_by_name(scores))
        if kept is not None:
            whole = [
                stage_score(s, labelled, sampling[s.name], batch_size, progress, positions=~kept) for s in model.stages
            ]
            found[-1]["unconditional_bits_per_token"] = np.sum([score.bits for score in whole], axis=0)
    result = _means(pipeline, found[0])
    if against is not None:
        difference = found[0]["bits_per_token"] - found[1]["bits_per_token"]
        result["against"] = _means(against, found[1] | {"difference": difference})
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
        steps: numbers of steps of the stage.
        stage: its name; the first stage when None.

    Returns:
        stage, kind, order, schedule, order_seed: the stage, and how it samples.
        rows: for each number of steps, ascending, `steps` and what `bits_per_token` returns.

    Raises:
        InputError: as `bits_per_token`; no such stage, or no steps.
    """
    tokens = of_classes(pipeline, tokens)
    measured = pipeline.stage(stage) if stage else pipeline.stages[0]
    if not steps:
        raise InputError("steps is empty: give at least one number of steps")
    each = [pipeline.sampling(**overrides | {f"{measured.name}_steps": count}) for count in sorted(set(steps))]
    for sampling in each:
        _check(pipeline, tokens, sampling)
    score = cache(lambda part, sampling: stage_score(part, tokens, sampling, batch_size, progress))
    rows = []
    for sampling in each:
        scores = {part.name: score(part, sampling[part.name]) for part in pipeline.stages}
        rows.append({"steps": sampling[measured.name].steps, **_means(pipeline, _by_name(scores))})
    facts = {name: getattr(each[0][measured.name], name) for name in ("order", "schedule", "order_seed")}
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
    """The term of one stage, image by image, as `bits_per_token` says.

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
    _check_tokens(stage, tokens)
    nats, hits = [], []
    with progress_bar(len(tokens), f"bits of {stage.name}", "image", hidden=not progress) as bar:
        for start in range(0, len(tokens), batch_size):
            images = range(start, min(start + batch_size, len(tokens)))
            labels = torch.from_numpy(tokens.labels[images])
            log_prob, hit = stage.scores(
                tokens.gather(images).to(stage.device), labels.to(stage.device), sampling, kept
            )
            nats.append(-log_prob[:, positions].double().mean(1).cpu().numpy())
            hits.append(hit[:, positions].double().mean(1).cpu().numpy())
            bar.update(len(images))
    return Score(np.concatenate(nats) / math.log(2), np.concatenate(hits))


def _check_tokens(stage: Stage, tokens: TokenSet) -> None:
    same = (tokens.codebook_size, tokens.layout) == (stage.codebook_size, stage.layout)
    if not same or tokens.num_classes > stage.num_classes:
        raise InputError(
            f"{tokens.folder}: codebook, layout or classes differ from the model's: give tokens of its images"
        )


def _check(
    pipeline: StagePipeline, tokens: TokenSet, sampling: Mapping[str, Sampling], kept: Tensor | None = None
) -> None:
    """Find what has no likelihood before the work begins, which may be another pipeline's."""
    tokens.check_tokenizer(pipeline.tokenizer)
    if kept is not None and bool(kept.all()):
        raise InputError("kept holds every position: nothing is left to measure")
    for stage in pipeline.stages:
        _check_tokens(stage, tokens)
        stage.plan(sampling[stage.name], kept).fixed_groups(stage.name)


def known_orders(stages: Sequence[Stage]) -> dict[str, Any]:
    """Overrides that draw in the default order of its kind what is stored with the order confidence, whose bits are
    not known."""
    return {f"{s.name}_order": s.possible_orders[0] for s in stages if s.sampling.order == "confidence"}


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


def _by_name(scores: Mapping[str, Score]) -> dict[str, np.ndarray]:
    """The values of each image, by the names that `bits_per_token` returns."""
    values = {"bits_per_token": np.sum([score.bits for score in scores.values()], axis=0)}
    if len(scores) == 1:
        values["token_accuracy"] = next(iter(scores.values())).accuracy
    else:
        for name, score in scores.items():
            values |= {f"{name}_bits_per_token": score.bits, f"{name}_accuracy": score.accuracy}
    return values


def _means(pipeline: StagePipeline, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The result of `bits_per_token`, from the values of each image."""
    result: dict[str, Any] = {name: float(each.mean()) for name, each in values.items()}
    if any(stage.given is not None and stage.support == "full" for stage in pipeline.stages):
        result["bound"] = "upper"
    result["images"] = len(values["bits_per_token"])
    return result | {"standard_error": {name: standard_error(each) for name, each in values.items()}}
