"""A run beside the published results: as text, Markdown, JSON and a plot."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctf.evaluation.protocol import Evaluation
from ctf.files import read_json, write_json, write_text
from ctf.reporting.plots import COLOR, plot
from ctf.reporting.tables import bullets, markdown_table, text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PUBLISHED = Path(__file__).parent.parent / "assets" / "imagenet256_published.json"
HEADER = ["type", "model", "parameters", "FID ↓", "IS ↑", "precision ↑", "recall ↑"]
METRICS = {"FID": ".2f", "IS": ".1f", "precision": ".2f", "recall": ".2f"}

RUN = "this run"
COLORS = {"GAN": "#8a8a8a", "Diffusion": "#7a5aa6", "Masked": "#4f8f5f", "VAR": "#b08a2e", "AR": COLOR}
COLORS |= {"AR + CTF": "#b5533c", RUN: "#000000"}
PANELS = {"FID": "FID ↓, logarithmic", "IS": "Inception Score ↑"}


def published() -> dict[str, Any]:
    """Table 1 of the paper: `title`, `source`, `notes`, and `rows` with null where it has a dash."""
    return read_json(PUBLISHED)


def differences(evaluation: Evaluation) -> list[str]:
    """Why a run may not stand beside the published rows, in words; empty if it may."""
    count, size, reference = evaluation.samples["count"], evaluation.samples["image_size"], evaluation.reference
    found = []
    if evaluation.features["name"] != "inception":
        found.append(f"The features are {Path(evaluation.features['name']).name}; the published ones are Inception's.")
    if count != 50_000:
        found.append(f"{count:,} samples; the published metrics are of 50,000.")
    if size != [256, 256]:
        found.append(f"{size[0]} × {size[1]} pixels; the published metrics are of 256 × 256.")
    if reference["origin"] != "moments from file" or not reference["count"]:
        found.append(
            f"The reference is {reference['source']}; the published metrics use ADM's ImageNet batch and its moments."
        )
    return found


def write_comparison(out: str | Path, evaluation: Evaluation) -> str:
    """Write result.json, table.txt, table.md and plot.png into the folder `out`; returns the text of table.txt."""
    out, reasons = Path(out), differences(evaluation)
    verdict = {"comparable": not reasons, "differences": reasons, "published": published()}
    write_json(out / "result.json", {**asdict(evaluation), "comparison": verdict})
    text = comparison(evaluation)
    write_text(out / "table.txt", text)
    write_text(out / "table.md", comparison(evaluation, markdown=True))
    plot_comparison(out / "plot.png", evaluation)
    return text


def comparison(evaluation: Evaluation, markdown: bool = False) -> str:
    """Metrics, what they were compared with, and the table, in aligned columns or as Markdown."""
    layout, heading = (markdown_table, "## {}") if markdown else (text_table, "{}")
    reasons, table, name = differences(evaluation), published(), evaluation.samples["source"]
    rows = [[row["type"], _model(row), _size(row) or "-", *_formatted(row)] for row in table["rows"]]
    if reasons:
        verdict = "\n".join(["Not comparable with the published metrics below:", bullets(reasons)])
    else:
        rows.append([RUN, name, "-", *_formatted(evaluation.metrics)])
        verdict = (
            "Comparable with the published metrics below, if the reference is ADM's ImageNet 256 × 256 batch and the "
            "weights are the published ones; their fingerprints are above."
        )
    parts = [
        heading.format(name),
        layout([["metric", "value"], *([title, f"{value:.5g}"] for title, value in evaluation.metrics.items())]),
        bullets(_facts(evaluation)),
        verdict,
        heading.format(table["title"]),
        layout([HEADER, *rows], 2),
        bullets([f"Source: {table['source']}.", *table["notes"]]),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(evaluation: Evaluation) -> list[str]:
    samples, reference, settings = evaluation.samples, evaluation.reference, evaluation.settings
    manifest = samples["manifest"]
    made = manifest and f"model {manifest['model']}, labels {manifest['label_policy']}, seed {manifest['seed']}."
    splits = f"; score splits: {settings['score_splits']}" if "score_splits" in settings else ""
    images, how, manifold = "no images", "moments from the file", "left out"
    if reference["count"]:
        resize = f" after {reference['resize']}" if reference["resize"] else ""
        images = f"{reference['count']:,} of {_pixels(reference)}{resize}"
        how = f"{how}, features" if reference["origin"] == "moments from file" else "features and moments"
        how = f"{how} {'read from the cache' if reference['cached'] else 'computed now'}"
        manifold = f"{settings['neighbours']} neighbours, {settings['precision_reference_images']:,} reference images"
    return [
        f"Samples: {samples['count']:,} of {_pixels(samples)}, " + (made or "no manifest."),
        f"Reference: {reference['source']}, {images}, fingerprint {reference['fingerprint']}, {how}.",
        f"Features: {evaluation.features['name']}, {evaluation.features['dimensions']:,} numbers, "
        f"fingerprint {evaluation.features['fingerprint']}.",
        f"Precision and recall: {manifold}{splits}.",
        *(f"Warning: {warning}" for warning in evaluation.warnings),
    ]


def _model(row: dict[str, Any]) -> str:
    return f"{row['model']} †" if row["trained_at"] != 256 else row["model"]


def _size(row: dict[str, Any]) -> str:
    """Parameters of a row, "" if it has none."""
    millions = row.get("parameters_millions")
    return "" if millions is None else f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions}M"


def _formatted(metrics: dict[str, Any]) -> list[str]:
    return ["-" if (value := metrics.get(name)) is None else format(value, style) for name, style in METRICS.items()]


def _pixels(facts: dict[str, Any]) -> str:
    return " × ".join(str(side) for side in facts["image_size"])


def plot_comparison(path: str | Path, evaluation: Evaluation) -> None:
    """A PNG with a line per published model, FID and IS beside one another.

    The run stands among them; if it is not comparable, below them, with its own metrics and the reasons.
    """
    reasons, source = differences(evaluation), evaluation.samples["source"]
    name = source if len(source) <= 32 else f"…{source[-31:]}"
    rows = [r | {"type": "AR + CTF"} if r["model"].endswith("+ CTF") else r for r in published()["rows"]]
    if not reasons:
        rows.append({"type": RUN, "model": name, "trained_at": 256, **evaluation.metrics})
    with plot(path, 10, 9 + (2 if reasons else 0)) as figure:
        heights = {"height_ratios": [9, 2]} if reasons else {}
        grid = figure.add_gridspec(2 if reasons else 1, 2, **heights)
        first = figure.add_subplot(grid[0, 0])
        _draw_rows(first, figure.add_subplot(grid[0, 1], sharey=first), rows)
        types = list(dict.fromkeys(row["type"] for row in rows))
        dots = [first.scatter([], [], color=COLORS[name]) for name in types]
        figure.legend(dots, types, loc="outside lower left", ncols=7, fontsize=10)
        caption = "Class-conditional ImageNet, 256 × 256: published (Guo et al., Table 1); † trained at 384 × 384"
        figure.suptitle(caption, x=0.01, ha="left")
        if reasons:
            _write_reasons(figure.add_subplot(grid[1, :]), name, evaluation.metrics, reasons)


def _draw_rows(first: Axes, second: Axes, rows: list[dict[str, Any]]) -> None:
    """FID in the first panel, which names the models, and IS in the second."""
    colors, places = [COLORS[row["type"]] for row in rows], range(len(rows))
    for axes, (column, label) in zip((first, second), PANELS.items(), strict=True):
        values = [row[column] for row in rows]
        axes.hlines(places, 1, values, colors=colors, alpha=0.35, linewidth=2)
        axes.scatter(values, places, c=colors, s=30, zorder=3)
        for place, (value, color) in enumerate(zip(values, colors, strict=True)):
            text = format(value, METRICS[column])
            axes.annotate(text, (value, place), (6, 0), textcoords="offset points", va="center", color=color)
        axes.set_title(label)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelleft=axes is first)
    distances, ticks = [row["FID"] for row in rows], [0.5, 1, 2, 5, 10, 20, 50, 100]
    first.set_xscale("log")
    first.set_xticks(ticks, [format(tick, "g") for tick in ticks])
    first.minorticks_off()
    first.set(xlim=(min(1, 0.8 * min(distances)), 1.7 * max(distances)), ylim=(len(rows) - 0.4, -0.6))
    second.set_xlim(0, 1.18 * max(row["IS"] for row in rows))
    first.set_yticks(places, [f"{_model(row)}  {_size(row)}".rstrip() for row in rows])
    for tick, row in zip(first.get_yticklabels(), rows, strict=True):
        tick.set_color(COLORS[row["type"]])
        tick.set_fontweight("bold" if row["type"] == RUN else "normal")


def _write_reasons(axes: Axes, name: str, metrics: dict[str, float], reasons: list[str]) -> None:
    """A run that is not comparable: its metrics at the left, the reasons at the right."""
    axes.axis("off")
    values = [f"{title}: {value:.5g}" for title, value in metrics.items()]
    for left, heading, lines in (0, name, values), (0.5, "Not comparable with the rows above", reasons):
        words = "\n".join(textwrap.fill(line, 60, initial_indent="• ", subsequent_indent="   ") for line in lines)
        axes.text(left, 1, f"{heading}\n\n{words}", va="top", fontsize=9, transform=axes.transAxes)
