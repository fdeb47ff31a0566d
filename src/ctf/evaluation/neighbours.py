"""Does a generator copy its training images? Its samples' nearest ones, beside those of images that it never saw.

Copies are nearer to the training images than fresh images are. Poor samples are further from them by features, and
smooth ones are nearer by pixels without being copies: look at the sheet too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctf.errors import InputError
from ctf.evaluation.extraction import extract
from ctf.evaluation.features import FeatureExtractor
from ctf.evaluation.protocol import sample_facts
from ctf.evaluation.reference import Reference
from ctf.images.sheet import contact_sheet
from ctf.model_card import versions
from ctf.progress import progress_bar
from ctf.reporting.tables import table_head, table_row
from ctf.samples.sample_set import SampleSet

BLOCK_ROWS = 256  # rows compared at once with as many others
BLOCK_VALUES = 1 << 22  # in them, as float64
SUSPICIOUS = 1  # percentile of the held-out images' distances


@dataclass(frozen=True)
class Nearest:
    """The nearest neighbours of n rows: `distance` float64 (n,), and `index` int64 (n,), the first of equally near."""

    distance: np.ndarray
    index: np.ndarray


def nearest(rows: np.ndarray, batches: Iterable[np.ndarray]) -> Nearest:
    """The nearest point of each row by Euclidean distance: brute force in blocks, which are all that is in memory.

    In float64, where products of pixels are exact: an exact copy is found among near ones. The distance is computed
    from the difference, without cancellation.

    Args:
        rows: (n, …), any real dtype.
        batches: the points, (b, …) each, any real dtype; b may differ.
    """
    squared, index = np.full(len(rows), np.inf), np.zeros(len(rows), np.int64)
    before = 0
    for batch in batches:
        for first, points in _blocks(batch):
            half_norms = np.einsum("nd,nd->n", points, points) / 2
            for start, block in _blocks(rows):
                found = (half_norms - block @ points.T).argmin(1)  # of ½‖row − point‖² − ½‖row‖²
                difference = block - points[found]
                distances = np.einsum("nd,nd->n", difference, difference)
                closer = np.flatnonzero(distances < squared[start : start + len(block)])
                squared[start + closer] = distances[closer]
                index[start + closer] = before + first + found[closer]
        before += len(batch)
    return Nearest(np.sqrt(squared), index)


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Place of the first row, and float64 (b, d), of each block of values (n, …)."""
    rows = values.reshape(len(values), -1)
    size = max(1, min(BLOCK_ROWS, BLOCK_VALUES // rows.shape[1]))
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size].astype(np.float64)


def compare_distances(samples: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Two sets of distances to the nearest training image: float (n,) of samples, (m,) of held-out images.

    Returns:
        nearer: share of the n·m pairs in which the sample is the nearer one, ties counted half (Mann-Whitney's U /
            n·m): 0.5 for samples that are like fresh images, 1 if each is nearer than every held-out image.
        standard_error: of `nearer`, for independent samples that are like fresh images.
        suspicious: share of samples nearer than the 1st percentile of held-out images, 0.01 for fresh images.
        median_samples, median_held_out: of the distances.
    """
    n, m = len(samples), len(held_out)
    ordered = np.sort(held_out)
    nearer_or_tied, nearer = (m - np.searchsorted(ordered, samples, side) for side in ("left", "right"))
    return {
        "nearer": float((nearer + nearer_or_tied).mean() / (2 * m)),
        "standard_error": math.sqrt((n + m + 1) / (12 * n * m)),
        "suspicious": float((samples < np.percentile(held_out, SUSPICIOUS)).mean()),
        "median_samples": float(np.median(samples)),
        "median_held_out": float(np.median(held_out)),
    }


@dataclass(frozen=True)
class NeighbourComparison:
    """`result` is plain JSON; `sheet` shows samples above their nearest training images."""

    result: dict[str, Any]
    sheet: Image.Image


def compare_neighbours(
    samples: SampleSet,
    reference: Reference,
    held_out: Reference,
    extractor: FeatureExtractor,
    num: int = 16,
    source: str = "samples",
    batch_size: int = 64,
    progress: bool = True,
    command: str | None = None,
) -> NeighbourComparison:
    """Find the nearest training image of every sample and of every held-out image, by features and by pixels.

    Distances are Euclidean between pooled features, and the root mean square over pixels and colours from 0 to 255.
    Samples and held-out images are held in memory, 8 bits a value; training images are streamed.

    Args:
        samples: made by the generator.
        reference: its training images; like `held_out`, opened with the same extractor and `all_features`.
        held_out: real images of the same kind that it has not seen.
        extractor: computes the features.
        num: samples to show, evenly spread over the set; at most all.
        source, command: where the samples came from, and what was typed, for the report.
        batch_size: images at a time.
        progress: show progress bars.

    Raises:
        InputError: sizes or features differ, or a reference without the features of all its images.
    """
    for opened in (reference, held_out):
        opened.check(samples.image_size, extractor)
    training, unseen = _all_images(reference), _all_images(held_out)
    seen = extract(extractor, samples.batches(batch_size), samples.count, name="samples", progress=progress).features
    pixels = np.concatenate([*samples.batches(batch_size), *unseen.batches(batch_size)])
    near = {
        "features": nearest(np.concatenate([seen, held_out.extracted.features]), [reference.extracted.features]),
        "pixels": nearest(pixels, _with_bar(training, progress)),
    }
    distances = {
        "features": near["features"].distance,
        "pixels": near["pixels"].distance / math.sqrt(math.prod(pixels.shape[1:])),
    }
    copies = near["pixels"].distance == 0
    shown = np.arange(num) * samples.count // num
    images = training.read(int(found.index[i]) for found in near.values() for i in shown)
    rows = {"sample": pixels[shown]}
    rows |= {f"nearest by {name}": np.stack([images[found.index[i]] for i in shown]) for name, found in near.items()}
    labels = [f"features {distances['features'][i]:.3g}\npixels {distances['pixels'][i]:.3g}" for i in shown]
    inside = int(copies[samples.count :].sum())  # samples then look further away than they are
    result = {
        "features": {"name": extractor.name, "fingerprint": extractor.fingerprint, "dimensions": seen.shape[1]},
        "samples": sample_facts(samples, source),
        "reference": reference.facts(),
        "held_out": held_out.facts(),
        "distances": {
            name: compare_distances(values[: samples.count], values[samples.count :])
            for name, values in distances.items()
        },
        "copies": {
            "samples": int(copies[: samples.count].sum()),
            "held_out": inside,
        },
        "shown": [
            {"sample": int(i)} | {n: {"image": int(near[n].index[i]), "distance": float(distances[n][i])} for n in near}
            for i in shown
        ],
        "warnings": [
            *(opened.note for opened in (reference, held_out) if opened.note),
            *[f"{inside:,} held-out images are among the training images: name a --split without them"] * (inside > 0),
        ],
        "versions": versions(),
        "command": command,
    }
    scale = 2 if samples.image_size[0] <= 64 else 1
    return NeighbourComparison(result, contact_sheet([list(row) for row in rows.values()], list(rows), labels, scale))


def summary(result: dict[str, Any]) -> str:
    """The comparison in a few lines of Markdown."""
    samples, held_out, copies = result["samples"], result["held_out"], result["copies"]
    features = Path(result["features"]["name"]).name
    error, rest = 100 * result["distances"]["pixels"]["standard_error"], 100 - SUSPICIOUS

    def row(label: str, name: str, percent: bool = False) -> str:
        values = [by[name] for by in result["distances"].values()]
        return table_row([label, *(f"{100 * x:.1f} %" if percent else f"{x:.3g}" for x in values)])

    lines = [
        f"{samples['count']:,} samples of {samples['source']} and {held_out['count']:,} held-out images of "
        f"{held_out['source']}, each beside its nearest of {result['reference']['count']:,} training images of "
        f"{result['reference']['source']}",
        "",
        *table_head(["distance to the nearest training image", f"{features} features", "pixels"]),
        row(f"pairs in which the sample is nearer (fresh images: 50 ± {error:.1f} %)", "nearer", percent=True),
        row(f"samples nearer than {rest} % of held-out images (fresh: {SUSPICIOUS} %)", "suspicious", percent=True),
        row("median of samples", "median_samples"),
        row("median of held-out images", "median_held_out"),
        "",
        f"Exact copies of training images: {copies['samples']:,} samples, {copies['held_out']:,} held-out images.",
        *(f"Warning: {warning}" for warning in result["warnings"]),
    ]
    return "\n".join(lines) + "\n"


def _all_images(opened: Reference) -> SampleSet:
    """The images of a reference. Raises InputError: it has none, or the features of some of them only."""
    if opened.images is None:
        raise InputError(f"{opened.source} holds moments and no images: give images, which have neighbours")
    if len(opened.extracted.features) < opened.count:
        raise InputError(f"{opened.source} was opened with features of some images only: open it with all_features")
    return opened.images


def _with_bar(images: SampleSet, progress: bool) -> Iterator[np.ndarray]:
    """The images, behind a progress bar."""
    with progress_bar(images.count, "nearest by pixels", "image", hidden=not progress) as bar:
        for batch in images.batches(BLOCK_ROWS):
            yield batch
            bar.update(len(batch))
