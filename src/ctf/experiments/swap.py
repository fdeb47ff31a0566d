"""Fig. 1b of the paper: tokens replaced by others of their cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ctf.codebook.clustering import cluster_codebook
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_bytes, to_tensor
from ctf.images.sheet import contact_sheet
from ctf.layout import Layout
from ctf.pipeline import StagePipeline
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.measure import psnr

BATCH = 64
#: Images in the figure, spread evenly over all.
COLUMNS = 12


@dataclass(frozen=True)
class SwapResult:
    """`psnr[M][method]` in dB between the decoded image and its decoded swap, mean over images; and the sheet.

    A method is "kmeans" or "random"; with several scales also "kmeans, 4 × 4", where that scale alone is swapped.
    """

    psnr: dict[int, dict[str, float]]
    figure: Image.Image


def swap_lines(psnr: Mapping[Any, Mapping[str, float]]) -> list[str]:
    """The PSNRs as text, a line for each M."""
    return [
        f"M = {m}: " + ", ".join(f"{name.replace('kmeans', 'k-means')} {dB:.2f} dB" for name, dB in by.items())
        for m, by in psnr.items()
    ]


def swap_images(tokenizer: Tokenizer, images: ImageSet, cluster_counts: tuple[int, ...], seed: int = 0) -> SwapResult:
    """Swap the tokens of images, within k-means clusters and within random clusters of the same count.

    Every token becomes another one of its cluster; one that is alone in it stays. Of several scales, all are swapped
    together, and each alone.

    Args:
        tokenizer: makes and decodes the tokens.
        images: all of them are measured, `COLUMNS` are shown.
        cluster_counts: values of M.
        seed: of clusterings and swaps.
    """
    batches = (
        (indices, tokenizer.encode(to_tensor(batch)), batch)
        for indices, batch, _ in images.batches(images.as_many_pixels(BATCH))
    )
    layout, shown = tokenizer.layout((images.size, images.size)), np.linspace(0, len(images) - 1, COLUMNS)
    return _swap(tokenizer, layout, batches, shown, cluster_counts, seed)


def swap_generated(pipeline: StagePipeline, num: int, cluster_counts: tuple[int, ...], seed: int = 0) -> SwapResult:
    """Swap the tokens of `num` generated images, as in the paper: all classes in turn, image i of seed + i."""
    batches = (
        (i.numpy(), pipeline.generate_tokens(i % len(pipeline.class_names), (seed + i).tolist()), None)
        for i in torch.arange(num).split(BATCH)
    )
    shown = np.linspace(0, num - 1, COLUMNS)
    return _swap(pipeline.tokenizer, pipeline.layout, batches, shown, cluster_counts, seed)


@torch.inference_mode()
def _swap(
    tokenizer: Tokenizer,
    layout: Layout,
    batches: Iterator[tuple[np.ndarray, Tensor, np.ndarray | None]],
    shown: np.ndarray,
    cluster_counts: tuple[int, ...],
    seed: int,
) -> SwapResult:
    """`batches` are indices (b,), tokens (b, N) and the images that they were made of, if any; `shown` are indices."""
    codebook = tokenizer.codebook
    maps = {
        (count, method): cluster_codebook(codebook, count, method, seed)
        for count in cluster_counts
        for method in ("kmeans", "random")
    }
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[np.ndarray]] = {}
    values: dict[tuple[int, str], list[Tensor]] = {}
    for indices, tokens, images in batches:
        kept = np.isin(indices, shown.astype(int))
        decoded = to_bytes(tokenizer.decode(tokens, layout))
        if images is not None:
            rows.setdefault("image", []).extend(images[kept])
        rows.setdefault("generated" if images is None else "reconstruction", []).extend(decoded[kept])
        for (count, method), coarse_map in maps.items():
            swapped = coarse_map.swap_within_cluster(tokens, generator)
            for name, mixed in {method: swapped, **_each_scale(method, tokens, swapped, layout)}.items():
                changed = to_bytes(tokenizer.decode(mixed, layout))
                values.setdefault((count, name), []).append(psnr(torch.from_numpy(decoded), torch.from_numpy(changed)))
                if name == method:
                    rows.setdefault(f"{method} swap, M = {count}", []).extend(changed[kept])
    result: dict[int, dict[str, float]] = {}
    for (count, name), parts in values.items():
        result.setdefault(count, {})[name] = torch.cat(parts).mean().item()
    return SwapResult(result, contact_sheet(list(rows.values()), list(rows), scale=2))


def _each_scale(method: str, tokens: Tensor, swapped: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Tokens (b, N) of which one scale alone is swapped, by what to call it; empty where there is one scale."""
    if len(layout) == 1:
        return {}
    mixed = {}
    for (rows, columns), part in zip(layout, layout.slices, strict=True):
        name = f"{method}, {rows} × {columns}"
        mixed[name] = tokens.clone()
        mixed[name][:, part] = swapped[:, part]
    return mixed
