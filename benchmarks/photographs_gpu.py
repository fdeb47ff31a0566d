"""What photographs_gpu.sh does beside the commands of `ctf`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ctf.files import read_json, write_json
from ctf.model_folder import Pipeline
from ctf.tokens.token_set import TokenSet
from ctf.tokens.writer import write_token_set

#: Seconds that a training may take beside its steps, to begin and to evaluate; and how much longer its steps may take.
BESIDE, SLACK = 60, 1.3


def held_out(source: str, out: str, count: str) -> None:
    """Write a token set of `count` images of another, spread evenly: of Tiny ImageNet's 10,000, that is enough."""
    tokens = TokenSet.open(source)
    part = np.unique(np.linspace(0, len(tokens) - 1, int(count)).astype(np.int64))
    layout, names = tokens.layout, tokens.class_names
    write_token_set(out, tokens.gather(part), tokens.labels[part], tokens.codebook_size, layout, names)


def choose(rate: str, tokens: str, seconds: str, passes: str, out: str) -> None:
    """Write the largest size that sees the images `passes` times, its steps, and the time limit of each training.

    The three trainings of a size take equally many steps, in `seconds` together. If no size does it, it is the fastest.

    Args:
        rate: file of `ctf bench training`.
        tokens: token set to train on.
    """
    measured = read_json(Path(rate))
    each: dict[str, dict[str, float]] = {}
    for row in measured["rows"]:
        each.setdefault(row["size"], {})[row["stage"]] = row["step_seconds"]
    steps = {size: int(float(seconds) / sum(stages.values())) for size, stages in each.items()}
    wanted = float(passes) * len(TokenSet.open(tokens)) / measured["settings"]["batch_size"]
    by_speed = sorted(steps, key=lambda size: steps[size])
    size = next((size for size in by_speed if steps[size] >= wanted), by_speed[-1])
    limits = {f"{name}_limit": round(BESIDE + SLACK * steps[size] * own) for name, own in each[size].items()}
    write_json(out, {"size": size, "steps": steps[size], **limits})


def samples(out: str, count: str, device: str, *models: str) -> None:
    """Write tokens of `count` images of each model, uint16 (n, N), and their labels: all classes in turn."""
    arrays: dict[str, np.ndarray] = {}
    for folder in models:
        pipeline = Pipeline.from_pretrained(folder, device)
        labels = torch.arange(int(count)) % len(pipeline.class_names)
        batches = torch.arange(int(count)).split(pipeline.largest_batch())
        tokens = [pipeline.generate_tokens(labels[seeds], seeds.tolist()).cpu() for seeds in batches]
        arrays |= {Path(folder).name: torch.cat(tokens).numpy().astype(np.uint16), "labels": labels.numpy()}
        np.savez_compressed(out, **arrays)


if __name__ == "__main__":
    parts: dict[str, Callable[..., None]] = {"held_out": held_out, "choose": choose, "samples": samples}
    parts[sys.argv[1]](*sys.argv[2:])
