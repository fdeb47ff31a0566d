"""`ctf demo`: `ctf fit` on the bundled emoji beside a baseline, and what swapping tokens within clusters changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctf.errors import InputError
from ctf.experiments.swap import swap_images, swap_lines
from ctf.files import write_json
from ctf.fit.carry_out import METRICS, announce, begin, run_fit
from ctf.fit.page import MODEL, write_report
from ctf.fit.plan import Plan
from ctf.images.sheet import contact_sheet, save_png
from ctf.model_folder import Pipeline
from ctf.reporting.page import PAGE, picture
from ctf.reporting.tables import bullets

#: The same number of steps, batch and size for every stage, so that the comparison is fair.
FULL = Plan(
    images="emoji",
    split="train",
    held_out="test",
    image_size=64,
    num_images=8_367,
    augmentation="none",
    tokenizer="emoji",
    architecture=None,
    num_clusters=512,
    size="nano",
    batch_size=32,
    tokenizer_batch=0,
    steps={"tokenizer": 0, "coarse": 700, "fine": 700, "baseline": 700},
    seed=0,
    seconds={},
)
#: Trains on the test images: fewer to tokenize.
QUICK = replace(
    FULL,
    split="test",
    held_out=None,
    num_images=786,
    batch_size=16,
    steps={"tokenizer": 0, "coarse": 12, "fine": 12, "baseline": 12},
)

#: Of the bundled model, shown first.
CLASSES = ["noto face-smiling", "noto cat-face", "fluent-emoji heart", "twemoji country-flag", "noto person-role"]
CLASSES += ["twemoji hand-fingers-open", "noto time", "noto transport-ground"]
FIRST_SHEET, SWAP = "embedded.png", "swap.png"


def run_demo(out: str | Path, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Carry the plan out, and add to its report; returns what metrics.json holds.

    Interrupted and called again it goes on where it stopped.

    Raises:
        InputError: the folder holds something else, or a demo of other settings.
    """
    run = Path(out)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is out of range: choose one in [0, 2^32)")
    plan = replace(QUICK if quick else FULL, seed=seed)
    _, test = begin(plan, run)
    announce(
        f"Samples of the bundled model, to look at while a small one is trained from the start: {run / FIRST_SHEET}"
    )
    save_png(run / FIRST_SHEET, _embedded_samples(seed))
    announce(plan.table())
    metrics = run_fit(plan, run, "cpu")

    announce(f"Tokens swapped within their clusters, added to {run / PAGE}")
    swap = swap_images(Pipeline.from_pretrained(run / MODEL, "cpu").tokenizer, test, (plan.num_clusters,), seed=seed)
    save_png(run / SWAP, swap.figure)
    metrics |= {"quick": quick, "swap_psnr": {str(count): values for count, values in swap.psnr.items()}}
    write_json(run / METRICS, metrics)
    write_report(run, plan, metrics, _more(quick, swap_lines(swap.psnr)))
    return metrics


def _more(quick: bool, swaps: list[str]) -> list[str]:
    """The parts that the demo adds to the report of `ctf fit`."""
    note = "**This was `--quick`: it proves that every step runs. The models have seen next to nothing.**"
    return [
        note if quick else "",
        "## The codebook's redundancy",
        "Each token is replaced by another one of its cluster, at random (paper, Fig. 1b). How near the image stays to "
        "its reconstruction, with clusters by k-means and with random ones:",
        bullets(swaps),
        picture(SWAP, "original, reconstruction, swaps"),
        "## After hours of training",
        "Samples of the bundled model:",
        picture(FIRST_SHEET, "samples of the bundled model"),
    ]


def _embedded_samples(seed: int) -> Image.Image:
    """Two images of each of a few classes."""
    images = [np.asarray(image) for image in Pipeline.from_pretrained("emoji", "cpu")(CLASSES * 2, seed=seed)]
    return contact_sheet([images[: len(CLASSES)], images[len(CLASSES) :]], None, CLASSES, scale=2)
