"""Carry a plan out: tokenizer, tokens, clusters, stages, model, report. Every part is made once, and continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctf.classes import renumbered
from ctf.codebook.clustering import cluster_codebook
from ctf.device import usable_device
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.files import check_writable, read_json_lines, write_json, write_text
from ctf.fit.page import curves, report
from ctf.fit.plan import MAP, PLAN, Plan
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_tensor
from ctf.images.sheet import contact_sheet, png_bytes, save_png
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_card import About
from ctf.model_folder import Pipeline, assemble, complete_card
from ctf.run_folder import RUN_LOG, RUN_MODEL
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokens.token_set import TokenSet
from ctf.tokens.tokenize import tokenize_images
from ctf.training.runs import train_stage, train_tokenizer

MODEL, SHEET, CURVES, PAGE, METRICS = "model", "samples.png", "curves.png", "report.md", "metrics.json"
STAGES = ("coarse", "fine")
#: Below this PSNR in dB a tokenizer loses what an image shows.
POOR_PSNR = 20.0
COLUMNS = 8


def run_fit(plan: Plan, out: str | Path, device: str = "auto", say: Callable[[str], object] = print) -> dict[str, Any]:
    """Do what is left of `plan` in the folder `out`; returns what metrics.json holds.

    Killed at any moment and called again, it gives the model of an undisturbed run, on the same machine bit for bit.

    Args:
        plan: from `choose`; it is written to plan.json first.
        out: folder for tokenizer/, tokens/, map.safetensors, coarse/, fine/, model/, samples.png, curves.png,
            metrics.json and report.md.
        device: where to train.
        say: is told what comes next.

    Raises:
        InputError: a folder that cannot be written or holds something else; what the parts raise.
    """
    run = Path(out)
    check_writable(run, "folder")
    if run.exists() and any(run.iterdir()) and not (run / PLAN).exists():
        raise InputError(f"{run} holds something else: choose another --out")
    if (run / PLAN).exists() and Plan.load(run / PLAN) != plan:
        raise InputError(f"{run / PLAN} is another plan: choose another --out")
    train, test = plan.open()
    plan.save(run / PLAN)
    if plan.tokenizer is None and not (run / "tokenizer" / RUN_MODEL).exists():
        say("1/6  The tokenizer")
        train_tokenizer(plan.tokenizer_training(run, device))
    source = plan.tokenizer or str(run / "tokenizer")
    tokenizer = open_tokenizer(source)

    say("2/6  Images to tokens")
    train_split, test_split = plan.splits
    where = usable_device(device)
    tokenize_images(train, tokenizer, run / "tokens" / "train", plan.augmentation, split=train_split, device=where)
    tokenize_images(test, tokenizer, run / "tokens" / "test", "none", split=test_split, device=where)
    metrics: dict[str, Any] = {"tokenizer": measure_tokenizer(tokenizer, test)}
    if metrics["tokenizer"]["psnr"] < POOR_PSNR:
        more = "give it more time or more images" if plan.tokenizer is None else "leave --tokenizer out to train one"
        metrics["warning"] = (
            f"the tokenizer keeps these images to {metrics['tokenizer']['psnr']:.1f} dB only, where a good one has 24 "
            f"and more: what it loses no stage can give back; {more}"
        )
        say(f"Note: {metrics['warning']}")

    say("3/6  Codewords to clusters")
    if not (run / MAP).exists():
        cluster_codebook(tokenizer.codebook, plan.num_clusters, "kmeans", plan.seed).save(run / MAP)
    for number, name in enumerate(STAGES, start=4):
        say(f"{number}/6  The {name} stage")
        if not (run / name / RUN_MODEL).exists():
            train_stage(plan.stage_training(name, run, device))

    say("6/6  The model, samples and report")
    pipeline = assemble(run / MODEL, source, [str(run / name) for name in STAGES], str(run / "tokens" / "train"))
    metrics["likelihood"] = bits_per_token(pipeline.to(device), TokenSet.open(run / "tokens" / "test"))
    logs = {name: read_json_lines(run / name / RUN_LOG) for name in ("tokenizer", *STAGES) if (run / name).exists()}
    sheet = _sheet(pipeline, test, plan.seed)
    save_png(run / SHEET, sheet)
    figures = {
        "tokenizer_psnr": metrics["tokenizer"]["psnr"],
        "bits_per_token": metrics["likelihood"]["bits_per_token"],
    }
    complete_card(run / MODEL, About(metrics=figures, sheet=png_bytes(sheet)))
    curves(run / CURVES, logs)
    write_json(run / METRICS, metrics)
    write_text(run / PAGE, report(plan, metrics, logs, run))
    return metrics


def _sheet(pipeline: Pipeline, test: ImageSet, seed: int) -> Image.Image:
    """Images that were held out, what the tokenizer makes of them, and samples: of classes that were, in turn."""
    own = renumbered(test.labels, test.class_names, pipeline.class_names, test.source)
    there = np.unique(own).tolist()
    labels = [there[i % len(there)] for i in range(COLUMNS)]
    shown = []
    for i, label in enumerate(labels):
        rows = np.flatnonzero(own == label)
        shown.append(int(rows[i // len(there) % len(rows)]))
    real = np.stack([test.read(index) for index in shown])
    device = next(pipeline.tokenizer.parameters()).device
    seen = {"images": real, "as tokens": pipeline.decode(pipeline.tokenizer.encode(to_tensor(real).to(device)))}
    samples = [np.asarray(image) for image in pipeline(labels * 4, seed=seed)]
    parts = [samples[start : start + COLUMNS] for start in range(0, len(samples), COLUMNS)]
    names = [pipeline.class_names[label] for label in labels]
    return contact_sheet([*map(list, seen.values()), *parts], [*seen, "samples", "", "", ""], names, scale=2)
