"""The published results as a dot chart, with the run among them or apart from them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from ctf.files import atomic_path

RUN = "this run"
COLORS = {"GAN": "#8a8a8a", "Diffusion": "#7a5aa6", "Masked": "#4f8f5f", "VAR": "#b08a2e", "AR": "#2f6f8f"}
COLORS |= {"AR + CTF": "#b5533c", RUN: "#000000"}
PANELS = {"FID": ("FID ↓, logarithmic", ".2f"), "IS": ("Inception Score ↑", ".1f")}


def plot_comparison(
    path: str | Path, rows: list[dict[str, Any]], name: str, figures: dict[str, float], reasons: list[str]
) -> None:
    """A line per published model, FID and IS beside one another.

    Args:
        path: a PNG.
        rows: of the published table.
        name: of the run.
        figures: of the run, title → value.
        reasons: why the run may not stand among the rows. It is then written below them, under its own titles.
    """
    from matplotlib.figure import Figure

    rows = [row | {"type": "AR + CTF"} if row["model"].endswith("+ CTF") else row for row in rows]
    if not reasons:
        rows.append({"type": RUN, "model": _short(name), "trained_at": 256, **figures})
    figure = Figure(figsize=(10, 9 + (2 if reasons else 0)), layout="constrained")
    heights = {"height_ratios": [9, 2]} if reasons else {}
    grid = figure.add_gridspec(2 if reasons else 1, 2, **heights)
    first = figure.add_subplot(grid[0, 0])
    panels = [first, figure.add_subplot(grid[0, 1], sharey=first)]
    for axes, (column, (label, style)) in zip(panels, PANELS.items(), strict=True):
        values = [row[column] for row in rows]
        colors = [COLORS[row["type"]] for row in rows]
        axes.hlines(range(len(rows)), 1, values, colors=colors, alpha=0.35, linewidth=2)
        axes.scatter(values, range(len(rows)), c=colors, s=30, zorder=3)
        for place, (value, color) in enumerate(zip(values, colors, strict=True)):
            axes.annotate(
                format(value, style), (value, place), (6, 0), textcoords="offset points", va="center", color=color
            )
        axes.set_title(label, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelleft=axes is first)
    distances = [row["FID"] for row in rows]
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    first.set_xscale("log")
    first.set_xticks(ticks, [format(tick, "g") for tick in ticks])
    first.minorticks_off()
    first.set(xlim=(min(1, 0.8 * min(distances)), 1.7 * max(distances)), ylim=(len(rows) - 0.4, -0.6))
    panels[1].set_xlim(0, 1.18 * max(row["IS"] for row in rows))
    first.set_yticks(range(len(rows)), [_label(row) for row in rows])
    for text, row in zip(first.get_yticklabels(), rows, strict=True):
        text.set_color(COLORS[row["type"]])
        text.set_fontweight("bold" if row["type"] == RUN else "normal")
    dots = [first.scatter([], [], color=COLORS[name]) for name in dict.fromkeys(row["type"] for row in rows)]
    figure.legend(dots, dict.fromkeys(row["type"] for row in rows), loc="outside lower left", ncols=7, frameon=False)
    caption = "Class-conditional ImageNet, 256 × 256: published (Guo et al., Table 1); † trained at 384 × 384"
    figure.suptitle(caption, x=0.01, ha="left")
    if reasons:
        below = figure.add_subplot(grid[1, :])
        below.axis("off")
        values = [f"{title}: {value:.5g}" for title, value in figures.items()]
        for left, heading, lines in (0, _short(name), values), (0.5, "Not comparable with the rows above", reasons):
            words = "\n".join(textwrap.fill(line, 60, initial_indent="• ", subsequent_indent="   ") for line in lines)
            below.text(left, 1, f"{heading}\n\n{words}", va="top", fontsize=9, transform=below.transAxes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _label(row: dict[str, Any]) -> str:
    mark = " †" if row["trained_at"] != 256 else ""
    millions = row.get("parameters_millions")
    size = "" if not millions else f"  {millions / 1000:.1f}B" if millions >= 1000 else f"  {millions}M"
    return f"{row['model']}{mark}{size}"


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"…{name[-31:]}"
