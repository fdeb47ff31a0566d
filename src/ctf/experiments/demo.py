"""`ctf demo`: the whole method on the embedded emoji, from pixels to a report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.statistics import describe
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.experiments.report import demo_report, plot_curves
from ctf.experiments.swap import swap_images
from ctf.files import check_writable, read_json_lines, write_json, write_text
from ctf.images.image_set import ImageSet, open_images
from ctf.images.pixels import to_tensor
from ctf.images.sheet import contact_sheet, save_png
from ctf.model_card import About
from ctf.model_folder import RUN_LOG, Pipeline, data_in_words, open_stage
from ctf.sampling.settings import Sampling
from ctf.tokenizer.interface import Tokenizer
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokenizer.registry import load_tokenizer
from ctf.tokens.tokenize import tokenize_images
from ctf.training.config import BaselineTraining, CoarseTraining, FineTraining, LoopConfig, OptimizerConfig
from ctf.training.runs import train_stage


@dataclass(frozen=True)
class DemoSize:
    """What the demo trains, the same for every stage."""

    train_split: str
    size: str
    steps: int
    batch_size: int
    learning_rate: float


FULL = DemoSize("train", "nano", 700, 32, 3e-3)
QUICK = DemoSize("test", "nano", 12, 16, 3e-3)

NUM_CLUSTERS = 512
#: The systems that are compared, each a list of stages, named as their run folders.
SYSTEMS = {"baseline": ["baseline"], "coarse-to-fine": ["coarse", "fine"]}
#: The paper's guidance; its temperature of 1.1 is for well-trained models; these are under-trained.
FIRST, LATER = Sampling(cfg_scale=2.0), Sampling()
COLUMNS = ["noto smileys", "twemoji animals", "noto food", "fluent-emoji smileys", "fluent-emoji-flat travel"]
COLUMNS += ["emojione flags", "fxemoji people", "emojione animals", "twemoji flags", "fluent-emoji food"]
COLUMNS += ["fluent-emoji-flat symbols", "noto objects"]


def run_demo(out: str | Path, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Tokenize, cluster, train three stages, sample, measure, report; returns what metrics.json holds.

    Raises:
        InputError: the folder already holds a demo.
    """
    run = Path(out)
    check_writable(run, "folder")
    if run.exists() and any(run.iterdir()):
        raise InputError(f"{run} is not empty: remove it or choose another --out")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed {seed} is out of range: choose one in [0, 2^32)")
    size = QUICK if quick else FULL
    metrics: dict[str, Any] = {
        "quick": quick,
        "seed": seed,
        "size": asdict(size),
        "sampling": asdict(FIRST),
        "threads": torch.get_num_threads(),
        "seconds": {},
    }

    @contextmanager
    def timed(name: str, title: str) -> Iterator[None]:
        print(f"\n{title}", flush=True)
        start = time.perf_counter()
        yield
        metrics["seconds"][name] = round(time.perf_counter() - start, 1)

    tokenizer = load_tokenizer("emoji")
    test = open_images("emoji", "test")
    with timed("tokenize", "1/6  Images to tokens"):
        tokens = {}
        for split in dict.fromkeys((size.train_split, "test")):
            images = open_images("emoji", split)
            tokens[split] = tokenize_images(images, tokenizer, run / "tokens" / split, "none", split=split)
        metrics["tokenizer"] = measure_tokenizer(tokenizer, test)

    with timed("cluster", f"2/6  {tokenizer.codebook_size:,} codewords to {NUM_CLUSTERS} clusters"):
        coarse_map = cluster_codebook(tokenizer.codebook, NUM_CLUSTERS, "kmeans", seed)
        coarse_map.save(run / "coarse_map.safetensors")
        metrics["clusters"] = describe(tokenizer.codebook, coarse_map)
        swap = swap_images(tokenizer, test, (NUM_CLUSTERS,), seed=seed)
        save_png(run / "swap.png", swap.figure)
        metrics["swap_psnr"] = {str(count): values for count, values in swap.psnr.items()}

    with timed("train", "3/6  Training: baseline, coarse and fine, of the same size and steps"):
        _train(run, size, seed)

    with timed("likelihood", "4/6  Bits per token on the test split"):
        names = tokens["test"].class_names
        pipelines = {
            system: Pipeline(tokenizer, names, [open_stage(run / stage) for stage in stages])
            for system, stages in SYSTEMS.items()
        }
        metrics["bits_per_token"] = {name: bits_per_token(p, tokens["test"]) for name, p in pipelines.items()}

    with timed("sample", "5/6  Sampling both with the same seeds"):
        save_png(run / "samples.png", _samples(pipelines, tokenizer, test, seed, metrics))
        pipelines["coarse-to-fine"].about = About(
            data=data_in_words(tokens[size.train_split]),
            metrics={"bits_per_token": metrics["bits_per_token"]["coarse-to-fine"]["bits_per_token"]},
            sheet=(run / "samples.png").read_bytes(),
        )
        pipelines["coarse-to-fine"].save_pretrained(run / "model")

    print("\n6/6  Report", flush=True)
    logs = {stage: read_json_lines(run / stage / RUN_LOG) for stages in SYSTEMS.values() for stage in stages}
    plot_curves(run / "curves.png", logs, metrics["bits_per_token"], SYSTEMS)
    write_json(run / "metrics.json", metrics)
    write_text(run / "report.md", demo_report(metrics))
    print(f"Done: open {run / 'report.md'}; sample more with `ctf sample --model {run / 'model'} --out samples`")
    return metrics


def _train(run: Path, size: DemoSize, seed: int) -> None:
    common: dict[str, Any] = {
        "tokens": str(run / "tokens" / size.train_split),
        "held_out": str(run / "tokens" / "test"),
        "size": size.size,
        "dropout": 0.0,
        "tokenizer": "emoji",
        "optimizer": OptimizerConfig(size.learning_rate, size.learning_rate / 30, warmup_steps=size.steps // 20),
        "loop": LoopConfig(
            batch_size=size.batch_size,
            steps=size.steps,
            seed=seed,
            log_every=max(1, size.steps // 60),
            evaluate_every=0,
            device="cpu",
        ),
    }
    coarse_map = str(run / "coarse_map.safetensors")
    train_stage(BaselineTraining(out=str(run / "baseline"), sampling=FIRST, **common))
    train_stage(CoarseTraining(out=str(run / "coarse"), coarse_map=coarse_map, sampling=FIRST, **common))
    train_stage(FineTraining(out=str(run / "fine"), coarse_map=coarse_map, sampling=LATER, **common))


def _samples(
    pipelines: dict[str, Pipeline], tokenizer: Tokenizer, test: ImageSet, seed: int, metrics: dict[str, Any]
) -> Image.Image:
    """The sheet of labelled rows: real, reconstruction, and a row for each system."""
    labels = [test.class_names.index(name) for name in COLUMNS]
    real = np.stack([test.read(int(np.flatnonzero(test.labels == label)[0])) for label in labels])
    first = next(iter(pipelines.values()))
    rows = {"real": real, "reconstruction": first.decode(tokenizer.encode(to_tensor(real)))}
    metrics["images_per_second"] = {}
    for name, pipeline in pipelines.items():
        start = time.perf_counter()
        rows[name] = np.stack([np.asarray(image) for image in pipeline(labels, seed=seed)])
        metrics["images_per_second"][name] = round(len(labels) / (time.perf_counter() - start), 2)
    return contact_sheet([list(row) for row in rows.values()], list(rows), COLUMNS, scale=2)
