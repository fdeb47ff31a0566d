"""Run a plan: tokenizer, tokens, clusters, stages, model, report. Each part is made once; a killed run continues."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctf.bench.machine import seconds_in_turns
from ctf.classes import renumbered
from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.device import usable_device
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.files import check_writable, read_json_lines, write_json
from ctf.fit.config import NEW, NOTHING
from ctf.fit.decide import NEAR, POOR_PSNR
from ctf.fit.page import CURVES, MODEL, SHEET, curves, write_report
from ctf.fit.plan import MAP, PLAN, Plan
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_tensor
from ctf.images.sheet import contact_sheet, png_bytes, save_png
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_card import About
from ctf.model_folder import Pipeline, assemble, complete_card, open_stage
from ctf.pipeline import StagePipeline
from ctf.reporting.page import PAGE
from ctf.run_folder import RUN_LOG, RUN_MODEL
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokens.token_set import TokenSet
from ctf.tokens.tokenize import tokenize_images
from ctf.training.runs import train_stage, train_tokenizer

METRICS = "metrics.json"
#: Of the sheet: images, and samples of each system.
COLUMNS, ROWS = 8, 4


def announce(line: str) -> None:
    """Print what comes next, apart from what came before."""
    print(f"\n{line}", flush=True)


def check_folder(run: Path, plan: Plan | None = None) -> None:
    """Raise InputError if `run` cannot be written, or holds something else than a run, of `plan` if it is known."""
    check_writable(run, "folder")
    if run.exists() and any(run.iterdir()) and not (run / PLAN).exists():
        raise InputError(f"{run} is not empty and holds something else: choose another --out")
    if plan is not None and (run / PLAN).exists() and Plan.load(run / PLAN) != plan:
        raise InputError(f"{run / PLAN} is another plan: choose another --out")


def run_fit(plan: Plan, out: str | Path, device: str = "auto") -> dict[str, Any]:
    """Do what is left of `plan` in the folder `out`; returns what metrics.json holds.

    Killed at any moment and called again, it gives the model of an undisturbed run, on the same machine bit for bit.

    Args:
        plan: from `choose`; it is written to plan.json first.
        out: folder for tokenizer/, tokens/, map.safetensors, a folder for each stage, model/, samples.png, curves.png,
            metrics.json and report.md.
        device: where to train.

    Raises:
        InputError: as `check_folder` and `Plan.open`; what the parts raise.
    """
    run, last = Path(out), 4 + len(plan.stages)
    check_folder(run, plan)
    train, test = plan.open()
    plan.save(run / PLAN)
    if plan.tokenizer == NEW and not (run / "tokenizer" / RUN_MODEL).exists():
        announce(f"1/{last}  The tokenizer")
        train_tokenizer(plan.tokenizer_training(run, device))
    tokenizer = open_tokenizer(plan.tokenizer_source(run))

    announce(f"2/{last}  Images to tokens")
    train_split, test_split = plan.splits
    where = usable_device(device)
    tokenize_images(train, tokenizer, run / "tokens" / "train", plan.augmentation, split=train_split, device=where)
    tokenize_images(test, tokenizer, run / "tokens" / "test", "none", split=test_split, device=where)
    metrics: dict[str, Any] = {"tokenizer": measure_tokenizer(tokenizer, test)}
    if warning := tokenizer_warning(plan, metrics["tokenizer"]["psnr"]):
        metrics["warning"] = warning
        announce(f"Note: {warning}")

    announce(f"3/{last}  Codewords to clusters")
    if not (run / MAP).exists():
        _clusters(plan, tokenizer).save(run / MAP)
    for number, name in enumerate(plan.stages, start=4):
        announce(f"{number}/{last}  The stage {name}")
        if not (run / name / RUN_MODEL).exists():
            train_stage(plan.stage_training(name, run, device))

    announce(f"{last}/{last}  The model, samples and report")
    ours, *others = plan.systems
    parts = [str(run / name) for name in plan.systems[ours]]
    model = assemble(run / MODEL, plan.tokenizer_source(run), parts, str(run / "tokens" / "train")).to(device)
    systems: dict[str, StagePipeline] = {ours: model}
    for system in others:
        stages = [open_stage(run / name) for name in plan.systems[system]]
        systems[system] = Pipeline(model.tokenizer, model.class_names, stages).to(device)
    held_out = TokenSet.open(run / "tokens" / "test")
    metrics["likelihood"] = bits_per_token(model, held_out, against=systems.get("baseline"))
    metrics["images_per_second"] = _images_per_second(systems)
    sheet = _sheet(systems, test, plan.seed)
    save_png(run / SHEET, sheet)
    figures = {
        "tokenizer_psnr": metrics["tokenizer"]["psnr"],
        "bits_per_token": metrics["likelihood"]["bits_per_token"],
    }
    complete_card(run / MODEL, About(metrics=figures, sheet=png_bytes(sheet)))
    curves(run / CURVES, {name: read_json_lines(run / name / RUN_LOG) for name in plan.steps})
    write_json(run / METRICS, metrics)
    write_report(run, plan, metrics)
    announce(f"Done: open {run / PAGE}; sample more with `ctf sample --model {run / MODEL} --out samples`")
    return metrics


def tokenizer_warning(plan: Plan, psnr: float) -> str | None:
    """What is wrong with a tokenizer of this PSNR in dB, against bundled ones on the same images."""
    lost = f"the tokenizer keeps these images to {psnr:.1f} dB only, and what it loses no stage can give back"
    if plan.bundled:
        best = max(plan.bundled, key=lambda name: plan.bundled[name]["psnr"])
        reached = plan.bundled[best]["psnr"]
        if plan.tokenizer != best and psnr < reached - NEAR["psnr"]:
            return (
                f"{lost}: the bundled one, {best}, keeps {reached:.1f} dB of a hundred of them; take --tokenizer {best}"
            )
    if psnr < POOR_PSNR:
        more = "give it more time or more images" if plan.tokenizer == NEW else "--tokenizer new trains one, given time"
        return f"{lost}: {more}"
    return None


def _clusters(plan: Plan, tokenizer: Tokenizer) -> CoarseMap:
    """Those of the model to start from, if they are as many as planned; else made anew."""
    if plan.start_from != NOTHING:
        for stage in Pipeline.from_pretrained(plan.start_from, "cpu").stages:
            if stage.predicts is not None and stage.predicts.num_coarse == plan.num_clusters:
                return stage.predicts
    return cluster_codebook(tokenizer.codebook, plan.num_clusters, "kmeans", plan.seed)


def _images_per_second(systems: dict[str, StagePipeline]) -> dict[str, float]:
    """Of eight images at a time: medians, the systems taking turns."""
    calls = [partial(system, [0] * COLUMNS, seed=0) for system in systems.values()]
    times = seconds_in_turns(calls, next(iter(systems.values())).device)
    return {name: COLUMNS / statistics.median(taken) for name, taken in zip(systems, times, strict=True)}


def _sheet(systems: dict[str, StagePipeline], test: ImageSet, seed: int) -> Image.Image:
    """Images that were held out, what the tokenizer makes of them, and samples: of classes that were, spread evenly."""
    model = next(iter(systems.values()))
    own = renumbered(test.labels, test.class_names, model.class_names, test.source)
    there = np.unique(own).tolist()
    apart = max(1, len(there) // COLUMNS)
    labels = [there[i * apart % len(there)] for i in range(COLUMNS)]
    shown = []
    for i, label in enumerate(labels):
        rows = np.flatnonzero(own == label)
        shown.append(int(rows[i // len(there) % len(rows)]))
    real = np.stack([test.read(index) for index in shown])
    titles = ["images", "as tokens"]
    parts = [[*real], [*model.decode(model.tokenizer.encode(to_tensor(real).to(model.device)))]]
    for name, system in systems.items():
        samples = [np.asarray(image) for image in system(labels * ROWS, seed=seed)]
        titles += [name, *[""] * (ROWS - 1)]
        parts += [samples[start : start + COLUMNS] for start in range(0, len(samples), COLUMNS)]
    return contact_sheet(parts, titles, [model.class_names[label] for label in labels], scale=2)
