"""`ctf reproduce`."""

from __future__ import annotations

import shlex
import sys
from typing import Literal


def reproduce(
    name: str,
    preset: Literal["emoji", "tiny-imagenet", "imagenet"] = "emoji",
    out: str = "runs/reproduce",
    dry_run: bool = False,
    look: bool = False,
    seeds: tuple[int, ...] | None = None,
    steps: int | None = None,
    num: int | None = None,
    images: str | None = None,
    tokenizer: str | None = None,
    reference: str | None = None,
    device: str = "auto",
) -> None:
    """A table or figure of the paper, or a comparison beyond it: train, sample, measure, and write a page.

    Example:
        ctf reproduce table1 --preset imagenet --dry-run

    Args:
        name: of the paper: table1, table2, table3a, table3b, table3c, table3d, table3e, table3f, fig1b, fig2, fig3,
            accuracy. Beyond it: kinds, orders, rounds, passes, clusterings, support, guidance, levels.
        preset: emoji, the bundled images, and tiny-imagenet, photographs that --images names, with small models for two
            CPU cores; or imagenet, the paper's settings.
        out: trained stages, sample sets and metrics, each made once and shared by all experiments; and a folder with
            report.md for each experiment. An interrupted command goes on where it stopped. What is made is found by its
            settings and by the names of images, tokenizer and reference: once their files change, take another out.
        dry_run: print what would be made, with operations and time.
        look: make nothing, and write the page of what is there already.
        seeds: of trainings, where they are repeated; else the first.
        steps: of every training, in place of the preset's.
        num: how many images a sample set has, in place of the preset's.
        images: in place of the preset's, as for `ctf tokenize`, with the same splits: train and test (emoji), train and
            val (the others).
        tokenizer: in place of the preset's, as for `ctf tokenize`.
        reference: in place of the preset's, as for `ctf evaluate samples`; images need a split train. Without it,
            images of yours are their own reference, but for the preset imagenet, which keeps ADM's.
        device: where to train and sample; auto is a GPU where there is one.
    """
    from ctf.experiments.presets import PRESETS
    from ctf.experiments.reproduce import plan, reproduce

    chosen = PRESETS[preset].changed(images, tokenizer, reference, seeds, steps, num)
    if images or tokenizer:
        chosen = chosen.measured()
    if dry_run:
        print(plan(name, chosen, out, device))
    else:
        page = reproduce(name, chosen, out, device, shlex.join(["ctf", *sys.argv[1:]]), not look)
        print(f"{page}: {name}, with its pictures beside it")
