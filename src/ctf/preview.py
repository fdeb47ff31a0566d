"""Previews of images while they are generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctf.codebook.coarse_map import CoarseMap
from ctf.images.pixels import to_bytes
from ctf.layout import Layout
from ctf.stages.stage import Stage
from ctf.tokenizer.interface import Tokenizer


@dataclass(frozen=True)
class Preview:
    """The images as they look after a step.

    Attributes:
        stage: name of the stage that took it.
        step: its number, from 1, of `steps`.
        steps: how many the stage takes.
        images: one per label. Labels of a coarse level are shown by the mean codeword of their cluster, positions that
            are not known yet by what the stage is given there, or the mean of all codewords. Of several scales those
            behind the first one that is not known in full are left out, unless the stage is given labels of them.
    """

    stage: str
    step: int
    steps: int
    images: list[Image.Image]


def preview_of(
    tokenizer: Tokenizer, layout: Layout, stage: Stage, given: Tensor | None
) -> Callable[[Tensor], np.ndarray]:
    """A function from labels of a stage's level, −1 where unknown, int64 (B, N), to images uint8 (B, H, W, 3).

    Args:
        tokenizer: decodes.
        layout: of its tokens.
        stage: which predicts the labels.
        given: what it is given (B, N).
    """
    ends = [part.stop for part in layout.slices]
    known = level_embeddings(tokenizer, stage.predicts)
    unknown = tokenizer.project(tokenizer.codebook.mean(0, keepdim=True))
    if given is not None:
        unknown = level_embeddings(tokenizer, stage.given)[given]

    @torch.no_grad()
    def show(tokens: Tensor) -> np.ndarray:
        if given is None:  # scales are added up, and the mean codeword of a scale would add something
            end = max([ends[0], *(end for end in ends if bool((tokens[:, :end] >= 0).all()))])
            tokens = tokens[:, :end]
        vectors = known[tokens.clamp(min=0)].where(tokens[..., None] >= 0, unknown)
        return to_bytes(tokenizer.decode_embeddings(vectors, layout))

    return show


def level_embeddings(tokenizer: Tokenizer, level: CoarseMap | None) -> Tensor:
    """Embeddings of a level's labels for a preview: a token's codeword, or the mean codeword of a cluster.

    float32 (labels, d), for `Tokenizer.decode_embeddings`.
    """
    codebook = tokenizer.codebook
    return codebook if level is None else tokenizer.project(level.means(codebook))
