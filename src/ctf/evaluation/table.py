"""A run beside the published results: as text, Markdown, JSON and a plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctf.evaluation.protocol import Evaluation
from ctf.evaluation.table_plot import plot_comparison
from ctf.files import read_json, write_json, write_text

PUBLISHED = Path(__file__).parent.parent / "assets" / "imagenet256_published.json"
HEADER = ["type", "model", "parameters", "FID ↓", "IS ↑", "precision ↑", "recall ↑"]
FIGURES = {"FID": ".2f", "IS": ".1f", "precision": ".2f", "recall": ".2f"}


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
        found.append(f"{count:,} samples; the published figures are of 50,000.")
    if size != [256, 256]:
        found.append(f"{size[0]} × {size[1]} pixels; the published figures are of 256 × 256.")
    if reference["origin"] != "moments from file":
        found.append(
            f"The reference is {reference['source']}; the published figures use ADM's ImageNet batch and its moments."
        )
    return found


def write_comparison(out: str | Path, evaluation: Evaluation) -> str:
    """Write result.json, table.txt, table.md and plot.png into the folder `out`; returns the text of table.txt."""
    out, table, reasons = Path(out), published(), differences(evaluation)
    comparison = {"comparable": not reasons, "differences": reasons, "published": table}
    write_json(out / "result.json", {**asdict(evaluation), "comparison": comparison})
    text = comparison_text(evaluation)
    write_text(out / "table.txt", text)
    write_text(out / "table.md", comparison_markdown(evaluation))
    plot_comparison(out / "plot.png", table["rows"], run_name(evaluation), evaluation.figures, reasons)
    return text


def comparison_text(evaluation: Evaluation) -> str:
    """Figures, what they were compared with, and the table, in aligned columns."""
    return _page(evaluation, _aligned, heading="{}")


def comparison_markdown(evaluation: Evaluation) -> str:
    """The same as Markdown."""
    return _page(evaluation, _pipes, heading="## {}")


def run_name(evaluation: Evaluation) -> str:
    """What to call the run: the source of its samples."""
    return evaluation.samples["source"]


def _page(evaluation: Evaluation, layout: Callable[[list[list[str]]], str], heading: str) -> str:
    reasons, table = differences(evaluation), published()
    rows = [_published_row(row) for row in table["rows"]]
    if reasons:
        verdict = ["Not comparable with the published figures below:", *reasons]
    else:
        rows.append(["this run", run_name(evaluation), "-", *_formatted(evaluation.figures)])
        verdict = [
            "Comparable with the published figures below, if the reference is ADM's ImageNet 256 × 256 batch and the "
            "weights are the published ones; their fingerprints are above."
        ]
    figures = [["figure", "value"], *([name, f"{value:.5g}"] for name, value in evaluation.figures.items())]
    parts = [
        heading.format(run_name(evaluation)),
        layout(figures),
        _bullets(_facts(evaluation)),
        "\n".join([verdict[0], _bullets(verdict[1:])] if reasons else verdict),
        heading.format(table["title"]),
        layout([HEADER, *rows]),
        _bullets([f"Source: {table['source']}.", *table["notes"]]),
    ]
    return "\n\n".join(parts) + "\n"


def _facts(evaluation: Evaluation) -> list[str]:
    samples, reference, settings = evaluation.samples, evaluation.reference, evaluation.settings
    manifest = samples["manifest"]
    made = manifest and f"model {manifest['model']}, labels {manifest['label_policy']}, seed {manifest['seed']}."
    splits = f"; score splits: {settings['score_splits']}" if "score_splits" in settings else ""
    how = "moments from the file, features" if reference["origin"] == "moments from file" else "features and moments"
    how = f"{how} {'read from the cache' if reference['cached'] else 'computed now'}"
    resize = f" after {reference['resize']}" if reference["resize"] else ""
    return [
        f"Samples: {samples['count']:,} of {_pixels(samples)}, " + (made or "no manifest."),
        f"Reference: {reference['source']}, {reference['count']:,} of {_pixels(reference)}{resize}, "
        f"fingerprint {reference['fingerprint']}, {how}.",
        f"Features: {evaluation.features['name']}, {evaluation.features['dimensions']:,} numbers, "
        f"fingerprint {evaluation.features['fingerprint']}.",
        f"Precision and recall: {settings['neighbours']} neighbours, "
        f"{settings['precision_reference_images']:,} reference images{splits}.",
        *(f"Warning: {warning}" for warning in evaluation.warnings),
    ]


def _published_row(row: dict[str, Any]) -> list[str]:
    millions = row["parameters_millions"]
    size = "-" if millions is None else f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions}M"
    model = f"{row['model']} †" if row["trained_at"] != 256 else row["model"]
    return [row["type"], model, size, *_formatted(row)]


def _formatted(figures: dict[str, Any]) -> list[str]:
    return ["-" if (value := figures.get(name)) is None else format(value, style) for name, style in FIGURES.items()]


def _pixels(facts: dict[str, Any]) -> str:
    return " × ".join(str(side) for side in facts["image_size"])


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _aligned(rows: list[list[str]]) -> str:
    """Text to the left, numbers, which are all but the first and the model, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = 2 if len(widths) > 2 else 1
    lines = [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _pipes(rows: list[list[str]]) -> str:
    header, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *body])
