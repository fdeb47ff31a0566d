"""The report of `ctf fit`: the sheet, figures, the curves beside those of the bundled model, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ctf.files import read_json
from ctf.fit.plan import Plan
from ctf.reporting.page import picture, write_page
from ctf.reporting.plots import COLOR, GREY, plot
from ctf.reporting.tables import markdown_table
from ctf.stages.stage import bits
from ctf.tokenizer.registry import ASSETS

MODEL, SHEET, CURVES = "model", "samples.png", "curves.png"
#: What the table calls the difference between the systems, and the accuracies.
SAVED, RIGHT = "bits per token saved", "most probable label is right, given the right ones before it"
#: Losses of the bundled emoji model over the passes through its images, for comparison.
REFERENCE = ASSETS / "reference_curves.json"
Log = list[dict[str, float]]

IS_IT_NORMAL = """\
Is my loss normal? Grey is the bundled emoji model, from random weights: 7,922 images, 483 classes, 16,384 codewords.
Bits per token begin near the logarithm of the number of labels, from trained weights lower, and fall fast in the first
passes; fewer codewords mean fewer bits. A flat curve means too small a learning rate, one that rises at the end too
large a one. Held-out bits above the training loss by one and more mean that the model knows its images by heart: add
images, or take fewer steps."""


def curves(path: Path, logs: dict[str, Log]) -> None:
    """A panel for each training: this run's loss, and grey the bundled model's on the emoji."""
    known = read_json(REFERENCE)
    with plot(path, 4.5 * len(logs), 3.6) as figure:
        for axes, (name, log) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
            unit = "squared error" if name == "tokenizer" else "bits per token"
            lines = [line for line in log if "loss" in line]
            values = [line["mse"] if name == "tokenizer" else bits(line["loss"]) for line in lines]
            if name in known:
                axes.plot(*known[name], color=GREY, label="the bundled emoji model")
            axes.plot([line["epoch"] for line in lines], values, color=COLOR, linewidth=2, label="this run")
            axes.set(xlabel="passes over the images", ylabel=unit, ylim=(0, None))
            axes.set_title(name)
            axes.legend()


def write_report(run: Path, plan: Plan, metrics: dict[str, Any], more: Iterable[str] = ()) -> None:
    """Write report.md, beside its pictures, with the parts `more` before what to do next."""
    warning = metrics.get("warning", "")
    model, out, completed = (shlex.quote(str(run / name)) for name in (MODEL, "more", "completed.png"))
    last = "; last those of the baseline, with the same labels, seeds and settings" if plan.baseline else ""
    parts = [
        picture(SHEET, "images, their tokens, samples"),
        "First row: some of the images that the figures are of; second: what the tokenizer makes of them; then samples "
        f"of the classes above them{last}.",
        warning and f"**{warning[0].upper()}{warning[1:]}.**",
        *figures(metrics),
        picture(CURVES, "training losses"),
        IS_IT_NORMAL,
        *more,
        "## What to do next",
        f"""```sh
ctf sample --model {model} --num 64 --out {out}
ctf complete --model {model} --image photo.png --region 0 0.5 1 1 --labels 0 --num 7 --out {completed}
ctf info {model}
```""",
    ]
    write_page(run, f"A model of {plan.images}", parts, plan.table().splitlines())


def figures(metrics: dict[str, Any]) -> list[str]:
    """The table of the systems, and what is measured of the tokenizer."""
    kept = metrics["tokenizer"]
    psnr = f"Tokenizer: {_mean(kept, 'psnr', '.2f')} dB PSNR, {kept['usage']:.0%} of its codewords occur."
    return [markdown_table(_systems(metrics)), f"{psnr} After ± stands the standard error over the images."]


def _systems(metrics: dict[str, Any]) -> list[list[str]]:
    """Rows of the table: a column for the model, and one for the baseline if there is one."""
    model, speed = metrics["likelihood"], metrics["images_per_second"]
    each, saved = [model], []
    if "against" in model:
        other = model["against"]
        each.append(other)
        saved = [[SAVED, _mean(other | {"difference": -other["difference"]}, "difference", ".3f"), ""]]
    return [
        [f"on {metrics['measured_on']}", *speed],
        ["bits per token", *map(_bits, each)],
        *saved,
        [RIGHT, *(", ".join(_by_stage(by, "_accuracy", ".1%")) for by in each)],
        ["images per second", *(f"{rate:.3g}" for rate in speed.values())],
    ]


def _mean(by: dict[str, Any], name: str, style: str) -> str:
    """A mean over images with its standard error, which a single image has none of."""
    error = by["standard_error"][name]
    return f"{by[name]:{style}}" + ("" if error is None else f" ± {error:{style}}")


def _bits(by: dict[str, Any]) -> str:
    """Bits per token, with those of each stage if there are several."""
    terms = _by_stage(by, "_bits_per_token", ".3f")
    return _mean(by, "bits_per_token", ".3f") + (f" ({' + '.join(terms)})" if terms else "")


def _by_stage(by: dict[str, Any], end: str, style: str) -> list[str]:
    return [f"{name.removesuffix(end)} {value:{style}}" for name, value in by.items() if name.endswith(end)]
