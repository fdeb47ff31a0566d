"""Run a plan: tokenizer, tokens, clusters, stages, model, report. Each part is made once; a killed run continues."""

from __future__ import annotations

import copy
import shlex
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from PIL import Image

from ctf.bench.machine import seconds_in_turns
from ctf.classes import renumbered
from ctf.device import usable_device
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token, known_orders
from ctf.files import check_writable, read_json_lines, write_json
from ctf.fit.config import NEW
from ctf.fit.decide import NEAR, POOR_PSNR
from ctf.fit.page import CURVES, MODEL, SHEET, curves, figures, write_report
from ctf.fit.plan import MAP, PLAN, SHEET_SIZE, Plan
from ctf.fit.stages import make_clusters
from ctf.images.image_set import ImageSet
from ctf.images.pixels import to_tensor
from ctf.images.sheet import contact_sheet, png_bytes, save_png
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_card import About
from ctf.model_folder import Pipeline, assemble, complete_card, open_stage
from ctf.pipeline import StagePipeline
from ctf.progress import duration
from ctf.reporting.page import PAGE
from ctf.run_folder import RUN_LOG, RUN_MODEL
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokenizer.registry import BUNDLED
from ctf.tokens.token_set import TokenSet
from ctf.tokens.tokenize import tokenize_images
from ctf.training.batches import read_or_next
from ctf.training.runs import train_stage, train_tokenizer

METRICS = "metrics.json"


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
    run, where = Path(out), usable_device(device)
    check_folder(run, plan)
    train, test = plan.open()
    plan.save(run / PLAN)
    seconds: dict[str, float] = {}
    part = partial(_part, plan, seconds)
    if plan.tokenizer == NEW:
        with part("tokenizer"):
            if not (run / "tokenizer" / RUN_MODEL).exists():
                train_tokenizer(plan.tokenizer_training(run, device))

    with part("tokens"):
        tokenizer = open_tokenizer(plan.tokenizer_source(run))
        train_split, test_split = plan.splits
        tokenize_images(train, tokenizer, run / "tokens" / "train", plan.augmentation, split=train_split, device=where)
        tokenize_images(test, tokenizer, run / "tokens" / "test", "none", split=test_split, device=where)
        kept = measure_tokenizer(copy.deepcopy(tokenizer).to(where), test)
        scope = plan.scope + (f" ({kept['images']:,} of them readable)" if kept["images"] < len(test) else "")
        metrics: dict[str, Any] = {"measured_on": scope, "tokenizer": kept}
        if warning := tokenizer_warning(plan, kept["psnr"]):
            metrics["warning"] = warning
            announce(f"Note: {warning}")

    with part("clusters"):
        if not (run / MAP).exists():
            make_clusters(plan, tokenizer).save(run / MAP)
    for name in plan.stages:
        with part(name):
            if not (run / name / RUN_MODEL).exists():
                train_stage(plan.stage_training(name, run, device))

    with part("report"):
        ours, *others = plan.systems
        parts = [str(run / name) for name in plan.systems[ours]]
        model = assemble(run / MODEL, plan.tokenizer_source(run), parts, str(run / "tokens" / "train"))
        model.to(device)
        systems: dict[str, StagePipeline] = {ours: model}
        for system in others:
            stages = [open_stage(run / name) for name in plan.systems[system]]
            systems[system] = Pipeline(model.tokenizer, model.class_names, stages).to(device)
        held_out = TokenSet.open(run / "tokens" / "test")
        orders = known_orders(model.stages)
        metrics["likelihood"] = bits_per_token(model, held_out, against=systems.get("baseline"), **orders)
        sheet, metrics["images_per_second"] = _sheet(systems, test, plan.seed)
        save_png(run / SHEET, sheet)
        on_card = {"tokenizer_psnr": kept["psnr"], "bits_per_token": metrics["likelihood"]["bits_per_token"]}
        if not plan.held_out_split:
            on_card = {f"{name}_on_training_images": value for name, value in on_card.items()}
        data = model.about.data
        if plan.tokenizer in BUNDLED:  # whose terms may bind the model
            data += f"; the tokenizer is the bundled {plan.tokenizer}"
        complete_card(run / MODEL, About(data, metrics=on_card, sheet=png_bytes(sheet)))
        curves(run / CURVES, {name: read_json_lines(run / name / RUN_LOG) for name in plan.steps})
        write_report(run, plan, metrics)
    metrics["seconds"] = {name: round(took, 1) for name, took in seconds.items()}
    write_json(run / METRICS, metrics)
    announce("\n".join(figures(metrics)))
    announce(
        f"Done in {duration(sum(seconds.values()))}: open {run / PAGE}; "
        f"sample more with `ctf sample --model {shlex.quote(str(run / MODEL))} --out samples`"
    )
    return metrics


