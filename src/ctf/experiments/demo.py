"""`ctf demo`: `ctf fit --baseline` on six kinds of emoji, and what swapping tokens within clusters changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctf.errors import InputError
from ctf.experiments.swap import swap_images, swap_lines
from ctf.files import atomic_path, write_json
from ctf.fit.config import NOTHING
from ctf.fit.page import MODEL, write_report
from ctf.fit.plan import PLAN, Plan, StagePlan
from ctf.fit.run_plan import METRICS, announce, check_folder, run_fit
from ctf.images.image_set import ImageSet, open_images
from ctf.images.sheet import contact_sheet, save_png
from ctf.layout import Layout
from ctf.model_folder import Pipeline
from ctf.reporting.page import PAGE, picture
from ctf.reporting.tables import bullets
from ctf.sampling.settings import Sampling

#: What is easy to name: a folder of images each, and the subgroups of emoji in it, of the designs that look alike.
FOLDERS = {
    "cat": ["cat-face"],
    "clock": ["time"],
    "face": [f"face-{mood}" for mood in ("smiling", "affection", "tongue", "neutral-skeptical", "concerned", "sleepy")],
    "flag": ["country-flag"],
    "heart": ["heart"],
    "keycap": ["keycap"],
}
DESIGNS = ("fluent-emoji", "fluent-emoji-flat", "noto", "twemoji")
IMAGES = "images"
#: Steps of every stage, the same for a fair comparison, and images a step.
FULL, QUICK = (600, 16), (12, 16)

#: Of the bundled model, shown first.
CLASSES = ["noto face-smiling", "noto cat-face", "fluent-emoji heart", "twemoji country-flag", "noto person-role"]
CLASSES += ["twemoji hand-fingers-open", "noto time", "noto transport-ground"]
FIRST_SHEET, SWAP = "bundled.png", "swap.png"


def run_demo(out: str | Path, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run the demo's plan, and add to its report; returns what metrics.json holds.

    Interrupted and called again it goes on where it stopped.

    Raises:
        InputError: the folder holds something else, or a demo of other settings.
    """
    run = Path(out)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is out of range: choose one in [0, 2^32)")
    plan = demo_plan(run, *(QUICK if quick else FULL), seed)
    check_folder(run, plan)
    plan.save(run / PLAN)
    announce(f"Samples of the bundled model, to look at while a small one is trained: {run / FIRST_SHEET}")
    images = [np.asarray(image) for image in Pipeline.from_pretrained("emoji", "cpu")(CLASSES * 2, seed=seed)]
    save_png(run / FIRST_SHEET, contact_sheet([images[: len(CLASSES)], images[len(CLASSES) :]], None, CLASSES, scale=2))
    if not (run / IMAGES).exists():
        write_images(run / IMAGES)
    announce(plan.table())
    metrics = run_fit(plan, run, "cpu")

    announce(f"Tokens swapped within their clusters, added to {run / PAGE}")
    _, test = plan.open()
    swap = swap_images(Pipeline.from_pretrained(run / MODEL, "cpu").tokenizer, test, (plan.num_clusters,), seed=seed)
    save_png(run / SWAP, swap.figure)
    metrics |= {"quick": quick, "swap_psnr": {str(count): values for count, values in swap.psnr.items()}}
    write_json(run / METRICS, metrics)
    note = "**This was `--quick`: it proves that every step runs. The models have seen next to nothing.**"
    more = [
        note if quick else "",
        "## The codebook's redundancy",
        "Each token is replaced by another one of its cluster, at random (paper, Fig. 1b). How near the image stays to "
        "its reconstruction, with clusters by k-means and with random ones:",
        bullets(swap_lines(swap.psnr)),
        picture(SWAP, "original, reconstruction, swaps"),
        "## After hours of training",
        "Samples of the bundled model:",
        picture(FIRST_SHEET, "samples of the bundled model"),
    ]
    write_report(run, plan, metrics, more)
    return metrics


def demo_plan(run: Path, steps: int, batch_size: int, seed: int) -> Plan:
    """Coarse-to-fine and the baseline of equal sizes and steps, from random weights, over the bundled tokenizer."""
    guided, fine = Sampling(cfg_scale=2.5, top_p=0.95), Sampling(temperature=0.3)  # those of the bundled model
    num_test = len(emoji_of_folders("test")[1])
    return Plan(
        images=str(run / IMAGES),
        split="train",
        held_out_split="test",
        image_size=64,
        num_images=len(emoji_of_folders("train")[1]),
        num_test=num_test,
        evaluated=num_test,
        augmentation="ten-shift",  # without it nano models know 786 images by heart after 10 passes
        tokenizer="emoji",
        family="vq",
        architecture=None,
        layout=Layout.square(8),
        start_from=NOTHING,
        num_clusters=512,
        stages={
            "coarse": StagePlan("nano", "autoregressive", {}, guided),
            "fine": StagePlan("nano", "masked", {}, fine),
            "baseline": StagePlan("nano", "autoregressive", {}, guided),
        },
        batch_size=batch_size,
        tokenizer_batch=0,
        steps=dict.fromkeys(("coarse", "fine", "baseline"), steps),
        seed=seed,
        seconds={},
        bundled={},
        reasons=(),
    )


def emoji_of_folders(split: str) -> tuple[ImageSet, dict[int, str]]:
    """The bundled emoji, and the folder of each that is in one, by its index."""
    images = open_images("emoji-subgroups-by-design", split)
    folder_of = {
        f"{design} {subgroup}": folder
        for folder, subgroups in FOLDERS.items()
        for subgroup in subgroups
        for design in DESIGNS
    }
    names = [images.class_names[label] for label in images.labels]
    return images, {index: folder_of[name] for index, name in enumerate(names) if name in folder_of}


def write_images(place: Path) -> None:
    """Write train/ and test/ with a folder of PNG files for each class, as a user's own images lie."""
    with atomic_path(place) as temporary:
        for split in ("train", "test"):
            images, chosen = emoji_of_folders(split)
            for index, folder in chosen.items():
                path = temporary / split / folder / f"{index:05}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images.read(index)).save(path)
