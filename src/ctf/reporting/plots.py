"""Plots in one style, as PNG files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ctf.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Of what a page is about, and of what it is compared with.
COLOR, GREY = "#2f6f8f", "#b8b8b8"
#: matplotlib's settings.
STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "savefig.dpi": 120,
}


@contextmanager
def plot(path: str | Path, width: float, height: float) -> Iterator[Figure]:
    """An empty figure of `width` × `height` inches to draw into; on leaving it is written to `path`, atomically."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
