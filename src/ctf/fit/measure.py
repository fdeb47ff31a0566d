"""What `ctf fit` measures before it decides: bundled tokenizers on the user's images, and seconds of training steps."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from ctf.bench.machine import seconds
from ctf.bench.training import step_seconds
from ctf.codebook.clustering import cluster_codebook
from ctf.errors import InputError
from ctf.files import temporary_folder
from ctf.fit.config import NEW
from ctf.fit.plan import CLUSTERS, Plan
from ctf.images.image_set import ImageSet
from ctf.stages.registry import new_stage
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.lpips import LPIPS
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokenizer.registry import BUNDLED, load_tokenizer
from ctf.tokens.writer import write_token_set
from ctf.training.config import LoopConfig
from ctf.training.objective import Objective
from ctf.training.token_objective import TokenObjective
from ctf.training.tokenizer_objective import TokenizerObjective

#: Of an image, that a bundled tokenizer may make: the paper's, and what the bundled stages were made for.
MOST_TOKENS = 256
#: Images that bundled tokenizers are compared on.
COMPARED_IMAGES = 100
TIMED_STEPS, TIMED_IMAGES = 3, 16


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
    part = range(0, len(images), -(-len(images) // COMPARED_IMAGES))
    measured = {}
    for name, tokenizer in tokenizers.items():
        kept = measure_tokenizer(tokenizer.to(device), images, progress=False, perceptual=perceptual, part=part)
        metrics = ["psnr"] if perceptual is None else ["psnr", "lpips"]
        measured[name] = {metric: round(kept[metric], 3) for metric in metrics}
    return measured


@torch.inference_mode()
def seconds_to_encode(tokenizer: Tokenizer, images: ImageSet, device: torch.device) -> float:
    """Of an image."""
    pixels = torch.zeros(TIMED_IMAGES, 3, images.size, images.size, device=device)
    encoder = copy.deepcopy(tokenizer).to(device).eval()
    return min(seconds(lambda: encoder.encode(pixels), device) for _ in range(TIMED_STEPS)) / TIMED_IMAGES


def seconds_of_steps(plan: Plan, images: ImageSet, tokenizer: Tokenizer, device: torch.device) -> dict[str, float]:
    """A step of each training of `plan`, with models, tokens and clusters of the planned sizes, but random."""
    each, codebook_size = {}, tokenizer.codebook_size
    with temporary_folder() as folder:
        if plan.tokenizer == NEW:
            config = plan.tokenizer_training(folder, str(device))
            objective: Objective = TokenizerObjective(config, 1, images, None)
            each["tokenizer"] = step_seconds(objective, averaging(config.loop), config.optimizer, TIMED_STEPS)
        drawn = torch.randint(codebook_size, (plan.batch_size, plan.layout.num_tokens))
        labels = torch.arange(plan.batch_size) % len(images.class_names)
        tokens = write_token_set(folder / "tokens", drawn, labels, codebook_size, plan.layout, images.class_names)
        clusters = cluster_codebook(tokenizer.codebook, plan.num_clusters, "random")
        for name, made in plan.stages.items():
            training = plan.stage_training(name, folder, str(device))
            settings: dict[str, Any] = {CLUSTERS[name]: clusters} if name in CLUSTERS else {}
            stage = new_stage(
                made.kind,
                made.size,
                name=name,
                layout=plan.layout,
                num_classes=tokens.num_classes,
                codebook_size=codebook_size,
                tokenizer=tokenizer,
                **settings,
                **made.settings,
            )
            objective = TokenObjective(stage, tokens)
            each[name] = step_seconds(objective, averaging(training.loop), training.optimizer, TIMED_STEPS)
    return each


def averaging(loop: LoopConfig) -> LoopConfig:
    """With the average of the weights, which a plan of one step, the one that is timed, does without."""
    return replace(loop, ema=0.9)
