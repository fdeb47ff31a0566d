"""The report of `ctf fit`: the sheet, the curves beside those of the bundled model, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ctf.files import atomic_path, read_json
from ctf.fit.plan import Plan
from ctf.stages.stage import bits
from ctf.tokenizer.registry import ASSETS

#: Losses of the bundled emoji model over the passes through its images, for comparison.
REFERENCE = ASSETS / "reference_curves.json"
Log = list[dict[str, float]]


def series(name: str, log: Log) -> tuple[list[float], list[float], str]:
    """Passes over the images, the loss, and what it is, of a training: the tokenizer's error, or bits per token."""
    lines = [line for line in log if "loss" in line]
    key, unit = ("mse", "squared error") if name == "tokenizer" else ("loss", "bits per token")
    values = [line[key] if name == "tokenizer" else bits(line[key]) for line in lines]
    return [line["epoch"] for line in lines], values, unit


def curves(path: Path, logs: dict[str, Log]) -> None:
    """A panel for each training: this run's loss, and grey the bundled model's on the emoji."""
    from matplotlib.figure import Figure

    known = read_json(REFERENCE)
    figure = Figure(figsize=(4.5 * len(logs), 3.6), layout="constrained")
    for axes, (name, log) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs.items(), strict=True):
        epochs, values, unit = series(name, log)
        if name in known:
            axes.plot(*known[name], color="#b8b8b8", label="the bundled emoji model")
        axes.plot(epochs, values, color="#2f6f8f", linewidth=2, label="this run")
        axes.set(xlabel="passes over the images", ylabel=unit, ylim=(0, None), yscale="linear")
        axes.set_title(name, loc="left")
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def report(plan: Plan, metrics: dict[str, Any], logs: dict[str, Log], run: Path) -> str:
    """The page `report.md`."""
    tokenizer, likelihood = metrics["tokenizer"], metrics["likelihood"]
    whose = "held-out images" if plan.held_out else "the training images, since none were held out"
    warning = f"**{metrics['warning'][0].upper()}{metrics['warning'][1:]}.**\n\n" if "warning" in metrics else ""
    plan_lines = "\n".join(f"- {line}" for line in plan.table().splitlines())
    return f"""# A model of {plan.images}

![images, their tokens, samples](samples.png)

First row: {whose}; second: what the tokenizer makes of them; then samples of the classes above them.

{warning}| on {whose} | |
|---|---|
| tokenizer, PSNR | {tokenizer["psnr"]:.2f} dB |
| tokenizer, codewords that occur | {tokenizer["usage"]:.0%} |
| bits per token | {likelihood["bits_per_token"]:.3f} (coarse {likelihood["coarse_bits_per_token"]:.3f} + fine \
{likelihood["fine_bits_per_token"]:.3f}) |

![training losses](curves.png)

Is my loss normal? Grey is the bundled emoji model: 7,922 images, 483 classes, 16,384 codewords. Bits per token begin
near the logarithm of the number of labels and fall fast in the first passes; fewer codewords mean fewer bits. A flat
curve means too small a learning rate, one that rises at the end too large a one. Held-out bits above the training loss
by one and more mean that the model knows its images by heart: add images, or take fewer steps.

## What was done

{plan_lines}

## What to do next

```sh
ctf sample --model {run / "model"} --num 64 --out {run / "more"}
ctf complete --model {run / "model"} --image photo.png --region 0 0.5 1 1 --labels 0 --num 7 --out \
{run / "completed.png"}
ctf info {run / "model"}
```
"""
