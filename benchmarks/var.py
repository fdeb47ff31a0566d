"""VAR and coarse-to-fine over several scales on the emoji, beside one scale: exact bits, distances, seconds.

    python benchmarks/var.py train bits samples --seeds 0

It works in the folder `runs/var`: benchmarks/var.md has the commands for the tokenizers, tokens and clusters that it
needs there. A training or sample set that is there already is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctf.codebook import CoarseMap
from ctf.evaluation.features import open_features
from ctf.evaluation.protocol import evaluate_samples
from ctf.evaluation.reference import open_reference
from ctf.files import write_json
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_folder import Pipeline, open_stage
from ctf.models import Compute
from ctf.run_folder import RUN_MODEL
from ctf.samples.generate import sample_to
from ctf.samples.sample_set import SampleSet
from ctf.stages import MaskedSettings, Stage
from ctf.tokenizer.measure import standard_error
from ctf.tokens import TokenSet
from ctf.training.config import BaselineTraining, CoarseTraining, FineTraining, LoopConfig, OptimizerConfig
from ctf.training.runs import train_stage

RUNS, BATCH, SAMPLES = Path("runs/var"), 64, 864


@dataclasses.dataclass(frozen=True)
class Data:
    """A tokenizer with its tokens and clusters."""

    tokenizer: Path
    map: Path
    tokens: Path

    @classmethod
    def named(cls, name: str) -> Data:
        return cls(RUNS / f"tokenizer-{name}", RUNS / f"map-{name}.safetensors", RUNS / f"tokens-{name}")


SCALES, ONE_SCALE = Data.named("scales"), Data.named("one-scale")
#: Each stage by its name: its tokens, the settings' class, and settings.
STAGES: dict[str, tuple[Data, Any, dict[str, Any]]] = {
    "VAR": (SCALES, BaselineTraining, {"kind": "next_scale"}),
    "coarse": (SCALES, CoarseTraining, {"kind": "next_scale"}),
    "one-round": (SCALES, FineTraining, {}),
    "by-scales": (SCALES, FineTraining, {"kind_settings": MaskedSettings("scales")}),
    "autoregressive": (ONE_SCALE, BaselineTraining, {}),
    "autoregressive-coarse": (ONE_SCALE, CoarseTraining, {}),
    "one-scale-fine": (ONE_SCALE, FineTraining, {}),
    "next-scale-fine": (SCALES, FineTraining, {"kind": "next_scale"}),
}
SYSTEMS = {
    "VAR": ("VAR",),
    "coarse VAR, one round": ("coarse", "one-round"),
    "coarse VAR, by scales": ("coarse", "by-scales"),
    "coarse VAR, next_scale": ("coarse", "next-scale-fine"),
    "autoregressive": ("autoregressive",),
    "autoregressive, coarse-to-fine": ("autoregressive-coarse", "one-scale-fine"),
}


def run_of(name: str, seed: int) -> Path:
    return RUNS / f"{name}-{seed}"


def is_trained(name: str, seed: int) -> bool:
    return (run_of(name, seed) / RUN_MODEL).exists()


def train(seed: int, steps: int) -> None:
    """Train what is missing."""
    for name, (data, config, own) in STAGES.items():
        if is_trained(name, seed):
            print(f"{run_of(name, seed)} is there already: --steps {steps} changes nothing", file=sys.stderr)
            continue
        loop = LoopConfig(
            8, steps=steps, ema=0.99, seed=seed, log_every=50, evaluate_every=0, checkpoint_every=0, resume=True
        )
        shared = {"size": "nano", "dropout": 0.0, "optimizer": OptimizerConfig(2e-3, 2e-5, warmup_steps=50)}
        paths = {"tokens": str(data.tokens / "train"), "tokenizer": str(data.tokenizer)}
        paths |= {} if config is BaselineTraining else {"coarse_map": str(data.map)}
        start, cpu = time.time(), time.process_time()
        train_stage(config(str(run_of(name, seed)), loop=loop, **paths, **shared, **own))
        print(
            f"{name}, seed {seed}: {time.process_time() - cpu:.0f} s of a core, {time.time() - start:.0f} s", flush=True
        )


@torch.inference_mode()
def nats(stage: Stage, tokens: TokenSet, of_clusters: Tensor | None = None) -> np.ndarray:
    """−log P of every token (images, N); of its cluster, by the sum over the members, with a matrix (K, M) of φ."""
    found = []
    for at in torch.arange(len(tokens)).split(BATCH):
        images, labels = tokens.gather(at.numpy()), torch.from_numpy(tokens.labels[at.numpy()]).long()
        if of_clusters is None:
            found.append(-stage.log_prob(images, labels))
        else:
            probabilities = stage.logits(images, labels).softmax(-1) @ of_clusters
            cluster = of_clusters.argmax(1)[images]
            found.append(-probabilities.gather(2, cluster[..., None]).squeeze(2).log())
    return torch.cat(found).numpy()


def by_scale(values: np.ndarray, stage: Stage) -> np.ndarray:
    """Nats (images, N) → bits of each scale (images, S)."""
    return np.stack([values[:, part].sum(1) for part in stage.layout.slices], 1) / np.log(2)


def frequencies(data: Data) -> None:
    """Print the bits of test tokens, and of their clusters, by how often each occurs in training at its scale."""
    sets = [TokenSet.open(data.tokens / split) for split in ("train", "test")]
    fine_to_coarse = CoarseMap.load(data.map).fine_to_coarse
    for level, table in (("tokens", torch.arange(len(fine_to_coarse))), ("clusters", fine_to_coarse)):
        known, new = (table[tokens.gather(np.arange(len(tokens)))] for tokens in sets)
        found = []
        for part in sets[0].layout.slices:
            counts = 1 + known[:, part].flatten().bincount(minlength=int(table.max()) + 1).double()
            found.append(float(-(counts / counts.sum()).log2()[new[:, part]].sum(1).mean()))
        print(f"frequencies of {level}, {data.tokens.name}: {np.round(found, 2).tolist()} bits by scale")


def bits(seed: int) -> None:
    """Write the bits of every trained stage, by scale, and of VAR's own clusters; print them per image."""
    found: dict[str, np.ndarray] = {}
    for name, (data, _, _) in STAGES.items():
        if not is_trained(name, seed):
            continue
        stage, tokens = open_stage(run_of(name, seed)), TokenSet.open(data.tokens / "test")
        found[name] = by_scale(nats(stage, tokens), stage)
        if name == "VAR":
            clusters = torch.nn.functional.one_hot(CoarseMap.load(data.map).fine_to_coarse).float()
            found["VAR's clusters"] = by_scale(nats(stage, tokens, clusters), stage)
    write_json(RUNS / f"bits-{seed}.json", {name: each.mean(0).tolist() for name, each in found.items()})
    for name, each in found.items():
        print(f"{name}, seed {seed}: {np.round(each.mean(0), 2).tolist()} bits by scale")
    for system, stages in systems(found).items():
        total = np.sum([found[name].sum(1) for name in stages], 0)
        line = f"{system}, seed {seed}: {total.mean():.2f} ± {standard_error(total):.2f} bits per image"
        if system.startswith("coarse VAR"):
            less = total - found["VAR"].sum(1)
            line += f", VAR's {less.mean():+.2f} ± {standard_error(less):.2f}"
        print(line, flush=True)


