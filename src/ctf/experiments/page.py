"""The page of an experiment: table beside the published one, claims, plot, contact sheet, how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ctf.experiments.experiment import METRICS, Experiment, Measured, judge, more_is_better
from ctf.experiments.measurements import FIGURE, SAMPLES
from ctf.experiments.presets import Preset
from ctf.experiments.store import Store
from ctf.experiments.swap import swap_lines
from ctf.images.sheet import contact_sheet, save_png
from ctf.reporting.page import picture, write_page
from ctf.reporting.plots import COLOR, plot
from ctf.reporting.tables import bullets, markdown_table
from ctf.samples.sample_set import SampleSet
from ctf.tokens.token_set import TokenSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT, SHEET = "plot.png", "samples.png"
SHEET_COLUMNS, SHEET_ROWS = 16, 24
#: Endings of what a likelihood says, in the order of the table.
BITS = ("bits_per_token", "accuracy")


def write_report(folder: Path, experiment: Experiment, preset: Preset, store: Store, command: str) -> None:
    """Write report.md, with its pictures, from what is in the store; what is not is left out, and nothing is made."""
    parts = results(folder, experiment, preset, store)
    if experiment.claims:
        parts += ["What the paper claims, and other expectations:", claims(experiment, preset, store)]
    write_page(folder, experiment.title, parts, how_it_was_made(experiment, preset, store, command))


def results(folder: Path, experiment: Experiment, preset: Preset, store: Store, beside: str = "") -> list[str]:
    """Note, table and pictures as parts of a page, which calls `folder`, where the pictures go, `beside`."""
    measured = [Measured.read(row, preset, store) for row in experiment.rows]
    parts = [experiment.note] if experiment.note else []
    if measured:
        parts.append(table(experiment, measured, preset, store))
    parts += swaps(folder, experiment, store, beside)
    if any(m.values for m in measured):
        draw(folder / PLOT, experiment, measured, preset)
        parts.append(picture(f"{beside}{PLOT}", experiment.title))
    if sheet(folder / SHEET, experiment, preset, store):
        parts += [picture(f"{beside}{SHEET}", "samples"), "*The same classes and seeds in every row.*"]
    return parts


def swaps(folder: Path, experiment: Experiment, store: Store, beside: str) -> list[str]:
    """Write the pictures of swapped tokens to `folder`, which a page calls `beside`; parts of the page."""
    parts = []
    for place, swap in enumerate(filter(store.has, experiment.swaps)):
        if (drawn := store.folder(swap) / FIGURE).exists():
            with Image.open(drawn) as figure:
                save_png(folder / f"figure-{place}.png", figure)
            parts.append(picture(f"{beside}figure-{place}.png", "tokens swapped"))
        parts.append(bullets(swap_lines(store.result(swap))))
    return parts


def table(experiment: Experiment, measured: list[Measured], preset: Preset, store: Store) -> str:
    """Means ± standard deviations of a seed, the published values in brackets."""
    names = [name for name in METRICS if any(name in m.values for m in measured)]
    bits = [name for end in BITS for m in measured for name in m.values if name.endswith(end)]
    names += dict.fromkeys(bits)
    head = [*experiment.columns, "parameters", *(title(name, preset) for name in names)]
    timed = experiment.speed and store.has(experiment.timed())
    seconds = store.result(experiment.timed()) if timed else None
    lines = []
    for place, m in enumerate(measured):
        cells = [*m.row.name, m.row.parameters()]
        for name in names:
            ours = spread(m.values[name], 2 if name in ("FID", "IS") else 3) if name in m.values else "–"
            if m.bound and name == "bits_per_token":
                ours = f"≤ {ours}"
            cells.append(ours + (f" [{m.row.published[name]:g}]" if name in m.row.published else ""))
        if seconds:
            cells.append(f"{seconds['seconds_per_image'][place]:.3g}")
        lines.append(cells)
    if seconds:
        head.append("seconds per image")
    notes = ["In square brackets: the paper's, on ImageNet."] if any(m.row.published for m in measured) else []
    if seconds:
        notes.append(f"Seconds per image at batch {experiment.timed().batch}, on {seconds['machine']}.")
    return "\n\n".join([markdown_table([head, *lines], len(experiment.columns)), *notes])


def claims(experiment: Experiment, preset: Preset, store: Store) -> str:
    """A table of the verdicts."""
    measured = [Measured.read(row, preset, store) for row in experiment.rows]
    verdicts = [judge(claim, measured) for claim in experiment.claims]
    head = ["claim", "here", "by", "evidence: mean against mean, difference ± standard error"]
    rows = [[v.claim.says, v.word, title(v.claim.metric, preset), v.evidence] for v in verdicts]
    return markdown_table([head, *rows], len(head))


def title(metric: str, preset: Preset) -> str:
    """The name of a metric in a table, with the direction that is better."""
    inception = preset.features == "inception"
    words = {"FID": "FID" if inception else "Fréchet distance", "IS": "IS" if inception else "score"}
    return f"{words.get(metric, metric.replace('_', ' '))} {'↑' if more_is_better(metric) else '↓'}"


def draw(path: Path, experiment: Experiment, measured: list[Measured], preset: Preset) -> None:
    """Metrics and bits: curves over the number in `Experiment.curve`, or a point for each row."""
    shown = [name for name in (*METRICS, "bits_per_token") if any(name in m.values for m in measured)]
    columns = min(len(shown), 3)
    height = -(-len(shown) // columns)
    known: dict[str, Any] = {}  # a panel may lack a curve
    with plot(path, 6 * columns, 4 * height) as figure:
        for place, name in enumerate(shown, start=1):
            axes = figure.add_subplot(height, columns, place)
            rows = [m for m in measured if name in m.values]
            axes.set_title(title(name, preset))
            if experiment.curve is None:
                _draw_points(axes, rows, name)
            else:
                _draw_curves(axes, rows, name, experiment.curve)
                axes.set_xlabel(experiment.columns[experiment.curve])
                lines, labels = axes.get_legend_handles_labels()
                known |= dict(zip(labels, lines, strict=True))
        if len(known) > 1:
            figure.legend([*known.values()], [*known], loc="outside lower center", ncols=min(3, len(known)))


def _draw_points(axes: Axes, rows: list[Measured], metric: str) -> None:
    """A point for each row."""
    at = range(len(rows))
    y, errors = [m.mean(metric) for m in rows], [m.deviation(metric) for m in rows]
    axes.errorbar(at, y, errors, fmt="o", color=COLOR, capsize=3)
    axes.set_xticks(at, ["\n".join(m.row.name) for m in rows], fontsize=8)
    axes.margins(x=0.15, y=0.15)
    axes.grid(axis="y", alpha=0.3)


def _draw_curves(axes: Axes, rows: list[Measured], metric: str, curve: int) -> None:
    """A curve over the number at place `curve` of the names, for each of what else the names say."""
    curves: dict[str, list[Measured]] = {}
    for m in rows:
        words = [word for place, word in enumerate(m.row.name) if place != curve]
        curves.setdefault(", ".join(words), []).append(m)
    for label, each in curves.items():
        x, y = [float(m.row.name[curve]) for m in each], [m.mean(metric) for m in each]
        axes.errorbar(x, y, [m.deviation(metric) for m in each], label=label, marker="o", capsize=2)
    numbers = sorted({float(m.row.name[curve]) for m in rows})
    if numbers[0] > 0 and numbers[-1] >= 8 * numbers[0]:
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])


def sheet(path: Path, experiment: Experiment, preset: Preset, store: Store) -> bool:
    """Images of the first seed's systems, a row each; whether there are any."""
    rows, labels, names = [], [], []
    for row in experiment.rows[:SHEET_ROWS]:
        for samples in (metrics.samples for metrics in row.metrics(preset)[:1] if store.has(metrics.samples)):
            count = min(preset.num_samples, preset.data.num_classes)
            shown = np.linspace(0, count - 1, SHEET_COLUMNS, dtype=int).tolist()
            found = SampleSet.open(store.folder(samples) / SAMPLES).read(shown)
            rows.append([found[i] for i in shown])
            labels.append(", ".join(row.name))
            tokens = row.systems[0].stages[0].training.tokens
            known = TokenSet.open(store.folder(tokens)).index.class_names
            names = [known[i % len(known)] for i in shown]  # samples have balanced classes
    if rows:
        save_png(path, contact_sheet(rows, labels, names))
    return bool(rows)


def how_it_was_made(experiment: Experiment, preset: Preset, store: Store, command: str) -> list[str]:
    """The command, the settings, and where everything lies."""
    loop, sizes = preset.training["loop"], ", ".join(f"{ours} for {name}" for name, ours in preset.sizes.items())
    samples = [
        (row.name, m.samples) for row in experiment.rows for m in row.metrics(preset)[:1] if store.has(m.samples)
    ]
    return [
        f"`{command}`",
        f"Features of distance, score, precision and recall: {preset.features}; the reference: {preset.reference}.",
        f"Data: {preset.data.images}; {loop.total_steps(preset.data.num_images):,} steps of {loop.batch_size} images;"
        f" sizes {sizes}; {preset.num_samples:,} samples a set; seeds {', '.join(map(str, preset.seeds))}.",
        "± is the standard deviation of a seed. Settings lie beside each artifact, a manifest in each sample set.",
        *(f"Samples of {', '.join(name)}: `{store.folder(of)}`" for name, of in samples),
    ]


def spread(values: list[float], decimals: int) -> str:
    """Mean ± standard deviation of a seed; of one seed its value."""
    mean = f"{np.mean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{decimals}f}"
