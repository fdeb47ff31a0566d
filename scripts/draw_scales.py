"""Draw docs/scales.png: emoji decoded from the first scale of a multi-scale tokenizer, the first two, and so on.

python scripts/draw_scales.py --tokenizer runs/var/tokenizer-scales
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ctf.images import open_images
from ctf.images.pixels import to_bytes, to_tensor
from ctf.images.sheet import contact_sheet, save_png
from ctf.interop.tokenizers import open_tokenizer


@torch.inference_mode()
def draw_scales(path: Path, source: str, images: list[int]) -> None:
    """A row for each image: the image, then its decoding from the first scale, the first two scales, and so on."""
    tokenizer, emoji = open_tokenizer(source), open_images("emoji", "test")
    pixels = np.stack([emoji.read(index) for index in images])
    tokens, layout = tokenizer.encode(to_tensor(pixels)), tokenizer.layout(pixels.shape[1:3])
    vectors = tokenizer.embed(tokens)
    sums = [to_bytes(tokenizer.decode_embeddings(vectors[:, : part.stop], layout)) for part in layout.slices]
    names = ["image", *(f"to {rows}x{columns}" for rows, columns in layout)]
    save_png(path, contact_sheet([list(row) for row in np.stack([pixels, *sums], 1)], None, names))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="runs/var/tokenizer-scales")
    parser.add_argument("--out", type=Path, default=Path("docs/scales.png"))
    parser.add_argument("--images", type=int, nargs="+", default=[96, 272, 552, 744])
    args = parser.parse_args()
    draw_scales(args.out, args.tokenizer, args.images)
