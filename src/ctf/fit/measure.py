"""What `ctf fit` measures before it decides: bundled tokenizers on the user's images, and how long its work takes."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ctf.bench.machine import seconds
from ctf.bench.training import WARM_UP, step_times
from ctf.codebook.clustering import cluster_codebook
from ctf.errors import InputError
from ctf.evaluation.likelihood import stage_score
from ctf.files import temporary_folder
from ctf.fit.config import NEW, NOTHING
from ctf.fit.page import curves
from ctf.fit.plan import CHECKPOINTS, CLUSTERS, SHEET_SIZE, Plan
from ctf.fit.stages import make_clusters
from ctf.images.image_set import ImageSet
from ctf.model_card import About
from ctf.model_folder import Pipeline, complete_card
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.lpips import LPIPS
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokenizer.registry import BUNDLED, load_tokenizer
from ctf.tokens.tokenize import encode
from ctf.tokens.writer import write_token_set
from ctf.training.config import TokenizerTraining, TokenTraining
from ctf.training.loop import Trainer
from ctf.training.objective import Objective
from ctf.training.runs import untrained_stage
from ctf.training.token_objective import TokenObjective
from ctf.training.tokenizer_objective import TokenizerObjective

#: Of an image, that a bundled tokenizer may make: the paper's, and what the bundled stages were made for.
MOST_TOKENS = 256
#: Images that bundled tokenizers are compared on.
COMPARED_IMAGES = 100
TIMED_STEPS, TIMED_IMAGES = 2, 16


def bundled_tokenizers(size: int) -> dict[str, Tokenizer]:
    """Those that take images of `size` × `size` pixels and make at most `MOST_TOKENS` of one, by name."""
    found = {}
    for name in BUNDLED:
        tokenizer = load_tokenizer(name)
        try:
            tokens = tokenizer.layout((size, size)).num_tokens
        except InputError:  # not a multiple of its pixels per token
            continue
        if tokens <= MOST_TOKENS:
            found[name] = tokenizer
    return found


def compare_tokenizers(
    tokenizers: dict[str, Tokenizer], images: ImageSet, device: torch.device, lpips: str | None
) -> dict[str, dict[str, float]]:
    """PSNR in dB of each on `COMPARED_IMAGES` images, spread evenly, and LPIPS where its weights are given."""
    perceptual = None if lpips is None else LPIPS.load(lpips).to(device)
    part = spread(len(images), COMPARED_IMAGES)
    measured = {}
    for name, tokenizer in tokenizers.items():
        used = copy.deepcopy(tokenizer).to(device)
        kept = measure_tokenizer(used, images, progress=False, perceptual=perceptual, part=part)
        metrics = ["psnr"] if perceptual is None else ["psnr", "lpips"]
        measured[name] = {metric: round(kept[metric], 3) for metric in metrics}
    return measured


def spread(total: int, count: int) -> range:
    """At most `count` of `total` indices, at equal distances."""
    return range(0, total, -(-total // count))


class Times(NamedTuple):
    """Seconds that the work of a plan takes on this machine."""

    read: float  # an image
    encode: float  # a view of it
    reconstruct: float  # an image: read, encode, decode and compare it
    clusters: float
    steps: dict[str, float]  # a step of each training, by name
    beside: dict[str, float]  # of each training, all but its steps
    score: float  # the likelihood of an image, in all systems
    report: float  # the sheet's samples, the model folder and the curves


def measure_times(plan: Plan, images: ImageSet, tokenizer: Tokenizer, device: torch.device) -> Times:
    """Do a little of all that `plan` asks for, with parts of the planned sizes, whose values are random.

    Raises:
        InputError: what the work would raise, such as weights to start from of which no block fits.
    """
    part, used = spread(len(images), TIMED_IMAGES), copy.deepcopy(tokenizer).to(device).eval()
    views = [np.zeros((TIMED_IMAGES, images.size, images.size, 3), np.uint8)]
    start = None if plan.start_from == NOTHING else plan.start_from

    def least(call: Callable[[], object], count: int) -> float:
        return min(seconds(call, device) for _ in range(2)) / count

    read = seconds(lambda: list(images.batches(TIMED_IMAGES, part)), device) / len(part)  # first: files are not cached
    reconstruct = least(lambda: measure_tokenizer(used, images, progress=False, part=part), len(part))
    steps, beside, score, stages = {}, {}, 0.0, {}
    with temporary_folder() as folder:
        if plan.tokenizer == NEW:
            config = plan.tokenizer_training(folder, str(device))
            trained = TokenizerObjective(config, 1, images, None)
            steps["tokenizer"], beside["tokenizer"] = training_times(trained, config)
        drawn = torch.randint(tokenizer.codebook_size, (plan.batch_size, plan.layout.num_tokens))
        classes = images.class_names
        labels = torch.arange(plan.batch_size) % len(classes)
        tokens = write_token_set(folder / "tokens", drawn, labels, tokenizer.codebook_size, plan.layout, classes)
        clusters = cluster_codebook(tokenizer.codebook, plan.num_clusters, "random")
        for name in plan.stages:
            training, level = plan.stage_training(name, folder, str(device)), CLUSTERS.get(name)
            levels = [clusters if level == wanted else None for wanted in ("predicts", "given")]
            stage = stages[name] = untrained_stage(training, tokens, tokenizer, *levels)
            objective = TokenObjective(stage, tokens, tokenizer=used, start_from=start)
            steps[name], beside[name] = training_times(objective, training)
            scores = partial(stage_score, stage.eval(), tokens, objective.measured, progress=False)
            score += seconds(scores, device) / len(tokens)
        systems = [Pipeline(used, classes, [stages[name] for name in names]) for names in plan.systems.values()]
        columns, rows = SHEET_SIZE

        def row() -> float:
            return sum(seconds(partial(system, [0] * columns), device) for system in systems)

        first = row()
        later = row() if device.type == "cuda" else first  # a GPU compiles in the first
        report = first + (rows - 1) * later + seconds(partial(write_files, systems[0], plan, folder), device)
    encoded = least(lambda: encode(used, views, device), TIMED_IMAGES)
    clustered = seconds(lambda: make_clusters(plan, tokenizer), device)
    return Times(read, encoded, reconstruct, clustered, steps, beside, score, report)


def training_times(objective: Objective, config: TokenizerTraining | TokenTraining) -> tuple[float, float]:
    """Seconds of a step, and of all else that a training does: its start, checkpoints and contact sheet."""
    loop = replace(config.loop, ema=0.9)  # which a plan of one step, the one that is timed, does without
    with temporary_folder() as folder:
        started = seconds(objective.start, torch.device("cpu"))
        trainer = Trainer(objective, folder, config.optimizer, loop)
        device = trainer.processes.device
        times = step_times(trainer, WARM_UP + TIMED_STEPS)
        step = statistics.median(times[WARM_UP:])

        def checkpoint() -> None:
            trainer.checkpoints.save(1)
            trainer.checkpoints.wait()

        with closing(trainer.checkpoints):
            saved = min(seconds(checkpoint, device) for _ in range(2))
        with torch.no_grad():
            sheet = seconds(lambda: objective.sheet(trainer.best), device)
    return step, started + max(0.0, times[0] - step) + CHECKPOINTS * saved + sheet


def write_files(model: Pipeline, plan: Plan, folder: Path) -> None:
    """What a run writes at its end."""
    model.save_pretrained(folder / "model")
    complete_card(folder / "model", About())
    curves(folder / "curves.png", {name: [{"epoch": 0.0, "loss": 1.0, "mse": 1.0}] for name in plan.steps})
