"""The demo's plot and page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctf.files import atomic_path
from ctf.fit.plan import Plan
from ctf.stages.stage import bits

COLORS = ["#b5533c", "#2f6f8f", "#8fb8c9"]


def plot_curves(
    path: Path,
    logs: dict[str, list[dict[str, float]]],
    held_out: dict[str, dict[str, float]],
    systems: dict[str, list[str]],
) -> None:
    """Training loss of every stage, and bits per token of every system on held-out images, stacked by stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    curves, bars = figure.subplots(1, 2, width_ratios=[2, 1])
    colors = dict(zip(logs, COLORS, strict=False))
    for stage, lines in logs.items():
        steps = [line["step"] for line in lines if "loss" in line]
        losses = [bits(line["loss"]) for line in lines if "loss" in line]
        curves.plot(steps, losses, label=stage, color=colors[stage], linewidth=2)
    curves.set(title="Training loss", xlabel="step", ylabel="bits per token", ylim=(0, None))
    curves.legend(frameon=False)
    for system, stages in systems.items():
        bottom = 0.0
        for stage in stages:
            height = held_out[system].get(f"{stage}_bits_per_token", held_out[system]["bits_per_token"])
            bar = bars.bar(system, height, bottom=bottom, color=colors[stage], width=0.6)
            bars.bar_label(bar, [f"{stage} {height:.2f}"], label_type="center", color="black")
            bottom += height
    bars.set(title="Held-out images, bits per token")
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def demo_report(plan: Plan, metrics: dict[str, Any]) -> str:
    """The page `report.md`: pictures with the numbers that belong to them."""
    tokenizer, clusters, likelihood = metrics["tokenizer"], metrics["clusters"], metrics["bits_per_token"]
    two_stage, baseline = likelihood["coarse-to-fine"], likelihood["baseline"]
    (count, swap), *_ = metrics["swap_psnr"].items()
    speed = metrics["images_per_second"]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in metrics["seconds"].items())
    note = (
        "**This was `--quick`: it proves that every step runs. The models have seen next to nothing.**\n\n"
        if metrics["quick"]
        else ""
    )
    return f"""# Coarse-to-fine generation of emoji

{note}![real, reconstruction, baseline, coarse-to-fine](samples.png)

Rows: test images; their reconstruction by the tokenizer; samples of the baseline; samples of the coarse-to-fine
model. Both models are of size `{plan.size}`, trained for {plan.steps["coarse"]} steps of {plan.batch_size} images,
and sampled with the same labels, seeds and settings.

| on the test split | baseline | coarse-to-fine |
|---|---|---|
| bits per token | {baseline["bits_per_token"]:.3f} | {two_stage["bits_per_token"]:.3f} \
(coarse {two_stage["coarse_bits_per_token"]:.3f} + fine {two_stage["fine_bits_per_token"]:.3f}) |
| most probable token is right | {baseline["token_accuracy"]:.1%} | coarse {two_stage["coarse_accuracy"]:.1%}, \
fine given coarse {two_stage["fine_accuracy"]:.1%} |
| images per second | {speed["baseline"]:.1f} | {speed["coarse-to-fine"]:.1f} |

![training curves](curves.png)

## The codebook's redundancy

Each token is replaced by another one of its cluster, at random (paper, Fig. 1b). With {count} k-means clusters the
image keeps {swap["kmeans"]:.1f} dB to its reconstruction, with {count} random clusters {swap["random"]:.1f} dB.

![original, reconstruction, swaps](swap.png)

Tokenizer: {tokenizer["psnr"]:.2f} dB on the test split. Codewords lie {clusters["within_cluster_distance"]:.3f}
(root mean square) from the mean of their cluster, {clusters["random_within_cluster_distance"]:.3f} in random clusters
of the same sizes.

The coarse-to-fine model alone, as `ctf fit` reports it: [fit/report.md](fit/report.md). Samples of the bundled model,
which was trained for hours: [embedded.png](embedded.png).

Time: {seconds}, on {metrics["threads"]} threads. All numbers: [metrics.json](metrics.json).
"""
