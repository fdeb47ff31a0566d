"""Draw docs/emoji.png: classes of the bundled model, four images each, beside a baseline where one is given.

    python scripts/draw_emoji_model.py [--baseline runs/emoji-baseline-model] [--out docs/emoji.png]

The seeds are 0 to 3 for every class; nothing is chosen but the classes.
"""

from __future__ import annotations

import argparse

import numpy as np

from ctf.images.sheet import contact_sheet, save_png
from ctf.model_folder import Pipeline

EACH = 4
#: Two classes in a row of the sheet.
CLASSES = [
    ("noto face-smiling", "twemoji country-flag"),
    ("twemoji face-concerned", "emojione country-flag"),
    ("fluent-emoji face-smiling", "fluent-emoji heart"),
    ("noto cat-face", "twemoji heart"),
    ("noto person-role", "noto time"),
    ("fluent-emoji-flat person-sport", "twemoji time"),
    ("twemoji hand-fingers-open", "noto transport-ground"),
    ("noto hand-single-finger", "twemoji food-fruit"),
    ("noto animal-mammal", "fluent-emoji plant-flower"),
    ("twemoji animal-bird", "noto sky-weather"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--baseline")
    parser.add_argument("--out", default="docs/emoji.png")
    options = parser.parse_args()
    systems = {"baseline": options.baseline, "coarse-\nto-fine": options.model}
    names = [name for row in CLASSES for name in row]
    labels = [name for name in names for _ in range(EACH)]
    images = {
        title: Pipeline.from_pretrained(model, "cpu")(labels, [*range(EACH)] * len(names))
        for title, model in systems.items()
        if model
    }
    rows = []
    for pair in CLASSES:
        row: list[np.ndarray] = []
        for name in pair:
            start = names.index(name) * EACH
            row += [np.asarray(image) for made in images.values() for image in made[start : start + EACH]]
        rows.append(row)
    columns = [title if i == 0 else "" for _ in range(2) for title in images for i in range(EACH)]
    sheet = contact_sheet(rows, [" · ".join(pair) for pair in CLASSES], columns if len(images) > 1 else None)
    save_png(options.out, sheet)


if __name__ == "__main__":
    main()
