"""What the distance of the emoji features sees, as Markdown: accuracy, sample size, classes, JPEG and blur.

OMP_NUM_THREADS=1 python benchmarks/emoji_features.py [--weights file.safetensors]
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from ctf.evaluation.features import open_features
from ctf.evaluation.metrics import frechet_distance
from ctf.images import open_images

BATCH = 256
DEGRADATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 50": lambda image: jpeg(image, 50),
    "JPEG, quality 30": lambda image: jpeg(image, 30),
    "JPEG, quality 10": lambda image: jpeg(image, 10),
    "Gaussian blur, radius 0.5 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(0.5)),
    "Gaussian blur, radius 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "Gaussian blur, radius 2 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a file of scripts/train_emoji_features.py; the embedded one by default")
    extractor = open_features("emoji", parser.parse_args().weights)

    def pool_and_probabilities(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [extractor(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        return np.concatenate([part.pool for part in parts]), np.concatenate(probabilities)

    splits = {split: read(split) for split in ("train", "test")}
    pools = {}
    print(f"Weights {extractor.fingerprint}.\n")
    print("| split | images | class | design | category |")
    print("|---|---|---|---|---|")
    for split, (images, labels) in splits.items():
        pools[split], probabilities = pool_and_probabilities(images)
        found = probabilities.argmax(axis=1)
        hits = [found == labels, found // 9 == labels // 9, found % 9 == labels % 9]
        print(f"| {split} | {len(labels):,} | " + " | ".join(f"{hit.mean():.1%}" for hit in hits) + " |")

    (images, labels), train, test = splits["train"], pools["train"], pools["test"]
    order = np.random.default_rng(0).permutation(len(train))
    half, sample, rest = len(train) // 2, order[: len(test)], order[len(test) :]
    print("\n| from | to | distance |")
    print("|---|---|---|")

    def row(name: str, other: str, a: np.ndarray, b: np.ndarray) -> None:
        print(f"| {name} | {other} | {frechet_distance(a, b):.3f} |", flush=True)

    row("half of train", "other half", train[order[:half]], train[order[half:]])
    row(f"{len(sample)} of train", "rest of train", train[sample], train[rest])
    row(f"test ({len(test)})", "train", test, train)
    row("train, Noto alone", "train", train[labels // 9 == 0], train)
    row("train without smileys", "train", train[labels % 9 != 0], train)
    for name, degrade in DEGRADATIONS.items():
        degraded = np.stack([np.asarray(degrade(Image.fromarray(image))) for image in images])
        row(f"train, {name}", "train", pool_and_probabilities(degraded)[0], train)


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, uint8 (n, 64, 64, 3), and their labels, int64 (n,)."""
    source = open_images("emoji", split, 64)
    return np.stack([source.read(i) for i in range(len(source))]), source.labels


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """`image` after JPEG compression."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


if __name__ == "__main__":
    main()
