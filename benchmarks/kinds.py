"""Kinds of stages, rounds, clusterings and IAR's loss on the emoji, at equal size and equal training.

    ctf tokenize --split train --augmentation flip --out runs/emoji-tokens/train
    ctf tokenize --split test --augmentation none --out runs/emoji-tokens/test
    python benchmarks/kinds.py train        # the maps, and every run that is not there yet; --only PREFIX … for some
    python benchmarks/kinds.py evaluate     # what is trained and not measured yet → benchmarks/kinds/results.json
    python benchmarks/kinds.py tables       # benchmarks/kinds/tables.md and docs/kinds.png from the results

All of it can be stopped and started again. `benchmarks/kinds.md` says what came out, and on which machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctf.evaluation.features import FeatureExtractor, open_features
from ctf.evaluation.likelihood import bits_by_steps
from ctf.evaluation.metrics import frechet_distance
from ctf.evaluation.statistics import FeatureStatistics
from ctf.files import read_json, write_json, write_text
from ctf.images.image_set import open_images
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_folder import open_stage
from ctf.pipeline import StagePipeline
from ctf.tokens.token_set import TokenSet

RUNS, RESULTS = Path("runs/kinds"), Path("benchmarks/kinds/results.json")
SEEDS = (0, 1, 2)
KINDS = ("autoregressive", "any_order", "masked")
CLUSTERINGS = {
    "kmeans": [],
    "balanced": ["--method", "balanced"],
    "ward": ["--method", "ward"],
    "weighted": ["--weights", "runs/emoji-tokens/train"],
    "random": ["--method", "random"],
}
TRAINING = {
    "--tokens": "runs/emoji-tokens/train",
    "--held_out": "runs/emoji-tokens/test",
    "--size": "nano",
    "--dropout": "0",
    "--optimizer.learning_rate": "3e-3",
    "--optimizer.final_learning_rate": "3e-5",
    "--optimizer.warmup_steps": "50",
    "--loop.batch_size": "16",
    "--loop.steps": "800",
    "--loop.ema": "0.99",
    "--loop.log_every": "100",
    "--loop.evaluate_every": "0",
    "--loop.checkpoint_every": "200",
    "--loop.resume": "true",
}
STEPS, ROUNDS, IMAGES = (4, 8, 16, 64), (1, 2, 4, 8), 2048
#: Of the first stage; the second draws at temperature 1.
SAMPLING = {"cfg_scale": 3.0}


def map_file(method: str) -> str:
    return str(RUNS / f"map-{method}.safetensors")


def plan() -> dict[str, list[str]]:
    """The arguments of `ctf train` for every run, by its name."""
    runs: dict[str, list[str]] = {}
    for seed in SEEDS:
        for kind in KINDS:
            for verb, level in ("coarse", ["--coarse_map", map_file("kmeans")]), ("baseline", []):
                runs[f"{verb}-{kind}-{seed}"] = [verb, "--kind", kind, *level]
        for rounds in ("one", "any"):
            runs[f"fine-{rounds}-{seed}"] = ["fine", "--rounds", rounds, "--coarse_map", map_file("kmeans")]
        added = ["--cluster_loss_weight", "1.0", "--coarse_map", map_file("balanced")]
        runs[f"iar-autoregressive-{seed}"] = ["baseline", *added]
        for method in [*CLUSTERINGS][1:]:
            for verb in ("coarse", "fine"):
                runs[f"{verb}-{method}-{seed}"] = [verb, "--coarse_map", map_file(method)]
    common = [word for option in TRAINING.items() for word in option]
    return {
        name: [*arguments, *common, "--loop.seed", name[-1], "--out", str(RUNS / name)]
        for name, arguments in runs.items()
    }


def train(only: list[str]) -> None:
    for method, options in CLUSTERINGS.items():
        if not Path(map_file(method)).exists():
            subprocess.run(
                [sys.executable, "-m", "ctf.cli", "cluster", *options, "--out", map_file(method)], check=True
            )
    for name, arguments in plan().items():
        if name.startswith(tuple(only) or "") and not finished(name):
            subprocess.run([sys.executable, "-m", "ctf.cli", "train", *arguments], check=True)


def finished(run: str) -> bool:
    return (RUNS / run / "model.safetensors").exists()


def systems() -> Iterator[tuple[str, list[str], str, dict[str, Any]]]:
    """What is measured: a name, the runs of its stages, the stage whose steps vary, and how it draws."""
    for seed in SEEDS:
        for kind in KINDS:
            steps = STEPS if kind != "autoregressive" else STEPS[-1:]
            for order in {"autoregressive": ["raster"], "any_order": ["halton", "locality"], "masked": ["halton"]}[
                kind
            ]:
                how: dict[str, Any] = {"steps": steps, "order": order}
                stages = [f"coarse-{kind}-{seed}", f"fine-one-{seed}"]
                yield f"coarse-to-fine, {kind}, {order}, {seed}", stages, "coarse", how
                yield f"baseline, {kind}, {order}, {seed}", [f"baseline-{kind}-{seed}"], "baseline", how
        raster = {"steps": STEPS[-1:], "order": "raster"}
        yield f"IAR's loss, {seed}", [f"iar-autoregressive-{seed}"], "baseline", raster
        stages = [f"coarse-autoregressive-{seed}", f"fine-any-{seed}"]
        yield f"rounds, {seed}", stages, "fine", {"steps": ROUNDS, "order": "halton"}
        for method in [*CLUSTERINGS][1:]:
            yield f"clusters, {method}, {seed}", [f"coarse-{method}-{seed}", f"fine-{method}-{seed}"], "coarse", raster


def evaluate(only: list[str]) -> None:
    """Bits of everything that is trained, then distances; what is known already is left."""
    tokens, tokenizer = TokenSet.open("runs/emoji-tokens/test"), open_tokenizer("emoji")
    chosen = [
        system for system in systems() if system[0].startswith(tuple(only) or "") and all(map(finished, system[1]))
    ]

    def opened(runs: list[str]) -> StagePipeline:
        return StagePipeline(tokenizer, tokens.class_names, [open_stage(RUNS / run) for run in runs])

    for name, runs, stage, how in chosen:
        if name not in known():
            order = {f"{stage}_order": how["order"]}
            keep(name, bits_by_steps(opened(runs), tokens, how["steps"], stage, 64, **order)["rows"])
    extractor = open_features("emoji", None, "cpu")
    reference = features(extractor, (batch for _, batch, _ in open_images("emoji", "train", 64).batches(64)))
    labels = [i % len(tokens.class_names) for i in range(IMAGES)]
    for name, runs, stage, how in chosen:
        rows = known()[name]
        for row in rows if how["order"] != "locality" else []:
            if "distance" not in row:
                settings = SAMPLING | {f"{stage}_order": how["order"], f"{stage}_steps": row["steps"]}
                began = time.perf_counter()
                images = opened(runs).generate(labels, seed=0, batch_size=64, **settings)
                row["distance"] = frechet_distance(reference, features(extractor, images))
                row["seconds_per_image"] = (time.perf_counter() - began) / IMAGES
                keep(name, rows)


def known() -> dict[str, list[dict[str, Any]]]:
    return read_json(RESULTS) if RESULTS.exists() else {}


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    print(name, *({key: round(value, 3) for key, value in row.items()} for row in rows), sep="\n  ", flush=True)
    write_json(RESULTS, known() | {name: rows})


def features(extractor: FeatureExtractor, batches: Iterator[np.ndarray]) -> FeatureStatistics:
    statistics: FeatureStatistics | None = None
    for images in batches:
        seen = extractor(images).pool
        statistics = statistics or FeatureStatistics(seen.shape[1])
        statistics.update(seen)
    assert statistics is not None
    return statistics


def tables(only: list[str]) -> None:
    """Means over seeds, ± the standard deviation of a seed, as Markdown; and the plot."""
    results = known()
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for name, rows in results.items():
        system, _ = name.rsplit(", ", 1)
        for row in rows:
            cells.setdefault((system, row["steps"]), []).append(row)

    def cell(system: str, steps: int, *keys: str) -> str:
        rows = cells.get((system, steps), [])
        values = [[row[key] for row in rows if key in row] for key in keys]
        shown = [
            f"{mean(v):.3g}" if key == "seconds_per_image" else spread(v)
            for key, v in zip(keys, values, strict=True)
            if v
        ]
        return " / ".join(shown) or "–"

    text = []
    for key, title in ("bits_per_token", "Bits per token"), ("distance", "Fréchet distance, emoji features"):
        text += [
            f"{title}, by the steps of the first stage:",
            "",
            *head("system", "kind", "order", *map(str, STEPS[::-1])),
        ]
        for system in sorted({system for system, _ in cells if system.count(", ") == 2}):
            text.append(line(*system.split(", "), *(cell(system, steps, key) for steps in STEPS[::-1])))
        text.append("")
    text += ["What fewer steps cost, in bits per token against 64 steps, seed by seed:", ""]
    text += head("system", "kind", "order", *map(str, STEPS[-2::-1]))
    for system in sorted({system for system, steps in cells if system.count(", ") == 2 and steps == STEPS[0]}):
        lost = []
        for steps in STEPS[-2::-1]:
            pairs = zip(cells[system, steps], cells[system, STEPS[-1]], strict=True)
            losses = [few["bits_per_token"] - all_of_them["bits_per_token"] for few, all_of_them in pairs]
            lost.append(spread(losses))
        text.append(line(*system.split(", "), *lost))
    text += [
        "",
        "Rounds of stage 2:",
        "",
        *head("rounds", "bits of stage 2", "distance", "seconds per image, all stages"),
    ]
    once = "coarse-to-fine, autoregressive, raster", STEPS[-1]
    keys = "fine_bits_per_token", "distance", "seconds_per_image"
    text.append(line("1, trained for one", *(cell(*once, key) for key in keys)))
    text += [line(str(rounds), *(cell("rounds", rounds, key) for key in keys)) for rounds in ROUNDS]
    text += [
        "",
        "Clusterings, and IAR's loss, autoregressive:",
        "",
        *head("clusters", "bits per token", "stage 1", "stage 2", "distance"),
    ]
    keys = "bits_per_token", "coarse_bits_per_token", "fine_bits_per_token", "distance"
    text.append(line("kmeans", *(cell(*once, key) for key in keys)))
    text += [line(m, *(cell(f"clusters, {m}", STEPS[-1], key) for key in keys)) for m in [*CLUSTERINGS][1:]]
    text.append(line("none: the baseline", *(cell("baseline, autoregressive, raster", STEPS[-1], key) for key in keys)))
    text.append(line("none: IAR's loss", *(cell("IAR's loss", STEPS[-1], key) for key in keys)))
    seeds = {name.rsplit(", ", 1)[1] for name in results}
    write_text(RESULTS.with_name("tables.md"), "\n".join([f"Seeds: {', '.join(sorted(seeds))}.", "", *text, ""]))
    plot(cells)


def plot(cells: dict[tuple[str, int], list[dict[str, Any]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    colours = {"any_order": "tab:blue", "masked": "tab:orange", "autoregressive": "tab:green"}
    for system in sorted({system for system, _ in cells if system.count(", ") == 2}):
        method, kind, order = system.split(", ")
        if order == "locality":
            continue
        steps = [count for count in STEPS if (system, count) in cells]
        style = {"color": colours[kind], "linestyle": "-" if method == "coarse-to-fine" else "--", "marker": "o"}
        bits = np.array([mean([row["bits_per_token"] for row in cells[system, count]]) for count in steps])
        axes[0].plot(steps, bits, label=f"{method}, {kind}", **style)
        if len(steps) > 1:
            axes[1].plot(steps, bits - bits[-1], **style)
        if all("distance" in row for count in steps for row in cells[system, count]):
            axes[2].plot(steps, [mean([row["distance"] for row in cells[system, count]]) for count in steps], **style)
    for axis, title in zip(
        axes, ("bits per token", "bits lost against 64 steps", "Fréchet distance, emoji features"), strict=True
    ):
        axis.set_xscale("log", base=2)
        axis.set_xticks(STEPS, [str(count) for count in STEPS])
        axis.set_xlabel("steps of the first stage")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig("docs/kinds.png", dpi=110)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation of a seed, or the number of seeds where that says little."""
    if len(values) == 1:
        return f"{values[0]:.3f} (one seed)"
    return f"{mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def head(*titles: str) -> list[str]:
    return [line(*titles), line(*("---" for _ in titles))]


def line(*words: str) -> str:
    return f"| {' | '.join(words)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "evaluate", "tables"))
    parser.add_argument("--only", nargs="*", default=[], help="beginnings of the names of runs or systems")
    arguments = parser.parse_args()
    {"train": train, "evaluate": evaluate, "tables": tables}[arguments.what](arguments.only)
