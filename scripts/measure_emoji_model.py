"""Fréchet distance of the bundled model, or another of emoji, under several sampling settings.

    python scripts/measure_emoji_model.py [--model emoji] [--settings '{"cfg_scale": 3}' …]

For each settings: 864 samples, 16 for each of the 54 pairs of design and category, against the training images in emoji
features. They have the labels of 16 training images of the pair. These images themselves, and what the tokenizer makes
of them, come first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow.parquet as pq

from ctf.evaluation.extraction import extract
from ctf.evaluation.features import open_features
from ctf.evaluation.metrics import frechet_distance, inception_score, precision_recall
from ctf.evaluation.reference import open_reference
from ctf.images import open_images, to_tensor
from ctf.images.sources import EMOJI, EMOJI_LABELLINGS, emoji_labels
from ctf.model_folder import Pipeline
from ctf.reporting.tables import table_head, table_row

EACH, BATCH = 16, 64


def chosen(pipeline: Pipeline) -> tuple[list[int], np.ndarray]:
    """16 training images of each of the 54 pairs of design and category, evenly spread: labels, and uint8 pixels."""
    table = pq.read_table(EMOJI)
    pairs, _ = emoji_labels("emoji", table)
    labellings = [emoji_labels(source, table) for source in EMOJI_LABELLINGS]
    own = next(labels for labels, names in labellings if names == pipeline.class_names)
    usable = (table["split"].to_numpy() == "train") & (own >= 0)
    rows = [np.flatnonzero(usable & (pairs == pair)) for pair in range(pairs.max() + 1)]
    each = np.concatenate([there[np.arange(EACH) * len(there) // EACH] for there in rows])
    images = open_images("emoji")  # all of them, in the order of the table
    return own[each].tolist(), np.stack([images.read(int(row)) for row in each])


def batches(images: np.ndarray) -> Iterator[np.ndarray]:
    yield from np.array_split(images, range(BATCH, len(images), BATCH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--settings", nargs="*", type=json.loads, default=[{}])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pipeline = Pipeline.from_pretrained(options.model, "cpu")
    (labels, images), extractor = chosen(pipeline), open_features("emoji")
    reference = open_reference("emoji", extractor, "train").extracted
    print(*table_head(["settings", "distance", "score", "precision", "recall"]), sep="\n")

    def row(name: str, pictures: Iterable[np.ndarray]) -> None:
        found = extract(extractor, pictures, len(labels), progress=False)
        assert found.probabilities is not None
        values = [
            frechet_distance(reference.statistics, found.statistics),
            inception_score(found.probabilities),
            *precision_recall(reference.features, found.features),
        ]
        print(table_row([name, *(f"{value:.3f}" for value in values)]), flush=True)

    encode = pipeline.tokenizer.encode
    row("training images", batches(images))
    row("through the tokenizer", (pipeline.decode(encode(to_tensor(batch))) for batch in batches(images)))
    for settings in options.settings:
        row(json.dumps(settings), pipeline.generate(labels, options.seed, **settings))


if __name__ == "__main__":
    main()
