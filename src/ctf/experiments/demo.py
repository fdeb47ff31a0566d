"""`ctf demo`: the whole method on the bundled emoji, from pixels to a report, beside a baseline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ctf.codebook.coarse_map import CoarseMap
from ctf.codebook.statistics import describe
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.experiments.report import demo_report, plot_curves
from ctf.experiments.swap import swap_images
from ctf.files import check_writable, read_json_lines, write_json, write_text
from ctf.fit.carry_out import MAP, MODEL, run_fit
from ctf.fit.plan import Plan
from ctf.images.image_set import ImageSet, open_images
from ctf.images.pixels import to_tensor
from ctf.images.sheet import contact_sheet, save_png
from ctf.model_folder import Pipeline, open_stage
from ctf.run_folder import RUN_LOG, RUN_MODEL
from ctf.tokens.token_set import TokenSet
from ctf.training.runs import train_stage

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
    steps={"tokenizer": 0, "coarse": 700, "fine": 700},
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
    steps={"tokenizer": 0, "coarse": 12, "fine": 12},
)

#: The systems that are compared, each a list of stages, named as their run folders.
SYSTEMS = {"baseline": ["baseline"], "coarse-to-fine": ["coarse", "fine"]}
COLUMNS = ["noto smileys", "twemoji animals", "noto food", "fluent-emoji smileys", "fluent-emoji-flat travel"]
COLUMNS += ["emojione flags", "fxemoji people", "emojione animals", "twemoji flags", "fluent-emoji food"]
COLUMNS += ["fluent-emoji-flat symbols", "noto objects"]
#: Of the bundled model, shown first.
CLASSES = ["noto face-smiling", "noto cat-face", "fluent-emoji heart", "twemoji country-flag", "noto person-role"]
CLASSES += ["twemoji hand-fingers-open", "noto time", "noto transport-ground"]
FIT, FIRST_SHEET = "fit", "embedded.png"


def run_demo(out: str | Path, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """`ctf fit` on the emoji, then a baseline, measured and sampled beside it; returns what metrics.json holds.

    Interrupted and called again it goes on where it stopped.

    Raises:
        InputError: the folder holds something else, or a demo of other settings.
    """
    run = Path(out)
    check_writable(run, "folder")
    if run.exists() and any(run.iterdir()) and not (run / FIRST_SHEET).exists():
        raise InputError(f"{run} is not empty: remove it or choose another --out")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is out of range: choose one in [0, 2^32)")
    plan = replace(QUICK if quick else FULL, seed=seed)
    metrics: dict[str, Any] = {"quick": quick, "threads": torch.get_num_threads(), "seconds": {}}

    @contextmanager
    def timed(name: str, title: str) -> Iterator[None]:
        print(f"\n{title}", flush=True)
        start = time.perf_counter()
        yield
        metrics["seconds"][name] = round(time.perf_counter() - start, 1)

    with timed("first sheet", "Samples of the bundled model"):
        save_png(run / FIRST_SHEET, _embedded_samples(seed))
        print(f"{run / FIRST_SHEET}: look at it while a small model is trained from the start")
    with timed("fit", f"Coarse-to-fine, as `ctf fit` does it\n\n{plan.table()}"):
        metrics |= run_fit(plan, run / FIT, "cpu", lambda line: print(f"\n{line}", flush=True))
    with timed("baseline", "A baseline of the same size, steps and batches"):
        baseline = plan.stage_training("baseline", run / FIT, "cpu")
        if not Path(baseline.out, RUN_MODEL).exists():
            train_stage(baseline)

    with timed("comparison", "Both compared"):
        test, tokens = open_images(plan.images, plan.splits[1]), TokenSet.open(run / FIT / "tokens" / "test")
        model = Pipeline.from_pretrained(run / FIT / MODEL)
        tokenizer = model.tokenizer
        pipelines = {"baseline": Pipeline(tokenizer, tokens.class_names, [open_stage(baseline.out)])}
        pipelines["coarse-to-fine"] = model
        likelihoods = {"baseline": bits_per_token(pipelines["baseline"], tokens)}
        metrics["bits_per_token"] = likelihoods | {"coarse-to-fine": metrics.pop("likelihood")}
        save_png(run / "samples.png", _samples(pipelines, test, seed, metrics))
        coarse_map = CoarseMap.load(run / FIT / MAP)
        metrics["clusters"] = describe(tokenizer.codebook, coarse_map)
        swap = swap_images(tokenizer, test, (coarse_map.num_coarse,), seed=seed)
        save_png(run / "swap.png", swap.figure)
        metrics["swap_psnr"] = {str(count): values for count, values in swap.psnr.items()}

    logs = {stage: read_json_lines(run / FIT / stage / RUN_LOG) for stages in SYSTEMS.values() for stage in stages}
    plot_curves(run / "curves.png", logs, metrics["bits_per_token"], SYSTEMS)
    write_json(run / "metrics.json", metrics)
    write_text(run / "report.md", demo_report(plan, metrics))
    print(f"Done: open {run / 'report.md'}; sample more with `ctf sample --model {run / FIT / MODEL} --out samples`")
    return metrics


def _embedded_samples(seed: int) -> Image.Image:
    """Two images of each of a few classes."""
    images = [np.asarray(image) for image in Pipeline.from_pretrained("emoji")(CLASSES * 2, seed=seed)]
    return contact_sheet([images[: len(CLASSES)], images[len(CLASSES) :]], None, CLASSES, scale=2)


def _samples(pipelines: dict[str, Pipeline], test: ImageSet, seed: int, metrics: dict[str, Any]) -> Image.Image:
    """The sheet of labelled rows: real, reconstruction, and a row for each system."""
    labels = [test.class_names.index(name) for name in COLUMNS]
    real = np.stack([test.read(int(np.flatnonzero(test.labels == label)[0])) for label in labels])
    first = next(iter(pipelines.values()))
    rows = {"real": real, "reconstruction": first.decode(first.tokenizer.encode(to_tensor(real)))}
    metrics["images_per_second"] = {}
    for name, pipeline in pipelines.items():
        start = time.perf_counter()
        rows[name] = np.stack([np.asarray(image) for image in pipeline(labels, seed=seed)])
        metrics["images_per_second"][name] = round(len(labels) / (time.perf_counter() - start), 2)
    return contact_sheet([list(row) for row in rows.values()], list(rows), COLUMNS, scale=2)
