"""Bits per token against the number of steps, as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctf.reporting.plots import COLOR, plot

#: The axis of steps has room for so many labels.
LABELS = 20


def plot_steps(path: str | Path, result: dict[str, Any]) -> None:
    """A PNG of what `bits_by_steps` returns: bits of the stage on the left axis, of all stages on the right one."""
    stage, rows = result["stage"], result["rows"]
    steps, totals = [row["steps"] for row in rows], [row["bits_per_token"] for row in rows]
    values = [row.get(f"{stage}_bits_per_token", row["bits_per_token"]) for row in rows]
    others = totals[0] - values[0]
    apart = (steps[-1] / steps[0]) ** (1 / LABELS)
    labelled = list[int]()
    for place, count in enumerate(steps):
        if not labelled or count >= apart * steps[labelled[-1]]:
            labelled.append(place)
    bound = ", upper bound" if "bound" in rows[0] else ""

    with plot(path, 8, 4.5) as figure:
        axes = figure.subplots()
        axes.plot(steps, values, color=COLOR, linewidth=2, marker="o", markersize=5)
        for place in labelled:
            where = steps[place], values[place]
            axes.annotate(f"{values[place]:.3f}", where, (2, 6), textcoords="offset points", fontsize=8.5, color=COLOR)
        axes.set_xscale("log", base=2)
        axes.set_xticks([steps[place] for place in labelled], [str(steps[place]) for place in labelled])
        axes.minorticks_off()
        axes.margins(x=0.06, y=0.12)
        name = f"stage {stage}" if others else "the model"
        axes.set(xlabel=f"steps of stage {stage}", ylabel=f"bits per token, {name}{'' if others else bound}")
        axes.grid(axis="y", alpha=0.25)
        if others:
            whole = axes.secondary_yaxis("right", functions=(lambda y: y + others, lambda y: y - others))
            whole.set_ylabel(f"bits per token, all stages{bound}")
        how = f"{result['kind']}, order {result['order']}, schedule {result['schedule']}"
        axes.set_title(f"Held-out bits per token: {how}", fontsize=11)