@contextmanager
def _part(plan: Plan, seconds: dict[str, float], name: str) -> Iterator[None]:
    """Announce a part of the plan, and note in `seconds` what it took."""
    announce(f"{plan.parts.index(name) + 1}/{len(plan.parts)}  {plan.line(name)}")
    start = monotonic()
    yield
    seconds[name] = monotonic() - start


def tokenizer_warning(plan: Plan, psnr: float) -> str | None:
    """What is wrong with a tokenizer of this PSNR in dB, against bundled ones on the same images."""
    lost = f"the tokenizer keeps these images to {psnr:.1f} dB only, and what it loses no stage can give back"
    if plan.bundled:
        best = max(plan.bundled, key=lambda name: plan.bundled[name]["psnr"])
        reached = plan.bundled[best]["psnr"]
        kept = plan.bundled.get(plan.tokenizer, {"psnr": psnr})  # of the same hundred images, where it is bundled
        if "lpips" not in kept and kept["psnr"] < reached - NEAR["psnr"]:
            return (
                f"{lost}: the bundled one, {best}, keeps {reached:.1f} dB of a hundred of them; take --tokenizer {best}"
            )
    if psnr < POOR_PSNR:
        more = "give it more time or more images" if plan.tokenizer == NEW else "--tokenizer new trains one, given time"
        return f"{lost}: {more}"
    return None


def _sheet(systems: dict[str, StagePipeline], test: ImageSet, seed: int) -> tuple[Image.Image, dict[str, float]]:
    """Images that were measured, what the tokenizer makes of them, and samples of their classes, spread evenly.

    With it the images per second of each system, which samples a row at a time: the median of all rows but the first.
    """
    model, (columns, rows) = next(iter(systems.values())), SHEET_SIZE
    own = renumbered(test.labels, test.class_names, model.class_names, test.source)
    there = np.unique(own).tolist()
    apart = max(1, len(there) // columns)
    labels = [there[i * apart % len(there)] for i in range(columns)]
    shown = []
    for i, label in enumerate(labels):
        of_class = np.flatnonzero(own == label)
        shown.append(int(of_class[i // len(there) % len(of_class)]))
    real = np.stack([read_or_next(test, index) for index in shown])
    titles = ["images", "as tokens"]
    parts = [[*real], [*model.decode(model.tokenizer.encode(to_tensor(real).to(model.device)))]]
    samples: dict[str, list[Image.Image]] = {name: [] for name in systems}

    def sample(name: str) -> None:
        samples[name] += systems[name](labels, seed=seed + len(samples[name]))

    times = seconds_in_turns([partial(sample, name) for name in systems], model.device, rows - 1)
    for name, images in samples.items():
        titles += [name, *[""] * (rows - 1)]
        parts += [[*map(np.asarray, images[start : start + columns])] for start in range(0, len(images), columns)]
    sheet = contact_sheet(parts, titles, [model.class_names[label] for label in labels], scale=2)
    return sheet, {name: columns / statistics.median(taken) for name, taken in zip(systems, times, strict=True)}
