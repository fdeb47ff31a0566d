"""Draw docs/completion.png: sixteen test images whose upper half stays, completed twice by the bundled model.

    python scripts/draw_completions.py [--model emoji] [--images emoji-subgroups-by-design] [--out docs/completion.png]

The images are spread evenly over the test split, and the seeds are 0 to 31: nothing is chosen.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image

from ctf.images.image_set import open_images
from ctf.images.pixels import to_tensor
from ctf.images.sheet import contact_sheet, save_png
from ctf.model_folder import Pipeline
from ctf.samples.complete import known_part, region_mask

COUNT, TIMES, REGION = 16, 2, (0.0, 0.5, 1.0, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--images", default="emoji-subgroups-by-design")
    parser.add_argument("--out", default="docs/completion.png")
    options = parser.parse_args()
    pipeline = Pipeline.from_pretrained(options.model, "cpu")
    images = open_images(options.images, "test", pipeline.image_size[0])
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("image", "kept", "completed", "again")}
    names = []
    for place, index in enumerate(np.linspace(0, len(images) - 1, COUNT).astype(int).tolist()):
        image, label = images.read(index), int(images.labels[index])
        mask = region_mask(image.shape[1::-1], REGION)
        known = pipeline.known_tokens(Image.fromarray(image), mask)
        seeds = list(range(TIMES * place, TIMES * (place + 1)))
        tokens = pipeline.generate_tokens(torch.tensor([label] * TIMES), seeds, known=known)
        whole = pipeline.tokenizer.encode(to_tensor(np.stack([image])))[0]
        assert torch.equal(tokens[:, known >= 0], whole[known >= 0].expand(TIMES, -1)), "a known token changed"
        made = (image, known_part(pipeline, Image.fromarray(image), mask), *pipeline.decode(tokens))
        for part, picture in zip(parts.values(), made, strict=True):
            part.append(picture)
        names.append(images.class_names[label])
    save_png(options.out, contact_sheet(list(parts.values()), list(parts), names, scale=2))


if __name__ == "__main__":
    main()