def systems(stages: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Those whose stages are there."""
    return {system: names for system, names in SYSTEMS.items() if all(name in stages for name in names)}


def samples(seed: int) -> None:
    """Draw at temperature 1 without guidance; print Fréchet distances and seconds."""
    extractor = open_features("emoji", None, "cpu")
    reference = open_reference("emoji", extractor, "train", (64, 64), BATCH)
    for system, names in systems({name: None for name in STAGES if is_trained(name, seed)}).items():
        out = RUNS / f"samples-{system.replace(', ', '-').replace(' ', '-')}-{seed}.npz"
        measured = out.with_suffix(".metrics.json")
        if measured.exists():
            continue
        data = STAGES[names[0]][0]
        classes = TokenSet.open(data.tokens / "train").class_names
        stages = [open_stage(run_of(name, seed)) for name in names]
        pipeline = Pipeline(open_tokenizer(str(data.tokenizer)), classes, stages).compute_in(Compute())
        plain = {"cfg_scale": 1.0, "temperature": 1.0} | ({"fine_temperature": 1.0} if len(stages) > 1 else {})
        labels, taken = [i % len(classes) for i in range(BATCH)], []
        for _ in range(3):
            start = time.process_time()
            pipeline(labels, 0, BATCH, **plain)
            taken.append((time.process_time() - start) / BATCH)
        sample_to(pipeline, out, None, SAMPLES, 0, BATCH, plain, "balanced", system)
        metrics = evaluate_samples(SampleSet.open(out), reference, extractor, str(out), BATCH).metrics
        write_json(measured, metrics | {"seconds of a core per image": min(taken[1:])})
        print(f"{system}, seed {seed}: {metrics}, {min(taken[1:]):.4f} s of a core per image", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["train", "bits", "samples"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    for data in (SCALES, ONE_SCALE) if "bits" in args.what else ():
        frequencies(data)
    for seed in args.seeds:
        if "train" in args.what:
            train(seed, args.steps)
        if "bits" in args.what:
            bits(seed)
        if "samples" in args.what:
            samples(seed)
