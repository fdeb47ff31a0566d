"""600 photographs in two classes, cut at random places and sizes out of scikit-learn's two sample images.

python benchmarks/photographs.py photos
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

COUNT, SIZES, QUALITY = 300, (96, 200), 92


def main() -> None:
    generator = np.random.default_rng(0)
    temple, flower = load_sample_images().images
    for name, image in (("flower", flower), ("temple", temple)):
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True)
        height, width = image.shape[:2]
        for number in range(COUNT):
            size = int(generator.integers(*SIZES))
            top, left = int(generator.integers(0, height - size)), int(generator.integers(0, width - size))
            cut = image[top : top + size, left : left + size]
            Image.fromarray(cut).save(folder / f"{number:03d}.jpg", quality=QUALITY)


if __name__ == "__main__":
    main()
