"""Draw the pictures of docs/stages.md: orders, and previews of each kind by step.

    python scripts/draw_stages.py [--runs runs/kinds] [--seed 0]

The previews need the runs of `benchmarks/kinds.py train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ctf.images.sheet import contact_sheet, save_png
from ctf.interop.tokenizers import open_tokenizer
from ctf.model_folder import open_stage
from ctf.pipeline import StagePipeline
from ctf.sampling.orders import group_sizes, order_groups
from ctf.tokens.token_set import TokenSet

GRID, STEPS = (16, 16), 20


def draw_orders(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 5, figsize=(14, 3.1), layout="constrained")
    sizes = group_sizes(GRID[0] * GRID[1], STEPS)
    for axis, order in zip(axes, ("raster", "random", "halton", "locality"), strict=False):
        step = np.empty(GRID[0] * GRID[1], int)
        for number, group in enumerate(order_groups(order, GRID, tuple(sizes)), start=1):
            step[group.numpy()] = number
        image = axis.imshow(step.reshape(GRID), cmap="viridis")
        axis.set_title(order)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=axes[:4], label="step", fraction=0.02)
    for schedule in ("cosine", "arccos", "uniform"):
        axes[4].plot(np.arange(1, STEPS + 1), group_sizes(GRID[0] * GRID[1], STEPS, schedule), label=schedule)
    axes[4].set_title("positions per step")
    axes[4].set_xlabel("step")
    axes[4].legend()
    figure.savefig(path, dpi=100)


def draw_previews(path: Path, runs: Path, seed: int) -> None:
    tokens, tokenizer = TokenSet.open("runs/emoji-tokens/test"), open_tokenizer("emoji")
    rows, names = [], []
    for kind, fine, how in (
        ("autoregressive", "one", {}),
        ("any_order", "one", {"coarse_steps": 8, "coarse_order": "locality"}),
        ("any_order", "one", {"coarse_steps": 8, "coarse_order": "halton"}),
        ("masked", "one", {"coarse_steps": 8, "coarse_order": "confidence"}),
        ("autoregressive", "any", {"fine_steps": 8}),
    ):
        stages = [open_stage(runs / f"coarse-{kind}-{seed}"), open_stage(runs / f"fine-{fine}-{seed}")]
        pipeline = StagePipeline(tokenizer, tokens.class_names, stages)
        previews = [*pipeline.stream([0], seed=5, cfg_scale=4.0, temperature=0.9, top_p=0.95, **how)]
        if fine == "any":
            previews = previews[7:]  # the last one of stage 1, and the rounds of stage 2
        rows.append([np.asarray(preview.images[0]) for preview in previews][:9])
        first = f"{kind} {how.get('coarse_order', '')}"
        names.append(f"{first}, {how['coarse_steps']} steps" if "coarse_steps" in how else first)
    names[-1] = "stage 2, masked, 8 rounds"
    save_png(path, contact_sheet(rows, names, [str(i + 1) for i in range(9)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/kinds"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw_orders(Path("docs/orders.png"))
    draw_previews(Path("docs/stages.png"), arguments.runs, arguments.seed)
