"""Draw the pictures of docs/stages.md: orders, and previews of each kind by step.

    python scripts/draw_stages.py [--out runs/reproduce] [--steps 800]

The previews are by stages of `ctf reproduce kinds` and `ctf reproduce rounds`, which are trained if they are not there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ctf.experiments.presets import EMOJI, Lab
from ctf.experiments.store import Store
from ctf.images.sheet import contact_sheet, save_png
from ctf.layout import Layout
from ctf.reporting.plots import plot
from ctf.sampling.orders import group_sizes, order_groups
from ctf.stages.settings import MaskedSettings

LAYOUT, STEPS = Layout.square(16), 20


def draw_orders(path: Path) -> None:
    sizes = group_sizes(LAYOUT.num_tokens, STEPS)
    with plot(path, 14, 3.1) as figure:
        axes = figure.subplots(1, 5)
        for axis, order in zip(axes, ("raster", "random", "halton", "locality"), strict=False):
            step = np.empty(LAYOUT.num_tokens, int)
            for number, group in enumerate(order_groups(order, LAYOUT, tuple(sizes)), start=1):
                step[group.numpy()] = number
            image = axis.imshow(step.reshape(LAYOUT.finest), cmap="viridis")
            axis.set_title(order)
            axis.set_xticks([])
            axis.set_yticks([])
        figure.colorbar(image, ax=axes[:4], label="step", fraction=0.02)
        for schedule in ("cosine", "arccos", "uniform"):
            axes[4].plot(np.arange(1, STEPS + 1), group_sizes(LAYOUT.num_tokens, STEPS, schedule), label=schedule)
        axes[4].set_title("positions per step")
        axes[4].set_xlabel("step")
        axes[4].legend()


def draw_previews(path: Path, lab: Lab, store: Store) -> None:
    rows, names = [], []
    for kind, how in (
        ("autoregressive", {}),
        ("any_order", {"steps": 8, "order": "locality"}),
        ("any_order", {"steps": 8, "order": "halton"}),
        ("masked", {"steps": 8, "order": "confidence"}),
        ("autoregressive", {"fine_steps": 8}),
    ):
        in_rounds = "fine_steps" in how
        fine = lab.fine(kind_settings=MaskedSettings("any")) if in_rounds else lab.fine()
        system = lab.system(lab.coarse(kind=kind), fine)
        settings = {"cfg_scale": 4.0, "temperature": 0.9, "top_p": 0.95, **how}
        previews = [*system.open(store).stream([0], seed=5, **settings)]
        if in_rounds:
            previews = previews[7:]  # the last one of stage 1, and the rounds of stage 2
        rows.append([np.asarray(preview.images[0]) for preview in previews][:9])
        names.append(f"{kind} {how['order']}, {how['steps']} steps" if "steps" in how else kind)
    names[-1] = "stage 2, masked, 8 rounds"
    save_png(path, contact_sheet(rows, names, [str(i + 1) for i in range(9)]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    draw_orders(Path("docs/orders.png"))
    preset = EMOJI.changed(steps=arguments.steps)
    draw_previews(Path("docs/stages.png"), Lab(preset, 0), Store(arguments.out))
