"""Samples on disk: PNGs, a contact sheet, or the .npz that evaluators read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctf.errors import InputError
from ctf.files import atomic_path, write_json
from ctf.images.sheet import contact_sheet, save_png
from ctf.pipeline import Pipeline

SHEET_COLUMNS = 8
SHEET_IMAGES = 64


def sample_to(
    pipeline: Pipeline,
    out: str | Path,
    labels: Sequence[int | str] | None,
    num: int | None,
    seed: int,
    batch_size: int,
    settings: dict[str, Any],
) -> str:
    """Sample and write; image i has label i of the list, repeated as often as needed, and seed + i.

    Args:
        pipeline: the model.
        out: a folder (a PNG per image, `samples.json`, `sheet.png`), a .png (contact sheet) or an .npz
            (`arr_0` uint8 [n, H, W, 3] and `labels` int64 [n]).
        labels: indices or names; all classes in turn when None.
        num: number of images; as many as labels when None.
        seed: of the first image.
        batch_size: images at a time.
        settings: keyword arguments of `Pipeline.generate_tokens`.

    Returns:
        One line that says what was written.

    Raises:
        InputError: nothing to sample, or what the pipeline refuses.
    """
    out = Path(out)
    given = [pipeline.label_index(label) for label in labels] if labels else list(range(len(pipeline.class_names)))
    count = len(given) if num is None else num
    if count < 1:
        raise InputError(f"num {count}: at least one image must be asked for")
    chosen = [given[i % len(given)] for i in range(count)]
    images = np.concatenate(list(pipeline.generate(chosen, seed, batch_size, progress=True, **settings)))

    if out.suffix == ".npz":
        with atomic_path(out) as temporary, temporary.open("wb") as file:
            np.savez(file, arr_0=images, labels=np.array(chosen))
        return f"{out}: arr_0 uint8 {list(images.shape)}"
    shown = range(min(count, SHEET_IMAGES))
    rows = [list(images[start : start + SHEET_COLUMNS]) for start in range(0, len(shown), SHEET_COLUMNS)]
    sheet = contact_sheet(rows, scale=2 if images.shape[1] <= 64 else 1)
    if out.suffix == ".png":
        save_png(out, sheet)
        return f"{out}: contact sheet of {len(shown)} images"
    names = [f"{i:06d}-class-{label:04d}.png" for i, label in enumerate(chosen)]
    for name, image in zip(names, images, strict=True):
        save_png(out / name, Image.fromarray(image))
    listed = zip(names, chosen, strict=True)
    images_facts = [
        {"file": name, "label": label, "class": pipeline.class_names[label], "seed": seed + i}
        for i, (name, label) in enumerate(listed)
    ]
    write_json(out / "samples.json", {"settings": settings, "images": images_facts})
    save_png(out / "sheet.png", sheet)
    return f"{out}: {count} images and sheet.png"
