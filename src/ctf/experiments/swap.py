"""Fig. 1b of the paper: tokens replaced by random ones of their cluster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ctf.codebook.clustering import cluster_codebook
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_bytes, to_tensor
from ctf.images.sheet import contact_sheet
from ctf.tokenizer.measure import psnr
from ctf.tokenizer.vq_tokenizer import VQTokenizer


@dataclass(frozen=True)
class SwapResult:
    """`psnr[M][method]` in dB between the decoded image and its decoded swap, mean over images; and the sheet."""

    psnr: dict[int, dict[str, float]]
    figure: Image.Image


@torch.inference_mode()
def swap_figure(
    tokenizer: VQTokenizer, images: ImageSet, cluster_counts: tuple[int, ...], columns: int = 12, seed: int = 0
) -> SwapResult:
    """Swap every token within k-means clusters and within random clusters of the same count.

    Args:
        tokenizer: makes and paints the tokens.
        images: all of them are measured, `columns` evenly spread ones are shown.
        cluster_counts: values of M.
        columns: images in the figure.
        seed: of clusterings and swaps.
    """
    codebook = tokenizer.codebook
    maps = {
        (count, method): cluster_codebook(codebook, count, method, seed)
        for count in cluster_counts
        for method in ("kmeans", "random")
    }
    shown = set(np.linspace(0, len(images) - 1, columns).astype(int).tolist())
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[np.ndarray]] = {"image": [], "reconstruction": []}
    values: dict[tuple[int, str], list[torch.Tensor]] = {key: [] for key in maps}
    for indices, batch, _ in images.batches(64):
        grid = tuple(side // tokenizer.config.downsampling for side in batch.shape[1:3])
        tokens = tokenizer.encode(to_tensor(batch))
        painted = to_bytes(tokenizer.decode(tokens, grid))
        kept = [i for i, index in enumerate(indices) if int(index) in shown]
        rows["image"] += list(batch[kept])
        rows["reconstruction"] += list(painted[kept])
        for (count, method), coarse_map in maps.items():
            swapped = to_bytes(tokenizer.decode(coarse_map.swap_within_cluster(tokens, generator), grid))
            values[count, method].append(psnr(torch.from_numpy(painted), torch.from_numpy(swapped)))
            rows.setdefault(f"{method} swap, M = {count}", []).extend(swapped[kept])
    result: dict[int, dict[str, float]] = {}
    for (count, method), parts in values.items():
        result.setdefault(count, {})[method] = torch.cat(parts).mean().item()
    return SwapResult(result, contact_sheet(list(rows.values()), list(rows), scale=2))
