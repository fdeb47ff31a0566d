"""Fréchet distance of the embedded model, or another of emoji, under several sampling settings.

    python scripts/measure_emoji_model.py [--model emoji] [--settings '{"cfg_scale": 3}' …]

For each settings: 864 samples, 16 for each of the 54 pairs of design and category, against the training images in emoji
features. A model of subgroups draws the 16 labels as they occur among the training images of the pair.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pyarrow.parquet as pq

from ctf.evaluation.extraction import extract
from ctf.evaluation.features import open_features
from ctf.evaluation.metrics import frechet_distance, inception_score, precision_recall
from ctf.evaluation.reference import open_reference
from ctf.images.sources import EMOJI, EMOJI_LABELLINGS, emoji_labels
from ctf.model_folder import Pipeline

EACH = 16


def labels_of(pipeline: Pipeline) -> list[int]:
    """16 labels for each of the 54 pairs of design and category, evenly spread over its training images."""
    table = pq.read_table(EMOJI)
    train = table["split"].to_numpy() == "train"
    pairs, _ = emoji_labels("emoji", table)
    labellings = [emoji_labels(source, table) for source in EMOJI_LABELLINGS]
    own = next(labels for labels, names in labellings if names == pipeline.class_names)
    labels: list[int] = []
    for pair in range(pairs.max() + 1):
        there = own[train & (pairs == pair) & (own >= 0)]
        labels += there[np.arange(EACH) * len(there) // EACH].tolist()
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--settings", nargs="*", type=json.loads, default=[{}])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pipeline = Pipeline.from_pretrained(options.model)
    labels, extractor = labels_of(pipeline), open_features("emoji")
    reference = open_reference("emoji", extractor, "train").extracted
    print("| settings | distance | score | precision | recall |\n|---|---|---|---|---|")
    for settings in options.settings:
        found = extract(extractor, pipeline.generate(labels, options.seed, **settings), len(labels), progress=False)
        assert found.probabilities is not None
        values = [
            frechet_distance(reference.statistics, found.statistics),
            inception_score(found.probabilities),
            *precision_recall(reference.features, found.features),
        ]
        print(f"| {json.dumps(settings)} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
