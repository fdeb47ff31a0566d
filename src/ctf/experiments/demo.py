"""`ctf demo`: the whole method on the embedded emoji, from pixels to a report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctf.codebook.clustering import cluster_codebook
from ctf.codebook.coarse_map import CoarseMap
from ctf.codebook.statistics import describe
from ctf.errors import InputError
from ctf.evaluation.likelihood import bits_per_token
from ctf.experiments.report import demo_report, plot_curves
from ctf.experiments.swap import swap_figure
from ctf.files import write_json, write_text
from ctf.images.image_set import ImageSet, open_images
from ctf.images.pixels import to_tensor
from ctf.images.sheet import contact_sheet, save_png
from ctf.models.transformer import Transformer
from ctf.pipeline import Pipeline
from ctf.tokenizer.measure import measure_tokenizer
from ctf.tokenizer.pretrained import load_tokenizer
from ctf.tokenizer.vq_tokenizer import VQTokenizer
from ctf.tokens.token_set import TokenSet
from ctf.tokens.tokenize import tokenize_images
from ctf.training.config import CoarseTraining, FineTraining, LoopConfig, OptimizerConfig, TokenTraining
from ctf.training.log import read_log
from ctf.training.runs import train_baseline, train_coarse, train_fine


@dataclass(frozen=True)
class DemoSize:
    """What the demo trains, the same for the baseline, stage 1 and stage 2."""

    train_split: str
    size: str
    steps: int
    batch_size: int
    learning_rate: float


FULL = DemoSize("train", "nano", 700, 32, 3e-3)
QUICK = DemoSize("test", "nano", 12, 16, 3e-3)

NUM_CLUSTERS = 512
#: The paper's guidance; its temperature of 1.1 is for models that are sure of themselves, which these are not yet.
SAMPLING: dict[str, Any] = {"cfg_scale": 2.0, "temperature": 1.0, "fine_temperature": 1.0}
COLUMNS = ["noto smileys", "twemoji animals", "noto food", "fluent-emoji smileys", "fluent-emoji-flat travel"]
COLUMNS += ["emojione flags", "fxemoji people", "emojione animals", "twemoji flags", "fluent-emoji food"]
COLUMNS += ["fluent-emoji-flat symbols", "noto objects"]


def run_demo(out: str | Path, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Tokenize, cluster, train three models, sample, measure, report; returns what metrics.json holds.

    Raises:
        InputError: the folder already holds a demo.
    """
    run = Path(out)
    if run.exists() and any(run.iterdir()):
        raise InputError(f"{run} is not empty: remove it or choose another --out")
    size = QUICK if quick else FULL
    metrics: dict[str, Any] = {
        "quick": quick,
        "seed": seed,
        "sampling": SAMPLING,
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

    with timed("cluster", f"2/6  {tokenizer.config.codebook_size:,} codewords to {NUM_CLUSTERS} clusters"):
        coarse_map = cluster_codebook(tokenizer.codebook, NUM_CLUSTERS, "kmeans", seed)
        coarse_map.save(run / "coarse_map.safetensors")
        metrics["clusters"] = describe(tokenizer.codebook, coarse_map)
        swap = swap_figure(tokenizer, test, (NUM_CLUSTERS,), seed=seed)
        save_png(run / "swap.png", swap.figure)
        metrics["swap_psnr"] = {str(count): values for count, values in swap.psnr.items()}

    with timed("train", "3/6  Training: baseline, coarse and fine, of the same size and steps"):
        _train(run, size, seed)

    with timed("likelihood", "4/6  Bits per token on the test split"):
        pipelines = _pipelines(run, tokenizer, tokens["test"], coarse_map)
        metrics["bits_per_token"] = {name: bits_per_token(p, tokens["test"]) for name, p in pipelines.items()}

    with timed("sample", "5/6  Sampling both with the same seeds"):
        sheet = _samples(pipelines, tokenizer, test, seed, metrics)
        save_png(run / "samples.png", sheet)
        pipelines["coarse-to-fine"].save_pretrained(run / "model")

    print("\n6/6  Report", flush=True)
    logs = {stage: read_log(run / stage / "log.jsonl") for stage in ("baseline", "coarse", "fine")}
    plot_curves(run / "curves.png", logs, metrics["bits_per_token"])
    write_json(run / "metrics.json", metrics)
    write_text(run / "report.md", demo_report(metrics, size))
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
    train_baseline(TokenTraining(out=str(run / "baseline"), **common))
    train_coarse(CoarseTraining(out=str(run / "coarse"), coarse_map=coarse_map, **common))
    train_fine(FineTraining(out=str(run / "fine"), coarse_map=coarse_map, **common))


def _pipelines(run: Path, tokenizer: VQTokenizer, tokens: TokenSet, coarse_map: CoarseMap) -> dict[str, Pipeline]:
    models = {stage: Transformer.load(run / stage / "model.safetensors") for stage in ("baseline", "coarse", "fine")}
    return {
        "baseline": Pipeline(tokenizer, tokens.class_names, baseline=models["baseline"]),
        "coarse-to-fine": Pipeline(
            tokenizer, tokens.class_names, coarse=models["coarse"], fine=models["fine"], coarse_map=coarse_map
        ),
    }


def _samples(
    pipelines: dict[str, Pipeline], tokenizer: VQTokenizer, test: ImageSet, seed: int, metrics: dict[str, Any]
) -> Any:
    """The sheet of labelled rows: real, reconstruction, baseline, coarse-to-fine."""
    labels = [test.class_names.index(name) for name in COLUMNS]
    real = np.stack([test.read(int(np.flatnonzero(test.labels == label)[0])) for label in labels])
    first = pipelines["baseline"]
    rows = {"real": real, "reconstruction": first.paint(tokenizer.encode(to_tensor(real)))}
    metrics["images_per_second"] = {}
    for name, pipeline in pipelines.items():
        start = time.perf_counter()
        rows[name] = np.stack([np.asarray(image) for image in pipeline(labels, seed=seed, **SAMPLING)])
        metrics["images_per_second"][name] = round(len(labels) / (time.perf_counter() - start), 2)
    return contact_sheet([list(row) for row in rows.values()], list(rows), COLUMNS, scale=2)
