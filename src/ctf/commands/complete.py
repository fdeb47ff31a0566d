"""`ctf complete`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ctf.errors import InputError


def complete(
    out: str,
    image: str,
    labels: list[str | int],
    mask: str | None = None,
    region: tuple[float, float, float, float] | None = None,
    model: str = "emoji",
    num: int | None = None,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
    batch_size: int = 64,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
) -> None:
    """Keep a part of an image and generate the rest (inpainting, outpainting).

    An autoregressive first stage continues an image from above; any_order and masked stages fill any part.

    Example:
        ctf complete --image photo.png --region 0 0.5 1 1 --labels "noto face-smiling" --num 7
            --out runs/completed.png

    Args:
        out: as for `ctf sample`: a folder, an .npz, or a .png for the contact sheet, which begins with what is kept.
        image: a file. ADM's centre crop brings it to the size of the model's images.
        labels: class names or indices as for `ctf sample`, one for each completion; repeated or cut to `num`.
        mask: an image file of the same size, white where to generate.
        region: instead of a mask, the rectangle to generate: left, top, right and bottom edge as shares of the width
            and the height, from 0 to 1.
        model: "emoji", "photos", a model folder or a hub id.
        num: how many completions; one per label without it.
        seed: completion i uses seed + i.
        sampling: settings in place of the model's own, each as an option, as for `ctf sample`.
        batch_size: images at a time.
        dtype: of the stages; auto is bfloat16 on a GPU and float32 elsewhere.
        device: where to sample; auto is a GPU where there is one.
    """
    from ctf.model_folder import Pipeline
    from ctf.models.config import Compute
    from ctf.samples.complete import known_part, open_picture, region_mask
    from ctf.samples.generate import sample_to

    if (mask is None) == (region is None):
        raise InputError("give either mask or region: what to generate")
    picture = open_picture(image)
    if Path(out).exists() and Path(out).samefile(image):
        raise InputError(f"out {out} is the image itself, which would be lost: choose another")
    pipeline = Pipeline.from_pretrained(model, device, Compute(dtype))
    where = open_picture(mask) if mask else region_mask(picture.size, region or ())
    known = pipeline.known_tokens(picture, where)
    before = [known_part(pipeline, picture, where)]
    if line := sample_to(pipeline, out, labels, num, seed, batch_size, sampling, None, model, known, before):
        print(line)
